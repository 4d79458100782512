package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/plan"
)

// selfSigned makes a certificate that is its own root.
func selfSigned(t *testing.T, c *x509.Certificate) (cert tls.Certificate, chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
	c.BasicConstraintsValid, c.IsCA, c.KeyUsage = true, true, x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	if cert, err = tls.X509KeyPair(chain, key); err != nil {
		t.Fatal(err)
	}
	return cert, chain, key
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestClientCertElement: what a certificate says cannot be mistaken for another element of the field.
func TestClientCertElement(t *testing.T) {
	tests := []struct {
		by   string
		cert x509.Certificate
		want string // after the hash
	}{
		{"spiffe://d/ns/a/sa/b", x509.Certificate{URIs: []*url.URL{mustURL(t, "spiffe://d/ns/x/sa/y")}}, `Subject="";URI=spiffe://d/ns/x/sa/y`},
		{"", x509.Certificate{}, `Subject="";URI=`},
		{
			"",
			x509.Certificate{Subject: pkix.Name{CommonName: `a";URI=spiffe://d/ns/x/sa/admin`, Organization: []string{"Ö, Inc.\n"}}},
			`Subject="CN=a\"\;URI=spiffe://d/ns/x/sa/admin,O=\C3\96\, Inc.\0A";URI=`,
		},
		{
			"",
			x509.Certificate{DNSNames: []string{"a.example", "b.example"}, URIs: []*url.URL{mustURL(t, "http://h/a,b;c=d"), mustURL(t, "http://second")}},
			`Subject="";URI="http://h/a,b;c=d";DNS=a.example;DNS=b.example`,
		},
		{"", x509.Certificate{DNSNames: []string{`a",By=x;URI=y\`, "b\r\n"}}, `Subject="";URI=;DNS="a\",By=x;URI=y\\";DNS="b\0D\0A"`},
	}
	for _, tt := range tests {
		der, _, _ := selfSigned(t, &tt.cert)
		sum := sha256.Sum256(der.Leaf.Raw)
		want := "Hash=" + hex.EncodeToString(sum[:]) + ";" + tt.want
		if tt.by != "" {
			want = "By=" + tt.by + ";" + want
		}
		if got := string(certElement(tt.by, der.Leaf, false)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestClientCertAtGateway: the field tells of an ordinary client certificate, and of nothing without one.
func TestClientCertAtGateway(t *testing.T) {
	_, serverChain, serverKey := selfSigned(t, &x509.Certificate{DNSNames: []string{"gw.example"}})
	client, clientChain, _ := selfSigned(t, &x509.Certificate{Subject: pkix.Name{CommonName: "cli", Organization: []string{"Org"}}, DNSNames: []string{"cli.example"}})
	seen := make(chan []string, 1)
	s := backend(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Values("X-Forwarded-Client-Cert") })
	element := string(certElement("", client.Leaf, true))
	block, _ := pem.Decode(clientChain)
	i, j := strings.Index(element, `Cert="`), strings.Index(element, `";Subject="CN=cli,O=Org";URI=;DNS=cli.example`)
	if i < 0 || j < i {
		t.Fatalf("element %q", element)
	}
	if text, err := url.PathUnescape(element[i+len(`Cert="`) : j]); err != nil || text != string(clientChain) || len(block.Bytes) == 0 {
		t.Fatalf("certificate %q, %v", text, err)
	}
	const mutual, optional = plan.TLSMutual, plan.TLSOptional
	tests := []struct {
		mode plan.TLSMode
		how  plan.ClientCert
		cert bool
		want string
	}{
		{mutual, plan.ClientCertSanitizeSet, true, element},
		{mutual, plan.ClientCertAppendForward, true, "forged,too," + element},
		{mutual, plan.ClientCertForward, true, "forged;too"},
		{mutual, plan.ClientCertSanitize, true, ""},
		{optional, plan.ClientCertSanitizeSet, true, element},
		{optional, plan.ClientCertSanitizeSet, false, ""},
		{optional, plan.ClientCertAppendForward, false, ""},
		{optional, plan.ClientCertForward, false, ""},
		{optional, plan.ClientCertLeave, false, "forged;too"},
	}
	for _, tt := range tests {
		r := startRig(t)
		r.openGateway(&plan.Chain{
			Name: "https", Protocol: plan.ProtocolHTTP, TLS: plan.ServerTLS{Mode: tt.mode, Secret: "s"}, HTTP: &plan.HTTP{ForwardClientCert: tt.how},
		}, plan.Telemetry{}, to("c"), append(cluster("c", s), &plan.Secret{Name: "s", Chain: serverChain, Key: serverKey, Roots: clientChain})...)
		cfg := &tls.Config{InsecureSkipVerify: true}
		if tt.cert {
			cfg.Certificates = []tls.Certificate{client}
		}
		tr := &http.Transport{TLSClientConfig: cfg}
		t.Cleanup(tr.CloseIdleConnections)
		res, body := fetch(t, &http.Client{Transport: tr, Timeout: patience},
			request(t, "GET", "https://"+r.addr+"/", nil, "X-Forwarded-Client-Cert", "forged", "X-Forwarded-Client-Cert", "too"))
		if res.StatusCode != 200 {
			t.Fatalf("%s, %s: %s %q", tt.mode, tt.how, res.Status, body)
		}
		if got := <-seen; tt.want != strings.Join(got, ";") {
			t.Errorf("%s, %s, certificate %v: %q, want %q", tt.mode, tt.how, tt.cert, got, tt.want)
		}
	}
}

// TestEnvoyHeaders: what Envoy adds to requests and responses by default, and what it takes from nobody outside.
func TestEnvoyHeaders(t *testing.T) {
	names := []string{"X-Envoy-Attempt-Count", "X-Envoy-Original-Path", "X-Envoy-Decorator-Operation", "X-Envoy-Retry-On", "X-Envoy-Max-Retries", "X-Envoy-Own"}
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		for _, n := range names {
			w.Header().Set("Saw-"+n, r.Header.Get(n))
		}
		w.Header().Set("X-Envoy-Upstream-Service-Time", "forged")
		w.Header().Set("X-Envoy-Decorator-Operation", "server's")
	})
	forged := []string{}
	for _, n := range names {
		forged = append(forged, n, "forged")
	}
	saw := func(res *http.Response) string {
		out := ""
		for _, n := range names {
			out += res.Header.Get("Saw-"+n) + "|"
		}
		return out
	}
	rewrite := func(p *plan.Rule) {
		p.Operation, p.Match.Path = "svc:80/*", plan.StringMatch{Kind: plan.MatchPrefix, Value: "/old"}
		p.Rewrite = &plan.Rewrite{Prefix: "/old", Path: "/new"}
	}
	// A gateway.
	r := newRig(t, to("c", rewrite), cluster("c", s)...)
	res, _ := r.get("/old/x?q", forged...)
	if got, want := saw(res), "1|/old/x?q||||forged|"; got != want {
		t.Errorf("gateway: %s, want %s", got, want)
	}
	if n, err := strconv.Atoi(res.Header.Get("X-Envoy-Upstream-Service-Time")); err != nil || n < 0 {
		t.Errorf("service time %q", res.Header.Values("X-Envoy-Upstream-Service-Time"))
	}
	if res.Header.Get("X-Envoy-Decorator-Operation") != "server's" {
		t.Error("the response was changed where no spans are made")
	}
	// A gateway that makes spans names them to the next proxy.
	r = startRig(t)
	r.openGateway(&plan.Chain{Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{}}, plan.Telemetry{Tracing: &plan.Tracing{Endpoint: "http://127.0.0.1:1"}},
		to("c", rewrite), cluster("c", s)...)
	res, _ = r.get("/old", forged...)
	if got, want := saw(res), "1|/old|svc:80/*|||forged|"; got != want || res.Header.Get("X-Envoy-Decorator-Operation") != "" {
		t.Errorf("with spans: %s, want %s; response %v", got, want, res.Header)
	}
	// A sidecar believes its peers: it counts no attempts, obeys orders, and passes on what else others have said.
	in := sidecar(t, nil, "server")
	at := in.inbound(s.Listener.Addr().String(), func(*plan.Chain) {})
	res, _ = fetch(t, webClient(t), request(t, "GET", "http://"+at+"/", nil, forged...))
	if got, want := saw(res), "forged|forged|forged|||forged|"; got != want || res.Header.Get("X-Envoy-Upstream-Service-Time") == "forged" {
		t.Errorf("inbound: %s, want %s; response %v", got, want, res.Header)
	}
}

// TestServiceTimeNeedsWholeRequest: an answer to half a request says nothing of how long the service took.
func TestServiceTimeNeedsWholeRequest(t *testing.T) {
	at := tcpServer(t, func(c *net.TCPConn) {
		_ = newRawServer(c)
		_, _ = io.WriteString(c, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	r := newRig(t, to("c"), &plan.Cluster{Name: "c", Protocol: plan.ProtocolHTTP}, &plan.Endpoints{Name: "c", Endpoints: []plan.Endpoint{endpointAt(at, "w")}})
	c := dialRaw(t, r.addr)
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	res, err := http.ReadResponse(c.in, nil)
	if err != nil || res.StatusCode != 401 || res.Header.Get("X-Envoy-Upstream-Service-Time") != "" {
		t.Errorf("%v %v", res, err)
	}
}

// TestRedirectHTTPS: the redirect to https keeps the authority as it was written, and believes the proxies in front of
// us, as far as there are any, that TLS was used before.
func TestRedirectHTTPS(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	tests := []struct {
		host, proto, want string
		hops              int
	}{
		{"Shop.example", "", "https://Shop.example/a?b=c", 0},
		{"shop.example:8080", "", "https://shop.example:8080/a?b=c", 0},
		{"shop.example", "https", "https://shop.example/a?b=c", 0},
		{"shop.example", "https", "", 1},
		{"shop.example", "http", "https://shop.example/a?b=c", 1},
	}
	for _, tt := range tests {
		r := startRig(t)
		route := to("c")
		route.Hosts[0].RequireTLS = true
		r.openGateway(&plan.Chain{Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{AppendForwardedFor: true, TrustedHops: tt.hops}}, plan.Telemetry{}, route, cluster("c", s)...)
		req := request(t, "GET", "http://"+r.addr+"/a?b=c", nil)
		req.Host = tt.host
		if tt.proto != "" {
			req.Header.Set("X-Forwarded-Proto", tt.proto)
		}
		res, _ := fetch(t, webClient(t), req)
		if status := map[bool]int{true: 200, false: 301}[tt.want == ""]; res.StatusCode != status || res.Header.Get("Location") != tt.want {
			t.Errorf("%v: %s %q", tt, res.Status, res.Header.Get("Location"))
		}
	}
}

// TestDelayIsNoTime: an injected delay is not part of the rule's timeout, also when the body comes during it.
func TestDelayIsNoTime(t *testing.T) {
	s := backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.Timeout, p.Fault = 3*time.Second, &plan.Fault{Delay: 3200 * time.Millisecond, DelayPercent: 100, AbortGRPC: -1}
	}), cluster("c", s)...)
	var group sync.WaitGroup
	for _, body := range []string{"", "abc"} {
		client, req := webClient(t), request(t, "POST", "http://"+r.addr+"/", strings.NewReader(body))
		group.Go(func() {
			if res, got := fetch(t, client, req); res.StatusCode != 200 || got != body {
				t.Errorf("body %q: %s %q", body, res.Status, got)
			}
		})
	}
	group.Wait()
}

// TestHashInputs: a cluster that balances by hash has its own inputs before the rule's; any other one has none, so that
// no cookie is made for it.
func TestHashInputs(t *testing.T) {
	session := time.Duration(0)
	cookie := func(name string) []plan.HashOn { return []plan.HashOn{{Cookie: name, CookieTTL: &session}} }
	for _, tt := range []struct {
		balance plan.Balance
		want    string
	}{
		{plan.Balance{}, ""},
		{plan.Balance{Algorithm: plan.RingHash}, "rule"},
		{plan.Balance{Algorithm: plan.Maglev, HashOn: cookie("cluster")}, "cluster"},
	} {
		s := backend(t, func(http.ResponseWriter, *http.Request) {})
		r := newRig(t, to("c", func(p *plan.Rule) { p.HashOn = cookie("rule") }), clusterOf(func(c *plan.Cluster) { c.Balance = tt.balance }, s)...)
		res, _ := r.get("/")
		if name, _, _ := strings.Cut(res.Header.Get("Set-Cookie"), "="); res.StatusCode != 200 || name != tt.want {
			t.Errorf("%s: %s, cookie %q, want %q", tt.balance.Algorithm, res.Status, name, tt.want)
		}
	}
}
