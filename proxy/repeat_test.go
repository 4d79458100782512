package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
)

// TestApplicationThatCloses: a request at which the application ends its connection each time is done twice at most, and once
// if its method is not idempotent or its route does not retry, however many endpoints there are and whatever proxies between
// would do by themselves.
func TestApplicationThatCloses(t *testing.T) {
	twice := &plan.Retry{Attempts: 5, On: istioRetry.On, AvoidPrevious: true}
	for _, tt := range []struct {
		method         string
		retry, between *plan.Retry
		kept           bool // the connections have served before
		done           int32
	}{
		{"GET", istioRetry, nil, true, 2},
		{"GET", istioRetry, nil, false, 2},
		{"GET", twice, nil, true, 2},
		{"GET", istioRetry, istioRetry, true, 2},
		{"GET", &plan.Retry{Attempts: 1, On: plan.OnConnectFailure}, nil, true, 1},
		{"GET", nil, nil, true, 1},
		{"GET", nil, nil, false, 1},
		{"DELETE", istioRetry, nil, true, 2},
		{"PUT", istioRetry, nil, true, 2},
		{"PUT", nil, nil, true, 1},
		{"POST", istioRetry, nil, true, 1},
		{"POST", istioRetry, istioRetry, false, 1},
		{"POST", &plan.Retry{Attempts: 2, On: plan.On5xx}, nil, true, 3}, // which orders it
	} {
		t.Run(fmt.Sprintf("%s by %+v, kept %v, between %v", tt.method, tt.retry, tt.kept, tt.between != nil), func(t *testing.T) {
			var done atomic.Int32
			app := tcpServer(t, func(c *net.TCPConn) {
				in := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						return
					}
					if r.URL.Path != "/fine" {
						done.Add(1)
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			a := authority(t)
			var servers []string
			for i := range 3 {
				servers = append(servers, sidecar(t, a, fmt.Sprint("server", i)).inbound(app, func(c *plan.Chain) {
					c.TLS.Mode = plan.TLSPermissive
					c.HTTP.Inline = to("app", func(r *plan.Rule) { r.Retry = tt.between })
				}))
			}
			client := sidecar(t, a, "client")
			at := client.outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
				chain.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = tt.retry })
				c.Balance.Algorithm = plan.RoundRobin
				c.TLS.Mode = plan.ClientTLSAuto
				for i := range e {
					e[i].MTLS = true
				}
			}, servers...)
			web := webClient(t)
			for range servers {
				if !tt.kept {
					break
				}
				if res, _ := fetch(t, web, request(t, "GET", "http://"+at+"/fine", nil)); res.StatusCode != 200 {
					t.Fatal(res.Status)
				}
			}
			var body io.Reader
			if tt.method == "POST" || tt.method == "PUT" {
				body = strings.NewReader("hello")
			}
			res, _ := fetch(t, web, request(t, tt.method, "http://"+at+"/poison", body))
			if why := res.Header.Get(reasonField); res.StatusCode != 503 || why != "upstream_closed" {
				t.Errorf("%s %q", res.Status, why)
			}
			if n := done.Load(); n != tt.done {
				t.Errorf("done %d times, want %d", n, tt.done)
			}
			done.Store(0)
			if res, _ := fetch(t, web, request(t, "GET", "http://"+servers[0]+"/poison", nil)); res.StatusCode != 503 || done.Load() > 2 || done.Load() > 1 && tt.between == nil {
				t.Errorf("for a client without a proxy: %s, done %d times", res.Status, done.Load())
			}
		})
	}
}

// TestRefusedByPolicy: what nobody has taken goes to as many endpoints as the route says, and to no other where it does not
// retry.
func TestRefusedByPolicy(t *testing.T) {
	for _, tt := range []struct {
		retry *plan.Retry
		asked uint64
	}{
		{istioRetry, 3},
		{&plan.Retry{Attempts: 1, On: plan.OnRefusedStream, AvoidPrevious: true}, 2},
		{&plan.Retry{Attempts: 3, On: plan.OnGatewayError, AvoidPrevious: true}, 4},
		{&plan.Retry{Attempts: 3, On: plan.OnConnectFailure, AvoidPrevious: true}, 1},
		{nil, 1},
	} {
		a := authority(t)
		var servers []*rig
		var addrs []string
		for i := range 5 {
			s := sidecar(t, a, fmt.Sprint("server", i))
			servers = append(servers, s)
			addrs = append(addrs, s.inbound(fmt.Sprintf("127.0.0.1:%d", freePort(t)), func(c *plan.Chain) { c.TLS.Mode = plan.TLSStrict }))
		}
		at := sidecar(t, a, "client").outbound(func(chain *plan.Chain, c *plan.Cluster, e []plan.Endpoint) {
			declared(chain, c, e)
			chain.HTTP.Inline = to("out", func(r *plan.Rule) { r.Retry = tt.retry })
			c.TLS.Mode = plan.ClientTLSAuto
			for i := range e {
				e[i].MTLS = true
			}
		}, addrs...)
		for _, method := range []string{"GET", "POST"} {
			before := asked(servers)
			res, _ := fetch(t, webClient(t), request(t, method, "http://"+at+"/", nil))
			if why := res.Header.Get(reasonField); res.StatusCode != 503 || why != "upstream_refused_stream" {
				t.Errorf("%s by %+v: %s %q", method, tt.retry, res.Status, why)
			}
			if n := asked(servers) - before; n != tt.asked {
				t.Errorf("%s by %+v: %d endpoints were asked, want %d", method, tt.retry, n, tt.asked)
			}
		}
	}
}

// asked is how many requests have come to proxies.
func asked(servers []*rig) (n uint64) {
	for _, s := range servers {
		s.onLoop(func(*worker) {}) // what is answered has been counted
		n += s.count()
	}
	return n
}
