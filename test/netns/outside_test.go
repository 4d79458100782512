package netns

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	isolation "github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

const (
	// farAddress is the host outside the mesh, which is also the machine's name server, and nearAddress the machine's.
	farAddress  = "192.0.2.2"
	nearAddress = "192.0.2.1"
)

// TestOutside: services outside are reached as without a mesh, under whatever user it runs.
func TestOutside(t *testing.T) {
	startFar(t)
	for _, account := range []func(*testing.T) account{root, sailor} {
		who := account(t)
		t.Run(who.name, func(t *testing.T) {
			w := newRig(t, who).start("client")
			for _, url := range []string{"http://" + farAddress + "/", "http://far.test/", "http://" + farAddress + ":8443/"} {
				res, err := w.http().Get(url)
				if err != nil {
					t.Error(err)
					continue
				}
				text, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if want := "hello " + nearAddress; string(text) != want || err != nil {
					t.Errorf("%s: %d %q (%v), want %q", url, res.StatusCode, text, err, want)
				}
			}
			if res, err := w.http().Get("http://" + farAddress + ":81/"); err == nil {
				_ = res.Body.Close()
				t.Errorf("where nobody serves the status is %d", res.StatusCode)
			}
		})
	}
}

// startFar makes the host outside: HTTP on two ports, one of which says nothing of it, and DNS.
func startFar(t *testing.T) {
	t.Helper()
	if !inside() {
		t.Skip("only root can make a network beside the machine's")
	}
	bridge, err := isolation.NewBridge(isolation.BridgeConfig{Name: "street", Addresses: []netip.Prefix{netip.MustParsePrefix(nearAddress + "/24")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bridge.Close() })
	far, err := isolation.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	if err := bridge.Attach(far, netip.MustParseAddr(farAddress)); err != nil {
		t.Fatal(err)
	}
	err = isolation.Do(far, func() error {
		for _, address := range []string{":80", ":8443"} {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				host, _, _ := net.SplitHostPort(r.RemoteAddr)
				_, _ = io.WriteString(w, "hello "+host)
			})}
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { _ = server.Close() })
		}
		names, err := net.ListenPacket("udp", ":53")
		if err != nil {
			return err
		}
		go nstest.ServeName(names, "far.test.", netip.MustParseAddr(farAddress))
		t.Cleanup(func() { _ = names.Close() })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
