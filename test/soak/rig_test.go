package soak

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lateen-mesh/lateen/proxy"
	"github.com/lateen-mesh/lateen/test/world"
)

const (
	// patience bounds an exchange: one that takes longer is stalled.
	patience = 2 * time.Minute
	// restMax is the longest rest of a worker between two exchanges.
	restMax = 10 * time.Millisecond
	// certificateTTL has the proxies' certificates renewed twice a minute, with time to spare on a busy machine.
	certificateTTL = time.Minute
	namespace      = "default"
)

// The addresses of the rig.
const (
	clientAddress  = "10.9.0.10"
	serverAddress  = "10.9.0.20"
	gatewayAddress = "10.9.0.30"
	farAddress     = "10.9.0.40"
	outside        = "10.9.2.1"
)

// plainBackends are those that have no proxy. The last one comes and goes.
var plainBackends = []string{"10.9.1.1", "10.9.1.2", "10.9.1.3"}

// rig is a mesh of four proxies: the sidecar of who asks, those of who is asked, of which the far one takes tunnels
// (HBONE), and a gateway.
type rig struct {
	dir      string
	net      *world.Network
	mesh     *world.World
	places   map[string]*world.Place
	backends []*backend // those with a proxy, then the plain ones
	proxies  map[string]*world.Proxy
	certs    *certificates
}

var backendPorts = map[string]uint16{
	"http": portHTTP, "auto": portAuto, "grpc": portGRPC, "tcp": portBytes, "greet": portGreet, "tls": portTLS,
}

// workloads are those that have a proxy.
var workloads = []world.Workload{
	{Role: proxy.RoleSidecar, Name: "client", Labels: map[string]string{"app": "client"}, Addresses: []netip.Addr{netip.MustParseAddr(clientAddress)}},
	{
		Role: proxy.RoleSidecar, Name: "server", Labels: map[string]string{"app": "server", "proxied": "yes"}, Ports: backendPorts,
		Addresses: []netip.Addr{netip.MustParseAddr(serverAddress)},
	},
	{
		Role: proxy.RoleSidecar, Name: "far", Ports: backendPorts, Addresses: []netip.Addr{netip.MustParseAddr(farAddress)},
		Labels: map[string]string{"app": "far", "proxied": "yes", "networking.istio.io/tunnel": "http"},
	},
	{Role: proxy.RoleGateway, Name: "gateway", Labels: map[string]string{"app": "gateway"}, Addresses: []netip.Addr{netip.MustParseAddr(gatewayAddress)}},
}

// via is a way from a client to a backend.
type via struct {
	name    string
	from    string // the address of the place
	address string
	host    string
}

func (r *rig) dial(ctx context.Context, v *via) (net.Conn, error) {
	return r.places[v.from].Dial(ctx, netip.Addr{}, v.address)
}

// newRig starts one; it must be closed, also after an error.
func newRig(ctx context.Context, dir, binary string, report func(*order, error)) (r *rig, err error) {
	r = &rig{dir: dir, places: map[string]*world.Place{}, proxies: map[string]*world.Proxy{}}
	if r.certs, err = newCertificates(); err != nil {
		return r, err
	}
	if r.net, err = world.NewNetwork(netip.MustParsePrefix("10.9.0.1/16")); err != nil {
		return r, err
	}
	for _, a := range append([]string{clientAddress, serverAddress, farAddress, gatewayAddress, outside}, plainBackends...) {
		if r.places[a], err = r.net.Join(netip.MustParseAddr(a)); err != nil {
			return r, err
		}
	}
	for _, a := range append([]string{serverAddress, farAddress}, plainBackends...) {
		b := &backend{place: r.places[a], address: a, tls: &tls.Config{Certificates: []tls.Certificate{r.certs.server}}, report: report}
		if err := b.start(ctx); err != nil {
			return r, err
		}
		r.backends = append(r.backends, b)
	}
	if r.mesh, err = world.New(ctx, world.Config{Dir: dir, ProxyBinary: binary, Network: r.net}); err != nil {
		return r, err
	}
	if err := r.mesh.Apply(ctx, meshYAML); err != nil {
		return r, err
	}
	for _, w := range workloads {
		w.Kind, w.Namespace, w.CertificateTTL = world.Lateen, namespace, certificateTTL
		w.Place, w.Threads = r.places[w.Addresses[0].String()], 2
		if r.proxies[w.Name], err = r.mesh.Start(ctx, w); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *rig) close() error {
	var err error
	if r.mesh != nil {
		err = r.mesh.Close()
	}
	for _, b := range r.backends {
		b.close()
		b.work.Wait()
	}
	if r.net != nil {
		err = errors.Join(err, r.net.Close())
	}
	return err
}

// settle returns when all proxies obey.
func (r *rig) settle(ctx context.Context) error {
	for _, p := range r.proxies {
		if err := p.Settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// accessLog is the path of a proxy's.
func (r *rig) accessLog(name string) string {
	return filepath.Join(r.dir, namespace+"."+name, accessLogFile)
}

// rotate keeps the access logs short: what is in them now is kept until the next time.
func (r *rig) rotate() error {
	for name, p := range r.proxies {
		path := r.accessLog(name)
		if err := os.Rename(path, path+".old"); errors.Is(err, fs.ErrNotExist) { // nothing has come its way
			continue
		} else if err != nil {
			return err
		}
		if err := syscall.Kill(p.PID(), syscall.SIGUSR1); err != nil {
			return err
		}
	}
	return nil
}

// explain adds what the proxies say to failures: the lines of their access logs, and what they refused at that time.
func (r *rig) explain(list []failure) {
	for name, p := range r.proxies {
		text := p.Log()
		for _, suffix := range []string{".old", ""} {
			log, err := os.ReadFile(r.accessLog(name) + suffix)
			if err == nil {
				text += "\n" + string(log)
			}
		}
		for line := range strings.SplitSeq(text, "\n") {
			at, ok := stamp(line)
			for i := range list {
				f := &list[i]
				if ok && len(f.lines) < linesMax && at.After(f.at.Add(-f.facts.took-time.Second)) && at.Before(f.at.Add(time.Second)) && f.concerns(line) {
					f.lines = append(f.lines, name+": "+line)
				}
			}
		}
	}
}

// linesMax bounds what is said of one failure.
const linesMax = 24

// stamp is the time at the front of a line of a log of either kind.
func stamp(line string) (time.Time, bool) {
	line = strings.TrimPrefix(strings.TrimPrefix(line, "time="), "[")
	if i := strings.IndexAny(line, " ]"); i > 0 {
		line = line[:i]
	}
	at, err := time.Parse(time.RFC3339Nano, line)
	return at, err == nil
}

// concerns reports whether a line may tell of the failure.
func (f *failure) concerns(line string) bool {
	return strings.Contains(line, fmt.Sprintf("%016x", f.order.ID)) || f.facts.local != "" && strings.Contains(line, f.facts.local+" ") ||
		strings.HasPrefix(line, "time=") && !strings.Contains(line, "certificate obtained")
}

// certificates are of the clients' own TLS, which the proxies pass on.
type certificates struct {
	pool   *x509.CertPool
	server tls.Certificate
}

func newCertificates() (*certificates, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"echo", "server", "*.example"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	own, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(own)
	return &certificates{pool: pool, server: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: own}}, nil
}
