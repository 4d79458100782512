package world_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
	"github.com/lateen-mesh/lateen/test/world"
)

func TestMain(m *testing.M) { nstest.Main(m, nil) }

const shop = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.example]
  addresses: [10.8.0.1]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 10.9.1.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example]
  http:
  - headers: {request: {set: {x-edited: first}}}
    route: [{destination: {host: shop.example}}]
`

// TestSidecars has a client call a backend through each kind of sidecar, captured by real rules, and follow a change.
func TestSidecars(t *testing.T) {
	nstest.Need(t)
	dir, err := os.MkdirTemp("", "lw") //nolint:usetesting // t.TempDir is too long for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := world.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []world.Kind{world.Lateen, world.Envoy} {
		t.Run(string(kind), func(t *testing.T) {
			if _, err := world.EnvoyBinary(); kind == world.Envoy && err != nil {
				t.Skip(err)
			}
			follow(t, kind, filepath.Join(dir, string(kind)), binary)
		})
	}
}

func follow(t *testing.T, kind world.Kind, dir, binary string) {
	network, err := world.NewNetwork(netip.MustParsePrefix("10.9.0.1/16"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = network.Close() })
	join := func(address string) *world.Place {
		p, err := network.Join(netip.MustParseAddr(address))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	journal := &world.Journal{}
	back := &world.Backend{Name: "v1", Journal: journal}
	l, err := join("10.9.1.1").Listen(t.Context(), "10.9.1.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	back.Serve(l)
	t.Cleanup(back.Close)
	w, err := world.New(t.Context(), world.Config{Dir: dir, ProxyBinary: binary, Network: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	place := join("10.9.0.10")
	p, err := w.Start(t.Context(), world.Workload{
		Kind: kind, Role: proxy.RoleSidecar, Name: "client", Namespace: "default", Labels: map[string]string{"app": "client"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.10")}, Place: place,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range []string{"first", "second"} {
		yaml := shop
		if edit == "second" {
			yaml = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example]
  http:
  - headers: {request: {set: {x-edited: second}}}
    route: [{destination: {host: shop.example}}]
`
		}
		if err := w.Apply(t.Context(), yaml); err != nil {
			t.Fatal(err)
		}
		if err := p.Settle(t.Context()); err != nil {
			t.Fatalf("%v\n%s\n%s", err, w.Proxies(t.Context()), p.Log())
		}
		if body := get(t, place); body != "v1 GET /a\n" {
			t.Errorf("answer %q; log:\n%s", body, p.Log())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := journal.Await(ctx, 1); err != nil {
			t.Error(err)
		}
		cancel()
		if got := journal.Take(); len(got) != 1 || got[0].Header.Get("X-Edited") != edit {
			t.Errorf("%+v", got)
		}
	}
}

func get(t *testing.T, from *world.Place) string {
	c, err := from.Dial(t.Context(), netip.Addr{}, "10.8.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
