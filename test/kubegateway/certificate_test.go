package kubegateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// issued is a certificate, as a Secret has it.
type issued struct {
	chain, key []byte
	cert       *x509.Certificate
}

// issue makes a certificate of its own for a host.
func (r *rig) issue(host string, serial int64) issued {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		r.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		r.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		r.Fatal(err)
	}
	return issued{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), cert,
	}
}

// secret writes a Secret of type kubernetes.io/tls.
func secret(namespace, name string, chain, key []byte) string {
	code := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("{apiVersion: v1, kind: Secret, type: kubernetes.io/tls, metadata: {name: %s, namespace: %s}, data: {tls.crt: %q, tls.key: %q}}",
		name, namespace, code(chain), code(key))
}

const secure = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: secure, namespace: edge}
spec:
  gatewayClassName: lateen
  listeners:
  - {name: good, port: 443, protocol: HTTPS, hostname: secure.example, tls: {certificateRefs: [{name: good}]}, allowedRoutes: {namespaces: {from: All}}}
  - {name: late, port: 8443, protocol: HTTPS, hostname: secure.example, tls: {certificateRefs: [{name: late}]}, allowedRoutes: {namespaces: {from: All}}}
  - {name: far, port: 9443, protocol: HTTPS, hostname: secure.example, tls: {certificateRefs: [{name: far, namespace: keys}]}, allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secure, namespace: shop}
spec:
  parentRefs: [{name: secure, namespace: edge}]
  hostnames: [secure.example]
  rules: [{backendRefs: [{name: v1, port: 80}]}]
`

const grant = `
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: edge, namespace: keys}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}]
  to: [{group: "", kind: Secret, name: far}]
`

// encrypted is a client that believes in some certificates and counts its connections.
type encrypted struct {
	*http.Client
	connections atomic.Int64
}

func (r *rig) encrypted(keep bool, roots ...issued) *encrypted {
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c.cert)
	}
	e := &encrypted{}
	transport := &http.Transport{
		DisableKeepAlives: !keep, MaxIdleConnsPerHost: workers, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "secure.example"},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			e.connections.Add(1)
			return r.Dial(ctx, network, address)
		},
	}
	r.Cleanup(transport.CloseIdleConnections)
	e.Client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return e
}

// certificates: a certificate is rotated under load, and a listener without one is closed alone, until it has one.
func (r *rig) certificates() {
	first, second, late, far := r.issue("secure.example", 1), r.issue("secure.example", 2), r.issue("secure.example", 3), r.issue("secure.example", 4)
	r.Put(secret("edge", "good", first.chain, first.key))
	r.Put(secure)
	var host string
	r.Step("deploy a gateway with certificates", func() { host = strings.Replace(r.address("secure"), "http:", "https:", 1) })
	fresh := r.encrypted(false, first, second, late, far)
	at := func(port int) error {
		a, err := get(fresh.Client, fmt.Sprintf("%s:%d", host, port), "secure.example", "/")
		if err == nil && a.Status != http.StatusOK {
			err = fmt.Errorf("status %d", a.Status)
		}
		return err
	}
	opens := func(port int) { r.Helper(); r.Await("it answers", func() string { return text(at(port)) }) }
	closes := func(port int) {
		r.Helper()
		r.Await("it is closed", func() string {
			if at(port) == nil {
				return "it answers"
			}
			return ""
		})
	}
	opens(443)
	told := func(listener, condition, want string) {
		r.Helper()
		r.awaitField("edge", gateway+"secure", fmt.Sprintf(`{.status.listeners[?(@.name==%q)].conditions[?(@.type==%q)]['status','reason']}`, listener, condition), want)
	}
	told("good", "Programmed", "True Programmed")
	told("late", "ResolvedRefs", "False InvalidCertificateRef")
	told("late", "Programmed", "False Invalid")
	told("far", "ResolvedRefs", "False RefNotPermitted")
	closes(8443)
	closes(9443)

	kept := r.encrypted(true, first)
	sending := func(c *encrypted) func() (answer, error) {
		return func() (answer, error) { return get(c.Client, host, "secure.example", "/") }
	}
	l, n := r.begin("kept connections", sending(kept)), r.begin("new connections", sending(fresh))
	l.more(r)
	before := kept.connections.Load()
	all := func(step string, do func()) { l.survives(r, step, func() { n.survives(r, step, do) }) }
	all("rotate the certificate", func() {
		r.Put(secret("edge", "good", second.chain, second.key))
		r.Await("new connections see it", func() string {
			response, err := r.encrypted(false, first, second).Get(host)
			if err != nil {
				return err.Error()
			}
			defer response.Body.Close()
			if got := response.TLS.PeerCertificates[0].SerialNumber.Int64(); got != 2 {
				return fmt.Sprintf("the certificate is %d", got)
			}
			return ""
		})
	})
	if now := kept.connections.Load(); now != before {
		r.Errorf("of connections that were kept %d were made anew", now-before)
	}
	all("apply a Secret that was missing", func() { r.Put(secret("edge", "late", late.chain, late.key)); opens(8443) })
	told("late", "Programmed", "True Programmed")
	all("spoil that Secret", func() {
		r.Put(secret("edge", "late", late.chain, far.key))
		told("late", "ResolvedRefs", "False InvalidCertificateRef")
		closes(8443)
	})
	r.Put(secret("keys", "far", far.chain, far.key))
	all("permit a Secret of another namespace", func() { r.Put(grant); opens(9443) })
	told("far", "ResolvedRefs", "True ResolvedRefs")
	all("forbid it", func() {
		r.Do("delete", "-n", "keys", "referencegrant", "edge")
		told("far", "ResolvedRefs", "False RefNotPermitted")
		closes(9443)
	})
	l.end()
	n.end()
	r.Do("delete", "-n", "edge", gateway+"secure")
}
