package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/plan"
)

// TestSilentPeer: a peer that gives no sign of life gets no new requests at first, and is left then; what was under way is
// asked anew if it may be. So it is where the connection takes no new requests anyway.
func TestSilentPeer(t *testing.T) {
	for _, protocol := range []plan.Protocol{plan.ProtocolHTTP, plan.ProtocolHTTP2} {
		for _, retired := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, retired %v", protocol, retired), func(t *testing.T) { silentPeer(t, protocol, retired) })
		}
	}
}

func silentPeer(t *testing.T, protocol plan.Protocol, retired bool) {
	g := newGate()
	s := newSidecars(t, h2Backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/waits" {
			g.ServeHTTP(w, r)
		}
	}).Listener.Addr().String(), true, func(c *plan.Chain) { c.Protocol = plan.ProtocolAuto }, func(chain *plan.Chain, c *plan.Cluster) {
		c.Protocol = protocol
		retrying(chain, c)
	})
	client := webClient(t)
	if protocol == plan.ProtocolHTTP2 {
		client = h2PlainClient(t)
	}
	fetch(t, client, request(t, "GET", "http://"+s.at+"/", nil))
	var group sync.WaitGroup
	group.Go(func() {
		if res, body := fetch(t, client, request(t, "GET", "http://"+s.at+"/waits", nil)); body != "through" {
			t.Errorf("%s %q", res.Status, body)
		}
	})
	<-g.arrived
	of := func(w *worker) *upstream {
		for _, p := range w.pools {
			for _, u := range slices.Concat(p.multi, p.leaving) {
				return u
			}
		}
		return nil
	}
	if retired {
		s.client.onLoop(func(w *worker) { of(w).retire() })
	}
	var asked time.Time
	ask := func() {
		s.client.onLoop(func(w *worker) {
			asked = w.loop.Now().Add(silenceAsk)
			w.sweepPools(asked)
			w.sweepPools(asked.Add(silenceDoubt))
			if u := of(w); u.free() || !u.silence.doubted || !u.pool.t.ep.IsLost(asked) {
				t.Error("the silent one is not doubted")
			}
			w.sweepPools(asked.Add(silenceStill - time.Millisecond))
			if of(w) == nil {
				t.Error("left too early")
			}
		})
	}
	s.server.onLoop(func(*worker) { ask() }) // which can answer nothing meanwhile
	s.client.await("the answer to be heard", func(w *worker) bool { return !of(w).silence.doubted && !of(w).pool.t.ep.IsLost(asked) })
	s.server.onLoop(func(*worker) {
		ask()
		s.client.onLoop(func(w *worker) { w.sweepPools(asked.Add(silenceStill)) })
		s.client.await("the connection to be given up", func(w *worker) bool { return of(w) == nil })
	})
	<-g.arrived
	close(g.open)
	group.Wait()
}

// deaf is an address at which nobody answers: a listener whose queue is full.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	for range 8 {
		c, err := net.DialTimeout("tcp", at, 3*time.Second)
		if err != nil {
			return at
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("a full queue of connections does not refuse more of them here")
	return ""
}

// TestDeafEndpoint: whoever waits for an endpoint that does not answer goes elsewhere, long before the time to connect is
// over, and all others do from the start.
func TestDeafEndpoint(t *testing.T) {
	var mu sync.Mutex
	attempts := map[string]int{}
	s := backend(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		attempts[r.Header.Get("X-Envoy-Attempt-Count")]++
		mu.Unlock()
		echoBody(w, r)
	})
	resources := clusterOf(func(c *plan.Cluster) {
		c.Balance.Algorithm, c.ConnectTimeout = plan.RoundRobin, time.Hour
	}, s)
	e := resources[1].(*plan.Endpoints)
	e.Endpoints = append(e.Endpoints, plan.Endpoint{Address: netip.MustParseAddrPort(deaf(t))})
	r := newRig(t, to("c", func(p *plan.Rule) {
		p.Retry = &plan.Retry{Attempts: 2, On: plan.OnConnectFailure, AvoidPrevious: true}
	}), resources...)
	client := webClient(t)
	for range 40 {
		if res, body := fetch(t, client, request(t, "POST", "http://"+r.addr+"/", strings.NewReader("hello"))); body != "hello" {
			t.Fatalf("%s %q", res.Status, body)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if attempts["1"]+attempts["2"] != 40 || attempts["2"] == 0 || attempts["2"] > 10 {
		t.Errorf("requests by attempts: %v", attempts)
	}
	r.released("c")
}

// TestDeafRelay: bytes go elsewhere, too.
func TestDeafRelay(t *testing.T) {
	addr := tcpServer(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "hi") })
	r := sidecar(t, nil, "web")
	at := r.outbound(func(c *plan.Chain, cl *plan.Cluster, e []plan.Endpoint) {
		bytesOnly(c, cl, e)
		cl.ConnectTimeout = time.Hour
	}, deaf(t), addr)
	for range 20 {
		c := dialRaw(t, at)
		c.expect("hi")
		_ = c.Close()
	}
	r.await("the connections given back", func(w *worker) bool { return r.usage("out").Connections == 0 })
}

// TestSentIsNotRepeated: of a connection that ends unanswered nobody knows what was done, so that only what may be done
// twice is asked anew, unless the route orders otherwise.
func TestSentIsNotRepeated(t *testing.T) {
	for _, tt := range []struct {
		method, want string
		on           plan.RetryOn
	}{
		{"GET", "200 2", plan.OnConnectFailure | plan.OnRefusedStream | plan.OnResetBeforeRequest},
		{"POST", "503 1", plan.OnConnectFailure | plan.OnRefusedStream | plan.OnResetBeforeRequest},
		{"POST", "200 2", plan.OnReset},
	} {
		var asked atomic.Int32
		addr := tcpServer(t, func(c *net.TCPConn) {
			in := make([]byte, 4096)
			for {
				n, err := c.Read(in)
				if err != nil {
					return
				}
				if strings.Contains(string(in[:n]), "/twice") {
					if asked.Add(1) == 1 {
						return
					}
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		r := newRig(t, to("c", func(p *plan.Rule) { p.Retry = &plan.Retry{Attempts: 2, On: tt.on} }),
			&plan.Cluster{Name: "c", Protocol: plan.ProtocolHTTP}, &plan.Endpoints{Name: "c", Endpoints: []plan.Endpoint{{Address: netip.MustParseAddrPort(addr)}}})
		r.get("/once")
		res, _ := fetch(t, webClient(t), request(t, tt.method, "http://"+r.addr+"/twice", nil))
		if got := fmt.Sprint(res.StatusCode, " ", asked.Load()); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.method, got, tt.want)
		}
	}
}
