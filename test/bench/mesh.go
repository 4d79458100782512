package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/test/bench/load"
	"github.com/lateen-mesh/lateen/test/world"
)

const (
	// appPort is the first of the services' own, and meshPort of those by which clients call them.
	appPort  = 8080
	meshPort = 80
	// hopPort is where the second of two proxies that capture nothing listens, and nearPort the first.
	hopPort  = 15443
	nearPort = 15001
	// otherRules is how many authorization rules stand before the one that matches.
	otherRules = 19
	// certificateTTL outlives any run.
	certificateTTL = 24 * time.Hour
)

// meshPeer is a peer as the templates see it.
type meshPeer struct {
	Name    string
	Virtual netip.Addr
}

// The addresses of a peer's places, and of its service.
func serverAddress(n int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 9, 1, byte(n + 1)}) }
func clientAddress(n int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 9, 2, byte(n + 1)}) }
func virtualAddress(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 8, 0, byte(n + 1)}) }

// startMesh gives each peer a place with the services in it and one for its clients, with real capture rules for those
// that obey our control plane.
func (s *stage) startMesh(ctx context.Context, sc *scenario, names []string) error {
	var err error
	if s.network, err = world.NewNetwork(netip.MustParsePrefix("10.9.0.1/16")); err != nil {
		return err
	}
	if sc.position&atClient != 0 {
		return s.startLarge(ctx, sc, names)
	}
	for i, v := range sc.services {
		s.routes = append(s.routes, route{Downstream: v.downstream, Upstream: v.upstream, Service: appPort + i, Number: meshPort + i})
	}
	var peers []meshPeer
	for n, name := range names {
		if obeys(name) {
			peers = append(peers, meshPeer{name, virtualAddress(n)})
		}
	}
	var others []int
	for i := range otherRules {
		others = append(others, i)
	}
	if err := s.control(ctx, "sidecars.yaml", map[string]any{"Peers": peers, "Others": others}); err != nil {
		return err
	}
	if sc.position&atServer != 0 {
		if s.tls, err = s.callerTLS(); err != nil {
			return err
		}
	}
	for n, name := range names {
		p := &peer{name: name}
		if err := s.admit(ctx, p, sc, s.addMesh(ctx, sc, p, n)); err != nil {
			return err
		}
	}
	return nil
}

// callerTLS is what a client in the mesh shows.
func (s *stage) callerTLS() (*load.TLS, error) {
	cert, err := s.world.Authority().Certificate(account("client"), certificateTTL)
	if err != nil {
		return nil, err
	}
	chain, key, err := texts(cert)
	return &load.TLS{Chain: chain, Key: key, Protocols: []string{"istio-http/1.1", "istio", "http/1.1"}}, err
}

func account(name string) identity.ID {
	return identity.ID{TrustDomain: world.TrustDomain, Namespace: namespace, ServiceAccount: name}
}

// texts writes a certificate as PEM.
func texts(cert tls.Certificate) (chain, key []byte, err error) {
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// addMesh starts one peer with its services.
func (s *stage) addMesh(ctx context.Context, sc *scenario, p *peer, n int) error {
	server, err := s.network.Join(serverAddress(n))
	if err != nil {
		return err
	}
	if p.place, err = s.network.Join(clientAddress(n)); err != nil {
		return err
	}
	var list []load.Service
	for i, v := range sc.services {
		v.Address = netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(appPort+i))
		list = append(list, v.Service)
	}
	if _, err := s.serve(server, list); err != nil {
		return err
	}
	if !obeys(p.name) {
		return s.addPair(ctx, p, server, n)
	}
	at, first := virtualAddress(n), meshPort
	if sc.position&atServer != 0 {
		at, first = serverAddress(n), appPort
	} else if err := s.sidecar(ctx, p, p.place, "client-"+p.name, clientAddress(n), nil, nil); err != nil {
		return err
	}
	ports := map[string]uint16{}
	for i := range sc.services {
		p.ports = append(p.ports, netip.AddrPortFrom(at, uint16(first+i)))
		ports["port-"+strconv.Itoa(i)] = uint16(appPort + i)
	}
	var labels map[string]string
	if sc.position&tunnels != 0 {
		labels = map[string]string{"networking.istio.io/tunnel": "http"}
	}
	if err := s.sidecar(ctx, p, server, "server-"+p.name, serverAddress(n), ports, labels); err != nil {
		return err
	}
	return answers(ctx, p)
}

// sidecar starts one in a place, for a workload with these labels besides its name.
func (s *stage) sidecar(ctx context.Context, p *peer, at *world.Place, name string, address netip.Addr, ports map[string]uint16, labels map[string]string) error {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels["app"] = name
	w := s.workload(p)
	w.Role, w.Name, w.Labels, w.Addresses, w.Ports, w.Place = proxy.RoleSidecar, name, labels, []netip.Addr{address}, ports, at
	run, err := s.world.Start(ctx, w)
	if err != nil {
		return err
	}
	p.roots, p.admin = append(p.roots, run.PID()), run.Admin
	return nil
}

// addPair starts two proxies that capture nothing, one in each place.
func (s *stage) addPair(ctx context.Context, p *peer, server *world.Place, n int) error {
	roots := s.world.Authority().Bundle().PEM(world.TrustDomain)
	own, err := s.world.Authority().Certificate(account("client-"+p.name), certificateTTL)
	if err != nil {
		return err
	}
	served, err := s.world.Authority().ServerCertificate([]string{"server"}, nil)
	if err != nil {
		return err
	}
	other, err := served.GetCertificate(nil)
	if err != nil {
		return err
	}
	far, near := slices.Clone(s.routes), slices.Clone(s.routes)
	for i := range s.routes {
		far[i].Listen = netip.AddrPortFrom(serverAddress(n), uint16(hopPort+i)).String()
		far[i].Backend = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(appPort+i)).String()
		at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(nearPort+i))
		near[i].Listen, near[i].Backend = at.String(), far[i].Listen
		p.ports = append(p.ports, at)
	}
	file := "pair-haproxy.cfg"
	if p.name == peerNginx {
		file = "pair-nginx.conf"
	}
	for _, side := range []struct {
		name   string
		at     *world.Place
		routes []route
		cert   tls.Certificate
	}{{"server", server, far, *other}, {"client", p.place, near, own}} {
		chain, key, err := texts(side.cert)
		if err != nil {
			return err
		}
		data := s.data(side.routes, map[string]any{"Client": side.name == "client"})
		files := map[string][]byte{"own.pem": append(chain, key...), "roots.pem": roots}
		if err := s.byFile(ctx, p, side.at, file, side.name+"-"+p.name, data, files); err != nil {
			return err
		}
	}
	return nil
}
