package envoy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
)

const reviewsHost = "reviews.default.svc.cluster.local"

// sidecarPlan is what a sidecar of productpage is ordered: to route reviews (10.9.0.7:9080) by a header, to guess what
// 10.9.0.8:7000 speaks, and to let only GETs in on the app's port.
func sidecarPlan(v1, v2, app netip.AddrPort) []plan.Resource {
	out := func(subset string) string { return "outbound|9080|" + subset + "|" + reviewsHost }
	service := plan.ServiceName{Host: reviewsHost, Name: "reviews", Namespace: "default"}
	logs := plan.Telemetry{AccessLogs: []plan.AccessLog{{Path: "/dev/null"}, {Path: "/dev/null", JSON: true, MinStatus: 400, ErrorsOnly: true}}}
	in := "inbound|" + strconv.Itoa(int(app.Port())) + "||"
	rest := plan.ClusterInboundPassthrough
	policy := &plan.Authz{Policies: []plan.Policy{
		{Name: "default/no-admin", Action: plan.ActionDeny, Rules: []plan.PolicyRule{{To: []plan.Operation{
			{Paths: []plan.StringMatch{{Kind: plan.MatchPrefix, Value: "/admin"}, {Kind: plan.MatchPath, Value: "/users/{*}/secret"}}},
		}}}},
		{Name: "default/gets", Action: plan.ActionAllow, Rules: []plan.PolicyRule{
			{To: []plan.Operation{{Methods: []plan.StringMatch{{Kind: plan.MatchExact, Value: "GET"}}, Ports: []uint16{app.Port()}}}},
			{From: []plan.Source{{Principals: []plan.StringMatch{{Kind: plan.MatchExact, Value: "cluster.local/ns/default/sa/friend"}}}}},
		}},
		{Name: "default/tried", Action: plan.ActionAllow, DryRun: true, Rules: []plan.PolicyRule{
			{From: []plan.Source{{Namespaces: []plan.StringMatch{{Kind: plan.MatchExact, Value: "prod"}}}}},
		}},
	}}
	inboundRoute := func(cluster string) *plan.HTTP {
		return &plan.HTTP{
			ServerName: "istio-envoy", ForwardClientCert: plan.ClientCertAppendForward, Inline: &plan.Route{Name: cluster, Hosts: []plan.VirtualHost{{
				Name: cluster, Domains: []string{"*"},
				Rules: []plan.Rule{{Name: "default", Clusters: []plan.WeightedCluster{{Cluster: cluster}}}},
			}}},
		}
	}
	list := []plan.Resource{
		&plan.Cluster{Name: plan.ClusterPassthrough, Discovery: plan.DiscoverOriginalDst, External: true},
		&plan.Cluster{Name: rest, Discovery: plan.DiscoverOriginalDst, BindSource: "127.0.0.6"},
		&plan.Cluster{Name: plan.ClusterBlackHole, Discovery: plan.DiscoverNothing},
		&plan.Cluster{Name: in, Discovery: plan.DiscoverOriginalDst, BindSource: "127.0.0.6"},
		&plan.Listener{Name: plan.ListenerInbound, Direction: plan.Inbound, Telemetry: logs, Chains: []plan.Chain{
			{
				Name: "app", Match: plan.ChainMatch{Ports: []uint16{app.Port()}}, TLS: plan.ServerTLS{Mode: plan.TLSPermissive}, Protocol: plan.ProtocolHTTP,
				HTTP: inboundRoute(in), TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: in}}}, Authz: policy,
			},
			{
				Name: "db", Match: plan.ChainMatch{Ports: []uint16{3306}}, TLS: plan.ServerTLS{Mode: plan.TLSStrict}, Protocol: plan.ProtocolTCP,
				TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: rest}}}, Authz: policy,
			},
			{
				Name: "other", TLS: plan.ServerTLS{Mode: plan.TLSPermissive}, HTTP: inboundRoute(rest),
				TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: rest}}}, Authz: policy,
			},
		}},
		&plan.Listener{Name: "10.9.0.7:9080", Telemetry: logs, Chains: []plan.Chain{{
			Name: reviewsHost, Protocol: plan.ProtocolHTTP, HTTP: &plan.HTTP{ByHost: true, Route: reviewsHost + ":9080"}, Service: service,
			TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: out("")}}},
		}}},
		&plan.Listener{Name: "10.9.0.8:7000", Chains: []plan.Chain{
			{
				Name: "default/sni", Match: plan.ChainMatch{SNI: []string{"v1.example.com", "*.v2.example.com"}}, Protocol: plan.ProtocolTLS,
				TLS: plan.ServerTLS{Mode: plan.TLSPassthrough}, TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: out("v1"), Weight: 9}, {Cluster: out("v2"), Weight: 1}}},
			},
			{
				Name: "default/tunnel", Match: plan.ChainMatch{SNI: []string{"tunnel.example.com"}}, Protocol: plan.ProtocolTLS,
				TLS: plan.ServerTLS{Mode: plan.TLSPassthrough},
				TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: out("v1")}}, Tunnel: &plan.Tunnel{Target: "tunnel.example.com:443", Post: true}},
			},
			{
				Name: "auto", HTTP: &plan.HTTP{ByHost: true},
				TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: out("v2")}}},
			},
		}},
		reviewsRoute(out, service),
	}
	for subset, at := range map[string]netip.AddrPort{"": v1, "v1": v1, "v2": v2} {
		list = append(list, reviewsCluster(out(subset), subset, service), &plan.Endpoints{Name: out(subset), Endpoints: []plan.Endpoint{
			{Address: at, Locality: "europe/west/a", Workload: plan.Workload{Name: "reviews", Namespace: "default", CanonicalName: "reviews"}},
			{Address: netip.MustParseAddrPort("10.9.1.1:9080"), MTLS: true, Health: plan.Draining, Identity: "spiffe://cluster.local/ns/default/sa/reviews"},
		}})
	}
	slices.SortStableFunc(list[len(list)-6:], func(a, b plan.Resource) int { return strings.Compare(a.ResourceName(), b.ResourceName()) })
	return list
}

func reviewsRoute(out func(string) string, service plan.ServiceName) *plan.Route {
	exact := func(s string) plan.StringMatch { return plan.StringMatch{Kind: plan.MatchExact, Value: s} }
	return &plan.Route{Name: reviewsHost + ":9080", Hosts: []plan.VirtualHost{{
		Name: reviewsHost + ":9080", Domains: []string{"reviews", "reviews:9080", reviewsHost, reviewsHost + ":9080"}, Service: service,
		Rules: []plan.Rule{
			{
				Name: "jason", Match: plan.RequestMatch{Headers: []plan.HeaderMatch{{Name: "end-user", Value: exact("jason")}}, Method: exact("GET")},
				Clusters: []plan.WeightedCluster{{Cluster: out("v2")}},
				Request: plan.HeaderEdits{
					Set: []plan.Header{{Name: "x-edited", Value: "by-envoy"}, {Name: "host", Value: "elsewhere"}}, Remove: []string{"end-user"},
				},
			},
			{
				Name: "old", Match: plan.RequestMatch{Path: plan.StringMatch{Kind: plan.MatchPrefix, Value: "/old/"}},
				Rewrite: &plan.Rewrite{Path: "/new/", Prefix: "/old/"}, Clusters: []plan.WeightedCluster{{Cluster: out("v1")}},
				Mirrors: []plan.Mirror{{Cluster: out("v2"), Percent: 0.5}},
				CORS: &plan.CORS{
					AllowOrigins: []plan.StringMatch{exact("https://shop.example.com")}, AllowMethods: []string{"GET", "POST"}, MaxAge: time.Hour,
				},
				HashOn: []plan.HashOn{{Header: "x-user"}, {SourceIP: true}},
			},
			{Name: "gone", Match: plan.RequestMatch{Path: exact("/gone")}, Direct: &plan.DirectResponse{Code: 410, Body: "gone for good"}},
			{
				Name: "moved", Match: plan.RequestMatch{Path: plan.StringMatch{Kind: plan.MatchPrefix, Value: "/moved"}},
				Redirect: &plan.Redirect{Authority: "new.example.com", Prefix: "/here", MatchedPrefix: "/moved", PortFromRequest: true, Code: 308},
			},
			{
				Name: "cut", Match: plan.RequestMatch{Query: []plan.HeaderMatch{{Name: "cut", Value: plan.StringMatch{Kind: plan.MatchPresent}}}},
				Clusters: []plan.WeightedCluster{{Cluster: out("v1")}},
				Fault:    &plan.Fault{AbortStatus: 418, AbortGRPC: -1, AbortPercent: 100, Delay: time.Millisecond, DelayPercent: 50},
			},
			{
				Name:     "split",
				Clusters: []plan.WeightedCluster{{Cluster: out("v1"), Weight: 100, Request: plan.HeaderEdits{Add: []plan.Header{{Name: "x-edited", Value: "100%%"}, {Name: "x-lone", Value: "5% over %PROTOCOL%"}}}}},
				Timeout:  20 * time.Second, Operation: reviewsHost + ":9080/*",
				Retry: &plan.Retry{
					Attempts: 2, On: plan.On5xx | plan.OnStatusCodes, StatusCodes: []int{503}, PerTryTimeout: 5 * time.Second,
					AvoidPrevious: true, Backoff: 10 * time.Millisecond,
				},
			},
		},
	}}}
}

func reviewsCluster(name, subset string, service plan.ServiceName) *plan.Cluster {
	c := &plan.Cluster{
		Name: name, Protocol: plan.ProtocolHTTP, Subset: subset, Service: service,
		TLS: plan.ClientTLS{
			Mode: plan.ClientTLSAuto, SNI: "outbound_.9080_." + subset + "_." + reviewsHost,
			Identities: []string{"spiffe://cluster.local/ns/default/sa/reviews"},
		},
		Limits: plan.Limits{Connections: 100, Requests: 50, RequestsPerConnection: 10, RetryBudget: 20, RetryBudgetMin: 3},
	}
	switch subset {
	case "v1":
		c.Balance = plan.Balance{Algorithm: plan.RingHash, RingSize: 2048, HashOn: []plan.HashOn{{Header: "x-user"}}}
		c.Outlier = &plan.Outlier{Consecutive5xx: 5, ConsecutiveGateway: 3, SplitLocal: true, ConsecutiveLocal: 5, MaxEjectionPercent: 50, MinHealthPercent: 30}
	case "v2":
		c.Balance = plan.Balance{Algorithm: plan.Maglev, RingSize: 65537, HashOn: []plan.HashOn{{Cookie: "user", CookieTTL: new(time.Duration)}}}
		c.TCPKeepalive = plan.Keepalive{Time: time.Minute, Interval: 10 * time.Second, Probes: 3}
	default:
		c.Balance.Warmup = time.Minute
	}
	return c
}

// TestSidecar runs a real Envoy as a sidecar, in both dialects of xDS, and sends requests out and in.
func TestSidecar(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			binary(t)
			v1, v2, app := backend(t, "v1"), backend(t, "v2"), backend(t, "app")
			mesh := authority(t)
			o := envoy.Options{OutboundPort: freePort(t), InboundPort: freePort(t), AgentSocket: serveSecrets(t, mesh, "productpage")}
			s, control := serve(t, paint(t, envoy.Sidecar, o, redirected, sidecarPlan(v1, v2, app)...))
			ask := start(t, "sidecar~127.0.0.1~productpage.default~default.svc.cluster.local", api, control)
			until(t, "the listeners", func() bool {
				return counters(ask, "listener_manager.total_listeners_active")["listener_manager.total_listeners_active"] == 4
			})
			if got := ask("/listeners"); !strings.Contains(got, "virtualInbound::") || !strings.Contains(got, "10.9.0.7_9080::") {
				t.Errorf("listeners:\n%s", got)
			}
			outboundRequests(t, o.OutboundPort)
			inboundRequests(t, o.InboundPort, app)
			meshRequests(t, o.InboundPort, app, mesh)
			passesThrough(t, o.OutboundPort, v2)
			accepted(t, ask)
			if refused, _ := refusals(s); len(refused) > 0 {
				t.Errorf("Envoy refused %v", refused)
			}
		})
	}
}

// exchange is a request, and what of its answer matters.
type exchange struct {
	method, url, user string
	status            int
	body              string // contained
}

func (x exchange) check(t *testing.T, c *http.Client) {
	t.Helper()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r, err := http.NewRequestWithContext(t.Context(), x.method, x.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if x.user != "" {
		r.Header.Set("end-user", x.user)
	}
	got, err := c.Do(r)
	if err != nil {
		t.Errorf("%s %s: %v", x.method, x.url, err)
		return
	}
	defer func() { _ = got.Body.Close() }()
	body, err := io.ReadAll(got.Body)
	text := string(body) + got.Header.Get("Location")
	if err != nil || got.StatusCode != x.status || !strings.Contains(text, x.body) {
		t.Errorf("%s %s: %d %q %v, want %d %q", x.method, x.url, got.StatusCode, text, err, x.status, x.body)
	}
}

func outboundRequests(t *testing.T, port uint16) {
	t.Helper()
	c := through(port, netip.MustParseAddrPort("10.9.0.7:9080"))
	for _, x := range []exchange{
		{"GET", "http://reviews:9080/a", "", 200, "v1 /a 100%"},
		{"GET", "http://reviews/a", "jason", 200, "v2 /a by-envoy"},
		{"POST", "http://reviews/a", "jason", 200, "v1 /a"},
		{"GET", "http://reviews/old/b", "", 200, "v1 /new/b"},
		{"GET", "http://reviews/gone", "", 410, "gone for good"},
		{"GET", "http://reviews/moved/x?y", "", 308, "http://new.example.com:9080/here/x?y"},
		{"GET", "http://reviews/a?cut=1", "", 418, ""},
		{"GET", "http://unheard.of/c", "", 200, "v1 /c"}, // to the service whose address it is
	} {
		x.check(t, c)
	}
	exchange{"GET", "http://detected/d", "", 200, "v2 /d"}.check(t, through(port, netip.MustParseAddrPort("10.9.0.8:7000")))
}

func inboundRequests(t *testing.T, port uint16, app netip.AddrPort) {
	t.Helper()
	c := through(port, app)
	for _, x := range []exchange{
		{"GET", "http://app/a", "", 200, "app /a"},
		{"POST", "http://app/a", "", 403, "RBAC: access denied"},
		{"GET", "http://app/admin", "", 403, ""},
		{"GET", "http://app/users/7/secret", "", 403, ""},
		{"GET", "http://app/users/7/8/secret", "", 200, ""},
	} {
		x.check(t, c)
	}
	// On a port that demands mTLS plaintext finds no chain: the connection ends without an answer.
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(conn, "PROXY TCP4 127.0.0.1 127.0.0.1 40000 3306\r\nplaintext, and enough of it to be looked at\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
		t.Errorf("plaintext on a strict port was answered %q", line)
	}
}

// meshRequests come from proxies of the mesh, in mTLS.
func meshRequests(t *testing.T, port uint16, app netip.AddrPort, mesh *ca.Authority) {
	t.Helper()
	for account, want := range map[string]int{"friend": 200, "stranger": 403} {
		c := through(port, app)
		tr := c.Transport.(*http.Transport)
		dial := tr.DialContext
		tr.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// The certificate names an identity and no host; this test is about whom the server lets in.
			s := tls.Client(conn, &tls.Config{
				InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate(t, mesh, account)}, NextProtos: []string{"istio-http/1.1", "istio"},
			})
			return s, s.HandshakeContext(ctx)
		}
		exchange{"POST", "https://app/a", "", want, ""}.check(t, c)
	}
}

// passesThrough sends a request to an address that the mesh does not know.
func passesThrough(t *testing.T, port uint16, at netip.AddrPort) {
	t.Helper()
	exchange{"GET", "http://anything/e", "", 200, "v2 /e"}.check(t, through(port, at))
}
