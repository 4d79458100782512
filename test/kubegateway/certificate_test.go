package kubegateway

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
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

// trusting is the configuration of a client that believes in some certificates.
func trusting(roots ...issued) *tls.Config {
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c.cert)
	}
	return &tls.Config{RootCAs: pool, ServerName: "secure.example"}
}

// encrypted is a client that makes a connection for each request.
func (r *rig) encrypted(roots ...issued) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: trusting(roots...), DialContext: r.Dial}, Timeout: patience}
}

// kept opens a connection for each worker of a load, and sends requests on these alone: net/http's own pool makes new ones
// for reasons of its own, and repeats requests of those that end.
func (r *rig) kept(host string, roots ...issued) func() (answer, error) {
	idle := make(chan *kept, workers)
	for range workers {
		plain, err := r.Dial(r.Context(), "tcp", host+":443")
		if err != nil {
			r.Broken(err)
		}
		r.Cleanup(func() { _ = plain.Close() })
		c := tls.Client(plain, trusting(roots...))
		if err := c.HandshakeContext(r.Context()); err != nil {
			r.Broken(err)
		}
		idle <- &kept{c: c, in: bufio.NewReader(c)}
	}
	return func() (answer, error) {
		k := <-idle
		defer func() { idle <- k }()
		if k.end != nil {
			return answer{}, k.end
		}
		a, err := k.send()
		if err != nil {
			k.end = fmt.Errorf("the connection from %s was lost at %s: %w", k.c.LocalAddr(), time.Now().Format(time.StampMilli), err)
		}
		return a, k.end
	}
}

// kept is a connection that stays open.
type kept struct {
	c   net.Conn
	in  *bufio.Reader
	end error // why it did not
}

func (k *kept) send() (answer, error) {
	if err := k.c.SetDeadline(time.Now().Add(patience)); err != nil {
		return answer{}, err
	}
	if _, err := io.WriteString(k.c, "GET / HTTP/1.1\r\nHost: secure.example\r\n\r\n"); err != nil {
		return answer{}, err
	}
	response, err := http.ReadResponse(k.in, nil)
	if err != nil {
		return answer{}, err
	}
	if response.Close {
		return answer{}, fmt.Errorf("the answer %s announces its end", response.Status)
	}
	return read(response)
}

// certificates: a certificate is rotated under load, and a listener without one is closed alone, until it has one.
func (r *rig) certificates() {
	first, second, late, far := r.issue("secure.example", 1), r.issue("secure.example", 2), r.issue("secure.example", 3), r.issue("secure.example", 4)
	r.Put(secret("edge", "good", first.chain, first.key))
	r.Put(secure)
	var host string
	r.Step("deploy a gateway with certificates", func() { host = strings.Replace(r.address("secure"), "http:", "https:", 1) })
	fresh := r.encrypted(first, second, late, far)
	at := func(port int) error {
		a, err := get(fresh, fmt.Sprintf("%s:%d", host, port), "secure.example", "/")
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

	l := r.begin("kept connections", r.kept(strings.TrimPrefix(host, "https://"), first))
	n := r.begin("new connections", func() (answer, error) { return get(fresh, host, "secure.example", "/") })
	all := func(step string, do func()) { l.survives(r, step, func() { n.survives(r, step, do) }) }
	all("rotate the certificate", func() {
		r.Put(secret("edge", "good", second.chain, second.key))
		r.Await("new connections see it", func() string {
			response, err := r.encrypted(first, second).Get(host)
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
