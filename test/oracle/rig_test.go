package oracle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/test/world"
)

// The addresses of a rig, the same in each.
const (
	network       = "10.9.0.1/16"
	clientAddress = "10.9.0.10"
	serverAddress = "10.9.0.20"
	gatewayAddr   = "10.9.0.30"
	peerAddress   = "10.9.2.1"
	peerOther     = "10.9.2.2"
)

// slow is what a request may take without being told of: the test is to stay quick.
const slow = time.Second

// rig is a mesh whose proxies are all of one kind, with the same names and addresses as every other rig's.
type rig struct {
	kind    world.Kind
	mesh    *world.World
	net     *world.Network
	journal *world.Journal
	places  map[string]*world.Place // by address
	proxies []*world.Proxy
	certs   *certificates
	ends    []func()
	conns   map[string]*connection
	slow    []string        // what took long
	late    map[string]bool // targets of which something may still reach a backend
}

// newRig starts one. It must be closed, also after an error.
func newRig(ctx context.Context, kind world.Kind, dir, binary string, certs *certificates) (r *rig, err error) {
	r = &rig{kind: kind, journal: &world.Journal{}, places: map[string]*world.Place{}, certs: certs, conns: map[string]*connection{}, late: map[string]bool{}}
	if r.net, err = world.NewNetwork(netip.MustParsePrefix(network)); err != nil {
		return r, err
	}
	for _, list := range [][]string{
		{clientAddress}, {serverAddress}, {gatewayAddr}, {peerAddress, peerOther}, {"10.9.1.1", "10.9.1.2", "10.9.1.3"},
	} {
		var addresses []netip.Addr
		for _, a := range list {
			addresses = append(addresses, netip.MustParseAddr(a))
		}
		p, err := r.net.Join(addresses...)
		if err != nil {
			return r, err
		}
		for _, a := range list {
			r.places[a] = p
		}
	}
	for name, address := range map[string]string{"v1": "10.9.1.1", "v2": "10.9.1.2", "v3": "10.9.1.3", "app": serverAddress} {
		if err := r.backends(ctx, name, address); err != nil {
			return r, err
		}
	}
	if r.mesh, err = world.New(ctx, world.Config{Dir: dir, ProxyBinary: binary, Network: r.net}); err != nil {
		return r, err
	}
	base, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		return r, err
	}
	if err := r.mesh.Apply(ctx, string(base)); err != nil {
		return r, err
	}
	return r, r.start(ctx)
}

func (r *rig) start(ctx context.Context) error {
	for _, w := range []world.Workload{
		{Role: proxy.RoleSidecar, Name: "client"},
		{Role: proxy.RoleSidecar, Name: "server", Ports: map[string]uint16{"http": 8080, "auto": 8081, "tcp": 9000, "grpc": 8082}},
		{Role: proxy.RoleGateway, Name: "gateway"},
	} {
		address := map[string]string{"client": clientAddress, "server": serverAddress, "gateway": gatewayAddr}[w.Name]
		w.Kind, w.Namespace, w.Place = r.kind, "default", r.places[address]
		w.Labels, w.Addresses = map[string]string{"app": w.Name}, []netip.Addr{netip.MustParseAddr(address)}
		p, err := r.mesh.Start(ctx, w)
		if err != nil {
			return err
		}
		r.proxies = append(r.proxies, p)
	}
	return nil
}

// backends opens the ports of a workload: 8080 to 8082 HTTP, 8443 HTTP over TLS, 9000 bytes, 9443 bytes over TLS.
func (r *rig) backends(ctx context.Context, name, address string) error {
	for _, port := range []int{8080, 8081, 8082, 8443, 9000, 9443} {
		l, err := r.places[address].Listen(ctx, fmt.Sprintf("%s:%d", address, port))
		if err != nil {
			return err
		}
		b := &world.Backend{Name: name, Journal: r.journal}
		if port == 8443 || port == 9443 {
			b.TLS = r.certs.server()
		}
		if port < 9000 {
			b.Serve(l)
		} else {
			b.ServeTCP(l)
		}
		r.ends = append(r.ends, b.Close)
	}
	return nil
}

func (r *rig) close() error {
	var err error
	r.hangUp()
	if r.mesh != nil {
		err = r.mesh.Close()
	}
	for _, end := range r.ends {
		end()
	}
	if r.net != nil {
		err = errors.Join(err, r.net.Close())
	}
	return err
}

// play applies a world, sends its requests and takes the world back.
func (r *rig) play(ctx context.Context, w *worldFile) ([]observation, error) {
	if w.yaml != "" {
		if err := r.mesh.Apply(ctx, w.yaml); err != nil {
			return nil, err
		}
	}
	if err := r.settle(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", r.kind, err)
	}
	var out []observation
	for i := range w.requests {
		began := time.Now()
		out = append(out, r.ask(ctx, &w.requests[i]))
		if d := time.Since(began); d > slow {
			r.slow = append(r.slow, fmt.Sprintf("%s %s/%s: %s", r.kind, w.name, w.requests[i].name, d.Round(time.Millisecond)))
		}
	}
	r.hangUp()
	if w.yaml != "" {
		if err := r.mesh.Delete(ctx, w.yaml); err != nil {
			return nil, err
		}
	}
	return out, r.settle(ctx)
}

// settle returns when all proxies obey. Envoy's refusals (NACK) are errors.
func (r *rig) settle(ctx context.Context) error {
	for _, p := range r.proxies {
		if err := p.Settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// folder is a short path for a rig's files.
func folder(root string, kind world.Kind) string { return filepath.Join(root, string(kind[0])) }
