package metrics

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/telemetry"
)

var (
	productPage = telemetry.Peer{Workload: "productpage-v1", Namespace: "default", App: "productpage", Version: "v1"}
	reviews     = telemetry.Peer{Workload: "reviews-v1", Namespace: "default", App: "reviews", Version: "v1"}
	reviewsHost = telemetry.Service{Host: "reviews.default.svc.cluster.local", Name: "reviews", Namespace: "default"}
)

func request(code uint16) telemetry.RequestKey {
	return telemetry.RequestKey{
		Source: productPage.Ref(), Destination: reviews.Ref(), Service: reviewsHost.Ref(), Code: code,
		Reporter: telemetry.ReporterDestination, Security: telemetry.SecurityMutualTLS,
	}
}

func tcp() telemetry.TCPKey {
	return telemetry.TCPKey{Source: productPage.Ref(), Destination: reviews.Ref(), Security: telemetry.SecurityNone}
}

// counts maps statuses to numbers of requests.
func counts(s *Snapshot) map[uint16]uint64 {
	m := map[uint16]uint64{}
	for _, r := range s.Requests {
		m[r.Key.Code] += r.Duration.Count()
	}
	return m
}

func TestRequest(t *testing.T) {
	r := New(Config{})
	a, b := r.NewShard(), r.NewShard()
	a.Request(request(200), 3*time.Millisecond, 100, 2000)
	a.Request(request(200), 30*time.Millisecond, 0, 50)
	b.Request(request(200), 3500*time.Microsecond, 7, 1)
	b.Request(request(503), -time.Second, 0, 0)

	snap := r.Snapshot()
	if diff := cmp.Diff(map[uint16]uint64{200: 3, 503: 1}, counts(snap)); diff != "" {
		t.Fatal(diff)
	}
	for _, s := range snap.Requests {
		if s.Key.Code != 200 {
			continue
		}
		want := RequestSeries{
			Key:      request(200),
			Duration: Histogram{Sum: 36.5}, Received: Histogram{Sum: 107}, Sent: Histogram{Sum: 2051},
		}
		want.Duration.Buckets[2], want.Duration.Buckets[5] = 2, 1
		want.Received.Buckets[0], want.Received.Buckets[3], want.Received.Buckets[6] = 1, 1, 1
		want.Sent.Buckets[1], want.Sent.Buckets[5], want.Sent.Buckets[10] = 1, 1, 1
		if s != want {
			t.Errorf("got  %+v\nwant %+v", s, want)
		}
	}
}

func TestEdges(t *testing.T) {
	r := New(Config{})
	s := r.NewShard()
	k := request(200)
	for range 97 {
		s.Request(k, 2*time.Millisecond, 1, 1)
	}
	k.Code, k.Security = 404, telemetry.SecurityNone
	s.Request(k, 2*time.Millisecond, 1, 1)
	k.Code, k.Protocol, k.GRPC = 200, telemetry.ProtocolGRPC, telemetry.GRPCCode(14)
	s.Request(k, 900*time.Millisecond, 1, 1)
	k.Code, k.GRPC = 0, telemetry.NoGRPCStatus
	s.Request(k, 900*time.Millisecond, 1, 1)
	s.Messages(k.Edge(), 3, 4)
	s.Opened(tcp())
	s.Opened(tcp())
	s.Transferred(tcp(), 10, 20)
	s.Closed(tcp())

	edges := r.Snapshot().Edges()
	if len(edges) != 2 {
		t.Fatalf("%d edges, want one of HTTP and one of TCP: %+v", len(edges), edges)
	}
	web, raw := edges[1], edges[0]
	if web.Reporter != telemetry.ReporterDestination {
		web, raw = raw, web
	}
	if p50, p99 := web.Latency.Quantile(0.5), web.Latency.Quantile(0.99); (p50-2*time.Millisecond).Abs() > 2*time.Millisecond/16 || p99 < 800*time.Millisecond {
		t.Errorf("p50 %v, p99 %v", p50, p99)
	}
	web.Latency = Latency{}
	want := Edge{
		Source: productPage, Destination: reviews, Service: reviewsHost, Reporter: telemetry.ReporterDestination,
		Requests: 100, Failures: 2, RequestMessages: 3, ResponseMessages: 4, MutualTLS: 97, Plain: 3,
	}
	if diff := cmp.Diff(want, web); diff != "" {
		t.Error(diff)
	}
	want = Edge{Source: productPage, Destination: reviews, Opened: 2, Closed: 1, Sent: 10, Received: 20, Plain: 2}
	if diff := cmp.Diff(want, raw); diff != "" {
		t.Error(diff)
	}
}

func TestHotPathAllocations(t *testing.T) {
	r := New(Config{SeriesMax: 4})
	s := r.NewShard()
	ok, failure, conn := request(200), request(503), tcp()
	edge := ok.Edge()
	observe := func() {
		s.Request(ok, time.Millisecond, 10, 20)
		s.Request(failure, time.Millisecond, 10, 20)
		s.Messages(edge, 1, 1)
		s.Opened(conn)
		s.Transferred(conn, 1, 1)
		s.Closed(conn)
	}
	if n := testing.AllocsPerRun(1000, observe); n != 0 { // the first, unmeasured run makes the series
		t.Errorf("counting allocates %v times, want 0", n)
	}
	code := uint16(0)
	overflow := func() {
		code++
		s.Request(request(600+code%99), time.Millisecond, 1, 1)
	}
	for range 100 {
		overflow()
	}
	if n := testing.AllocsPerRun(1000, overflow); n != 0 {
		t.Errorf("counting beyond the limit allocates %v times, want 0", n)
	}
}

func TestCardinalityLimit(t *testing.T) {
	const limit = 10
	r := New(Config{SeriesMax: limit})
	s := r.NewShard()
	for i := range 1000 {
		k := request(200)
		k.Source = telemetry.Peer{Workload: fmt.Sprintf("w%d", i)}.Ref()
		s.Request(k, time.Millisecond, 1, 1)
		k.Code = 503
		s.Request(k, time.Millisecond, 1, 1)
	}
	snap := r.Snapshot()
	if diff := cmp.Diff(map[uint16]uint64{200: 1000 - limit/2, 500: 1000 - limit/2, 0: 0}, otherCounts(snap)); diff != "" {
		t.Errorf("counted under other:\n%s", diff)
	}
	// Two series of others per kind of status class, and an edge limit of a quarter, two of which are left over for edges.
	if len(snap.Requests) != limit+2 || len(snap.Peers) != limit/edgeShare+1 {
		t.Errorf("%d series and %d edges", len(snap.Requests), len(snap.Peers))
	}
	if want := uint64(2000 - limit + 2000 - 2*(limit/edgeShare)); snap.Overflows != want {
		t.Errorf("%d overflows, want %d", snap.Overflows, want)
	}
	var total uint64
	for _, n := range counts(snap) {
		total += n
	}
	if total != 2000 {
		t.Errorf("%d requests in all, want 2000", total)
	}
}

func otherCounts(s *Snapshot) map[uint16]uint64 {
	m := map[uint16]uint64{0: 0}
	for _, r := range s.Requests {
		if r.Key.Source.Peer().Workload == telemetry.Other {
			m[r.Key.Code] += r.Duration.Count()
		}
	}
	return m
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{IdleAfter: 10 * time.Minute})
		a, b := r.NewShard(), r.NewShard()
		a.Request(request(200), time.Millisecond, 1, 1)
		a.Request(request(404), time.Millisecond, 1, 1)
		b.Request(request(200), time.Millisecond, 1, 1)
		a.Opened(tcp())
		expect := func(when string, want map[uint16]uint64) {
			t.Helper()
			if diff := cmp.Diff(want, counts(r.Snapshot())); diff != "" {
				t.Errorf("%s:\n%s", when, diff)
			}
		}
		expect("at first", map[uint16]uint64{200: 2, 404: 1})
		<-time.After(9 * time.Minute) // the bubble's clock
		b.Request(request(200), time.Millisecond, 1, 1)
		expect("while fresh", map[uint16]uint64{200: 3, 404: 1})
		<-time.After(9 * time.Minute)
		// The first shard has not used 200 for 18 minutes, but the second has: what the first counted must stay.
		expect("idle in one shard only", map[uint16]uint64{200: 3})
		if snap := r.Snapshot(); len(snap.TCP) != 0 {
			t.Errorf("the idle TCP series is still there: %+v", snap.TCP)
		}
		<-time.After(9 * time.Minute)
		expect("idle everywhere", map[uint16]uint64{})

		a.Request(request(200), time.Millisecond, 1, 1)
		a.Request(request(404), time.Millisecond, 1, 1)
		b.Request(request(200), time.Millisecond, 1, 1)
		a.Closed(tcp())
		expect("used again", map[uint16]uint64{200: 2, 404: 1})
		if len(a.requests.live) != 2 || a.requests.retired.Load() != 0 || len(a.tcp.live) != 1 {
			t.Errorf("the shard holds %d series, %d of them retired", len(a.requests.live), a.requests.retired.Load())
		}
	})
}

// TestExpiryFreesTheLimit: what expired must make room before anything is counted under other.
func TestExpiryFreesTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{SeriesMax: 4, IdleAfter: time.Minute})
		s := r.NewShard()
		for i := range uint16(4) {
			s.Request(request(200+i), time.Millisecond, 1, 1)
		}
		r.Snapshot()
		<-time.After(2 * time.Minute)
		r.Snapshot()
		s.Request(request(500), time.Millisecond, 1, 1)
		if snap := r.Snapshot(); snap.Overflows != 0 || len(s.requests.live) != 1 {
			t.Errorf("%d overflows, %d series", snap.Overflows, len(s.requests.live))
		}
	})
}

// TestRetireRace plays the two orders in which a use and a retirement can meet.
func TestRetireRace(t *testing.T) {
	var tab table[int]
	tab.init(1, 8, func(int) int { return -1 })
	tab.use(1)[0].Add(5)
	var m merger[int]
	drain(&m, &tab, time.Now())
	g := m.groups[1]
	g.entries[0].seen = g.entries[0].uses.Load()

	tab.use(1)[0].Add(1) // before the swap: the entry stays
	if g.retire() || tab.retired.Load() != 0 {
		t.Fatal("an entry that was used meanwhile was retired")
	}
	g.entries[0].seen = g.entries[0].uses.Load()
	if !g.retire() || g.base[0] != 6 {
		t.Fatalf("an idle entry stays, or its count of 6 became %v", g.base)
	}
	tab.use(1)[0].Add(1) // after the swap: a new entry
	drain(&m, &tab, time.Now())
	if g.base[0] != 6 || len(g.entries) != 1 || g.entries[0].cells[0].Load() != 1 {
		t.Errorf("the use after the retirement is not in a new entry: %v %v", g.base, g.entries)
	}
	var sum uint64
	m.gather(time.Now(), time.Hour, func(_ int, cells []uint64) { sum += cells[0] })
	if sum != 7 {
		t.Errorf("%d counted, want 7", sum)
	}
}

// TestScrapeWhileWriting: counters never go backwards and none is lost.
func TestScrapeWhileWriting(t *testing.T) {
	const loops, perLoop = 3, 20_000
	r := New(Config{SeriesMax: 64})
	var writers, scrapers sync.WaitGroup
	done := make(chan struct{})
	for range loops {
		s := r.NewShard()
		writers.Go(func() {
			for i := range uint16(perLoop) {
				s.Request(request(200+i%100), time.Duration(i)*time.Microsecond, 1, 1)
				s.Transferred(tcp(), 1, 2)
			}
		})
	}
	for range 2 {
		scrapers.Go(func() {
			last := map[uint16]uint64{}
			for {
				now := counts(r.Snapshot())
				for code, n := range last {
					if now[code] < n {
						t.Errorf("requests with status %d fell from %d to %d", code, n, now[code])
					}
				}
				last = now
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(done)
	scrapers.Wait()
	snap := r.Snapshot()
	var total, bytes uint64
	for _, n := range counts(snap) {
		total += n
	}
	for _, s := range snap.TCP {
		bytes += s.Sent + s.Received
	}
	if total != loops*perLoop || bytes != 3*loops*perLoop {
		t.Errorf("%d requests and %d bytes, want %d and %d", total, bytes, loops*perLoop, 3*loops*perLoop)
	}
}

func BenchmarkRequest(b *testing.B) {
	s := New(Config{}).NewShard()
	keys := [4]telemetry.RequestKey{request(200), request(404), request(503), request(201)}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		s.Request(keys[i&3], 2*time.Millisecond, 300, 1200)
		i++
	}
}

func BenchmarkRequestSameSeries(b *testing.B) {
	s := New(Config{}).NewShard()
	k := request(200)
	b.ReportAllocs()
	for b.Loop() {
		s.Request(k, 2*time.Millisecond, 300, 1200)
	}
}
