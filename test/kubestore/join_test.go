package kubestore

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/control"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/source/kube"
)

// join: a gateway proves its service account to a whole control plane over the cluster, and gets its orders.
func (r *rig) join(t *testing.T) {
	dir, err := os.MkdirTemp("", "kubestore-") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	at, err := kube.Reach(r.cluster.Kubeconfig, "")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	socket := filepath.Join(dir, "api")
	c, err := control.New(control.Config{Kube: at, State: filepath.Join(dir, "state"), Listen: "127.0.0.1:0", API: socket, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "control plane", c.Run)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	call := func(path, body string) (int, string) {
		method := http.MethodGet
		if body != "" {
			method = http.MethodPost
		}
		q, err := http.NewRequestWithContext(t.Context(), method, "http://lateend"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(q)
		if err != nil {
			return 0, err.Error() // it does not listen yet
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	r.await("the control plane is ready", func() bool { status, _ := call("/ready", ""); return status == http.StatusOK })
	if status, text := call("/apply", "kind: Service"); status != http.StatusConflict || !strings.Contains(text, "kubectl apply") {
		t.Errorf("apply: %d %s", status, text)
	}
	// The way to the control plane and its roots are told with a token, which is another account's.
	var way struct {
		Roots, TrustDomain, ControlName string
		Control                         []string
	}
	if _, text := call("/tokens", `{"namespace":"elsewhere","serviceAccount":"x"}`); json.Unmarshal([]byte(text), &way) != nil {
		t.Fatal(text)
	}
	p, err := proxy.New(proxy.Config{
		Role: proxy.RoleGateway, Name: "edge", Namespace: "shop", ServiceAccount: "reviews", Labels: map[string]string{"istio": "edge"},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Workload: plan.Workload{Name: "edge", Namespace: "shop"},
		TrustDomain: way.TrustDomain, Control: way.Control, ControlName: way.ControlName, Roots: []byte(way.Roots),
		Token:  r.kubectl("create", "token", "reviews", "-n", "shop", "--audience", kube.Audience),
		Logger: log, Loops: 1, DrainTime: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "proxy", p.Run)
	select {
	case <-p.Ready():
	case <-time.After(patience):
		t.Fatal("the gateway is not ready")
	}
	r.await("its stream", func() bool {
		_, text := call("/proxies", "")
		return strings.Contains(text, "spiffe://"+way.TrustDomain+"/ns/shop/sa/reviews")
	})
}

// run runs something until the test ends.
func run(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
}
