package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/hbone"
	"github.com/lateen-mesh/lateen/proxy/table"
)

// tlsConfigs makes crypto/tls configurations and keeps them, those of a cluster until its
// orders change.
type tlsConfigs struct {
	holder *identity.Holder

	mu      sync.Mutex
	mesh    *tls.Config                              // of chains that take HTTP
	bytes   *tls.Config                              // of the mesh's other chains
	tunnel  *tls.Config                              // of the port for tunnels
	tunnels map[string]*tls.Config                   // of tunnels' clients, by the identities that the server must have one of
	servers map[weak.Pointer[plan.Chain]]*tls.Config // an entry goes with its chain
	clients map[clientKey]*tls.Config
}

type clientKey struct {
	cluster *plan.Cluster
	secret  *plan.Secret // a new one makes a new configuration
	alpn    string
}

// serverALPN is what a mesh server accepts, in the order of its preference; the first one only where it takes HTTP: a
// peer that has chosen it says nothing that could be relayed.
var serverALPN = []string{alpnMux, alpnHTTP2, alpnHTTP11, alpnHTTP10, alpnTCP, "h2", "http/1.1"}

// serverTLS is how to end the TLS of a chain's clients.
func (p *Proxy) serverTLS(c *table.Chain) (*tls.Config, error) {
	t := &p.tls
	t.mu.Lock()
	defer t.mu.Unlock()
	switch c.Plan.TLS.Mode {
	case plan.TLSPermissive, plan.TLSStrict, plan.TLSMesh:
		if t.mesh == nil {
			t.mesh = identity.ServerTLS(t.holder, identity.ServerConfig{ALPN: serverALPN})
			t.bytes = identity.ServerTLS(t.holder, identity.ServerConfig{ALPN: serverALPN[1:]})
		}
		if !takesHTTP(c.Plan) {
			return t.bytes, nil
		}
		return t.mesh, nil
	}
	key := weak.Make(c.Plan)
	if cfg := t.servers[key]; cfg != nil {
		return cfg, nil
	}
	cfg, err := p.ordinaryServer(c.Plan)
	if err != nil {
		return nil, fmt.Errorf("chain %q (%s): %w", c.Plan.Name, c.Plan.Origin, err)
	}
	if t.servers == nil || len(t.servers) >= cacheMax {
		t.servers = map[weak.Pointer[plan.Chain]]*tls.Config{}
	}
	t.servers[key] = cfg
	runtime.AddCleanup(c.Plan, t.forgetServer, key)
	return cfg, nil
}

// forgetServer drops the configuration of a chain that is gone.
func (t *tlsConfigs) forgetServer(key weak.Pointer[plan.Chain]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.servers, key)
}

// ordinaryServer is a gateway's TLS with a certificate of its own. The certificate is looked up at each handshake,
// so that a new secret needs no new connection, and on the handshake's goroutine, because it may be read from files.
func (p *Proxy) ordinaryServer(c *plan.Chain) (*tls.Config, error) {
	orders := c.TLS // so that what is made does not keep the chain
	t := &orders
	cfg := identity.BaseTLS(t.ALPN)
	if len(t.ALPN) == 0 && c.HTTP != nil {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	if t.MinVersion != 0 {
		cfg.MinVersion = t.MinVersion
	}
	if t.MaxVersion != 0 {
		cfg.MaxVersion = t.MaxVersion
	}
	if len(t.CipherSuites) > 0 {
		cfg.CipherSuites = t.CipherSuites
	}
	if t.Secret != "" { // else files are named, which no event loop may wait for
		if _, _, err := p.material(t); err != nil {
			return nil, err
		}
	}
	keep := &pairOf{}
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, roots, err := p.material(t)
		if err != nil {
			return nil, err
		}
		return keep.config(cfg, t, cert, roots)
	}
	return cfg, nil
}

// pairOf is the configuration made of the newest material.
type pairOf struct {
	mu    sync.Mutex
	chain string
	roots string
	cfg   *tls.Config
}

func (k *pairOf) config(base *tls.Config, t *plan.ServerTLS, cert tls.Certificate, roots []byte) (*tls.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cfg != nil && k.chain == string(cert.Certificate[0]) && k.roots == string(roots) {
		return k.cfg, nil
	}
	cfg := base.Clone()
	cfg.GetConfigForClient = nil
	cfg.Certificates = []tls.Certificate{cert}
	if t.Mode == plan.TLSMutual || t.Mode == plan.TLSOptional {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
		if t.Mode == plan.TLSOptional {
			cfg.ClientAuth = tls.VerifyClientCertIfGiven
		}
		cfg.ClientCAs = x509.NewCertPool()
		if !cfg.ClientCAs.AppendCertsFromPEM(roots) {
			return nil, errors.New("no root certificate for clients: set ca.crt in the secret, or caCertificates")
		}
		if len(t.SubjectAltNames) > 0 {
			names := t.SubjectAltNames
			cfg.VerifyConnection = func(cs tls.ConnectionState) error { return verifyNames(cs, names) }
		}
	}
	k.cfg, k.chain, k.roots = cfg, string(cert.Certificate[0]), string(roots)
	return cfg, nil
}

// verifyNames demands one of the names of the peer's certificate.
func verifyNames(cs tls.ConnectionState, names []string) error {
	if len(cs.PeerCertificates) == 0 {
		return nil // optional, and there is none
	}
	cert := cs.PeerCertificates[0]
	have := slices.Clone(cert.DNSNames)
	for _, u := range cert.URIs {
		have = append(have, u.String())
	}
	if slices.ContainsFunc(have, func(n string) bool { return slices.Contains(names, n) }) {
		return nil
	}
	if slices.ContainsFunc(names, func(n string) bool { return cert.VerifyHostname(n) == nil }) {
		return nil // an address, or by a wildcard in the certificate
	}
	return fmt.Errorf("the peer's certificate is for %v, want one of %v", have, names)
}

// material reads the certificate and the clients' roots that a chain names.
func (p *Proxy) material(t *plan.ServerTLS) (tls.Certificate, []byte, error) {
	if t.Secret != "" {
		s := p.table.Secret(t.Secret)
		if s == nil {
			return tls.Certificate{}, nil, fmt.Errorf("secret %s is not there: create it in the gateway's namespace", t.Secret)
		}
		cert, err := tls.X509KeyPair(s.Chain, s.Key)
		if err != nil {
			return cert, nil, fmt.Errorf("secret %s: %w", t.Secret, err)
		}
		return cert, s.Roots, nil
	}
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return cert, nil, fmt.Errorf("read serverCertificate and privateKey: %w", err)
	}
	var roots []byte
	if t.CAFile != "" {
		if roots, err = os.ReadFile(t.CAFile); err != nil {
			return cert, nil, fmt.Errorf("read caCertificates: %w", err)
		}
	}
	return cert, roots, nil
}

// client returns the configuration for a cluster and protocols, made once.
func (t *tlsConfigs) client(c *plan.Cluster, s *plan.Secret, alpn []string, build func() (*tls.Config, error)) (*tls.Config, error) {
	key := clientKey{cluster: c, secret: s}
	if len(alpn) > 0 {
		key.alpn = alpn[0]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if cfg := t.clients[key]; cfg != nil {
		return cfg, nil
	}
	cfg, err := build()
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", c.Name, err)
	}
	maps.DeleteFunc(t.clients, func(k clientKey, _ *tls.Config) bool { // those of earlier orders
		return k.cluster.Name == c.Name && (k.cluster != c || k.secret != s)
	})
	if t.clients == nil || len(t.clients) >= cacheMax {
		t.clients = map[clientKey]*tls.Config{}
	}
	t.clients[key] = cfg
	return cfg, nil
}

// tunnelServerTLS is how to end the TLS of those who open tunnels to us.
func (p *Proxy) tunnelServerTLS() *tls.Config {
	t := &p.tls
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tunnel == nil {
		t.tunnel = identity.ServerTLS(t.holder, identity.ServerConfig{ALPN: []string{hbone.ALPN}})
		t.tunnel.MinVersion = tls.VersionTLS13
	}
	return t.tunnel
}

// tunnelClientTLS is how to reach a proxy that takes tunnels and has one of the identities, joined by commas. No
// server name is sent.
func (p *Proxy) tunnelClientTLS(identities string) *tls.Config {
	t := &p.tls
	t.mu.Lock()
	defer t.mu.Unlock()
	if cfg := t.tunnels[identities]; cfg != nil {
		return cfg
	}
	var ids []string
	if identities != "" {
		ids = strings.Split(identities, ",")
	}
	cfg := identity.ClientTLS(t.holder, identity.ClientConfig{ALPN: []string{hbone.ALPN}, Accept: p.acceptable(ids)})
	cfg.MinVersion = tls.VersionTLS13
	if t.tunnels == nil || len(t.tunnels) >= cacheMax {
		t.tunnels = map[string]*tls.Config{}
	}
	t.tunnels[identities] = cfg
	return cfg
}

// acceptable tells who may answer: one of the SPIFFE IDs, or without any, anybody of the mesh.
func (p *Proxy) acceptable(list []string) func(identity.ID) bool {
	if len(list) == 0 {
		return func(id identity.ID) bool { return id.TrustDomain == p.cfg.TrustDomain }
	}
	var ids []identity.ID
	for _, text := range list {
		if id, err := identity.ParseID(text); err == nil {
			ids = append(ids, id)
		}
	}
	return identity.OneOf(ids...)
}

// meshClient is mutual TLS with the mesh's identities.
func (p *Proxy) meshClient(t target, alpn []string) (*tls.Config, error) {
	c := t.cluster.Plan()
	return p.tls.client(c, nil, alpn, func() (*tls.Config, error) {
		return identity.ClientTLS(p.holder, identity.ClientConfig{ServerName: c.TLS.SNI, ALPN: alpn, Accept: p.acceptable(c.TLS.Identities)}), nil
	})
}

// ordinaryClient is TLS as browsers speak it, with a client certificate where one is named. Material in files is read
// by each handshake, on its goroutine: an event loop must not wait for files, and new ones need no new plan.
func (p *Proxy) ordinaryClient(c *plan.Cluster, alpn []string) (*tls.Config, error) {
	return p.tls.client(c, p.table.Secret(c.TLS.Secret), alpn, func() (*tls.Config, error) {
		cfg := identity.BaseTLS(alpn)
		cfg.ServerName, cfg.InsecureSkipVerify = c.TLS.SNI, c.TLS.InsecureSkipVerify
		if c.TLS.Secret == "" {
			useFiles(cfg, &c.TLS)
		} else if err := useSecret(cfg, &c.TLS, p.table.Secret(c.TLS.Secret)); err != nil {
			return nil, err
		}
		if names := c.TLS.Identities; len(names) > 0 && !cfg.InsecureSkipVerify {
			verifyByName(cfg, names)
		}
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(16)
		return cfg, nil
	})
}

// rootPool makes a pool of PEM; nil, which means the machine's own roots, of nothing.
func rootPool(pem []byte) (*x509.CertPool, error) {
	if len(pem) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("the root certificates are not PEM")
	}
	return pool, nil
}

// useSecret takes the certificate and the roots of a secret, which is nil if there is none.
func useSecret(cfg *tls.Config, t *plan.ClientTLS, s *plan.Secret) (err error) {
	if s == nil {
		return fmt.Errorf("secret %s is not there", t.Secret)
	}
	if cfg.RootCAs, err = rootPool(s.Roots); err != nil || t.Mode != plan.ClientTLSMutual {
		return err
	}
	cert, err := tls.X509KeyPair(s.Chain, s.Key)
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	cfg.Certificates = []tls.Certificate{cert}
	return nil
}

// useFiles has the handshake read the certificate and the roots that are named by path.
func useFiles(cfg *tls.Config, t *plan.ClientTLS) {
	if t.Mode == plan.ClientTLSMutual {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read clientCertificate and privateKey: %w", err)
			}
			return &cert, nil
		}
	}
	if t.CAFile == "" || t.InsecureSkipVerify {
		return
	}
	cfg.InsecureSkipVerify = true // VerifyConnection below verifies the chain and the names.
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return fmt.Errorf("read caCertificates: %w", err)
		}
		roots, err := rootPool(pem)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", t.CAFile, err)
		case roots == nil:
			return fmt.Errorf("%s is empty", t.CAFile)
		case len(t.Identities) > 0:
			return verifyServer(cs, roots, "", t.Identities)
		}
		return verifyServer(cs, roots, t.SNI, nil) // without a server name, target.serverName adds the request's
	}
}

// verifyServer demands a chain to the roots, and the DNS name or one of the names, where given.
func verifyServer(cs tls.ConnectionState, roots *x509.CertPool, dns string, names []string) error {
	o := x509.VerifyOptions{Roots: roots, DNSName: dns, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := cs.PeerCertificates[0].Verify(o); err != nil {
		return fmt.Errorf("verify server: %w", err)
	}
	if names == nil {
		return nil
	}
	return verifyNames(cs, names)
}

// verifyByName demands that the server's chain is good and bears one of the names, instead of the server name.
func verifyByName(cfg *tls.Config, names []string) {
	roots := cfg.RootCAs
	cfg.InsecureSkipVerify = true // VerifyConnection below verifies the chain and the names.
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return verifyServer(cs, roots, "", names) }
}

// xfcc is our view of the client's certificate, made once for a connection; empty if the client showed none.
func (d *downstream) xfcc() []byte {
	if d.rec.xfcc != nil {
		return d.rec.xfcc
	}
	state := d.c.TLS()
	if state == nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	by := ""
	if d.s.meshed {
		by = d.w.p.self.identity
	}
	d.rec.xfcc = certElement(by, state.PeerCertificates[0], d.s.listener.Plan.Direction == plan.Gateway)
	return d.rec.xfcc
}

// certElement is an element of x-forwarded-client-cert as Envoy writes it ("HTTP header manipulation"): who it is
// shown to, if that has a URI, then the certificate's Hash, at a gateway the Cert itself, its Subject, first URI and DNS
// names. Subject and URI are there even if they are empty.
func certElement(by string, leaf *x509.Certificate, whole bool) []byte {
	var out []byte
	if by != "" {
		out = append(appendCertValue(append(out, "By="...), by), ';')
	}
	sum := sha256.Sum256(leaf.Raw)
	out = hex.AppendEncode(append(out, "Hash="...), sum[:])
	if whole {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
		escape := strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D")
		out = append(append(append(out, `;Cert="`...), escape.Replace(string(text))...), '"')
	}
	var subject pkix.RDNSequence
	if _, err := asn1.Unmarshal(leaf.RawSubject, &subject); err != nil {
		subject = nil // crypto/x509 has parsed it before
	}
	// What RFC 4514 section 2.4 escapes needs no other escapes here.
	out = append(appendVisible(append(out, `;Subject="`...), subject.String()), `";URI=`...)
	if len(leaf.URIs) > 0 {
		out = appendCertValue(out, leaf.URIs[0].String())
	}
	for _, name := range leaf.DNSNames {
		out = appendCertValue(append(out, ";DNS="...), name)
	}
	return out
}

// appendCertValue appends a value, in quotes if it has what separates keys, values and elements: a client that can
// choose the names in its certificate must not forge another one's element.
func appendCertValue(dst []byte, s string) []byte {
	special := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`,;="\`, r) }
	if !strings.ContainsFunc(s, special) {
		return append(dst, s...)
	}
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s)
	return append(appendVisible(append(dst, '"'), s), '"')
}

// appendVisible appends a text with the bytes that a field's value must not have, or that are not ASCII, as \XX.
func appendVisible(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f {
			dst = fmt.Appendf(dst, `\%02X`, c)
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}
