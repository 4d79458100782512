package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/cli/show"
)

// TestStatus joins what the host, the control plane and the proxy know; the proxy of "one" does not answer.
func TestStatus(t *testing.T) {
	b := newBench(t)
	b.api.HandleFunc("GET /proxies", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `[{"name": "two", "namespace": "default", "connected": true, "synced": true, "identity": "spiffe://a"},
			{"name": "gone", "namespace": "default"}]`)
	})
	b.two.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"ready": true, "connected": true, "rss_mib": 12.5, "refused": "no", "identity": "spiffe://b", "accelerator": "on"}`)
	})
	b.serve()
	code, out, errs := b.run("", "status", "-o", "json")
	if code != 0 || errs != "" {
		t.Fatalf("code %d: %s", code, errs)
	}
	var got []show.Proxy
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want := []show.Proxy{
		{Name: "one", Namespace: "default", Role: "gateway"},
		{
			Name: "two", Namespace: "default", Role: "sidecar", Identity: "spiffe://b", Connected: true, Synced: true, Ready: true,
			Refused: "no", RSSMiB: 12.5, Accelerator: "on",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestStatusOfTheFolder: faults and warnings are told after the table, with the file of the mesh's folder.
func TestStatusOfTheFolder(t *testing.T) {
	b := newBench(t)
	b.api.HandleFunc("GET /proxies", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `[]`) })
	answer := `{"faults": [{"file": "/c/a.yaml", "line": 3, "column": 1, "message": "bad"}],
		"warnings": [{"file": "/c/b.yaml", "line": 4, "column": 2, "object": "Gateway default/g", "code": "IST0101", "message": "odd"}]}`
	b.api.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) })
	b.serve()
	const refused, warned = "because of:\n  /c/a.yaml:3:1: bad\n", "Warning: /c/b.yaml:4:2: Gateway default/g: odd [IST0101]\n"
	if code, out, errs := b.run("", "status"); code != 0 || errs != "" || !strings.HasSuffix(out, refused+warned) {
		t.Errorf("code %d:\n%s%s", code, out, errs)
	}
	answer = `{"faults": [], "warnings": []}`
	if _, out, _ := b.run("", "status"); strings.Contains(out, "refused") || strings.Contains(out, "Warning") {
		t.Errorf("there is nothing to tell:\n%s", out)
	}
}

func TestProxyConfig(t *testing.T) {
	b := newBench(t)
	var query string
	b.two.HandleFunc("GET /config", func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.RawQuery
		_, _ = io.WriteString(w, `[{"kind": "cluster", "name": "reviews", "state": "ready", "text": "cluster reviews\n  endpoints\n"},
			{"kind": "cluster", "name": "ratings", "state": "pending"}]`)
	})
	b.serve()
	code, out, errs := b.run("", "proxy-config", "two.default", "clusters")
	if want := "cluster reviews\n  endpoints\ncluster ratings: pending\n"; code != 0 || out != want || query != "kind=cluster" {
		t.Errorf("code %d, asked for %q:\n%s%s", code, query, out, errs)
	}
	code, out, _ = b.run("", "proxy-config", "two", "--name", "rat", "-o", "json")
	var list []show.Entry
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list) != 1 || list[0].Name != "ratings" || query != "" {
		t.Errorf("code %d, asked for %q (%v):\n%s", code, query, err, out)
	}
	code, _, errs = b.run("", "proxy-config", "three")
	if want := "Error: no proxy \"three\" runs in namespace \"default\"; choose one.default, two.default\n"; code != 1 || errs != want {
		t.Errorf("code %d: %s", code, errs)
	}
}
