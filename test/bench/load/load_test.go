package load

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary serves instead of testing where this variable is set: see serving.
const serveVariable = "LATEEN_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveVariable) == "" {
		os.Exit(m.Run())
	}
	var services []Service
	err := json.NewDecoder(os.Stdin).Decode(&services)
	if err == nil {
		err = Serve(services, func(ports []netip.AddrPort) error { return json.NewEncoder(os.Stdout).Encode(ports) })
	}
	_, _ = os.Stderr.WriteString(err.Error())
	os.Exit(1)
}

// serving runs services in a process of its own until the test ends.
func serving(t *testing.T, services ...Service) ([]netip.AddrPort, int) {
	t.Helper()
	text, err := json.Marshal(services)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serveVariable+"=1")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var ports []netip.AddrPort
	if err := json.NewDecoder(out).Decode(&ports); err != nil {
		t.Fatal(err)
	}
	return ports, cmd.Process.Pid
}

// TestLoads makes each kind of load on the service that answers it.
func TestLoads(t *testing.T) {
	ports, pid := serving(t, Service{Kind: ServeHTTP1, Size: 1000}, Service{Kind: ServeHTTP1, Size: 300_000}, Service{Kind: ServeGRPC, Size: 1000},
		Service{Kind: ServeGRPC, Size: 3_000_000}, Service{Kind: ServeStream, Size: 1000}, Service{Kind: ServeEcho}, Service{Kind: ServeSource})
	tests := []struct {
		name    string
		service int
		job     Job
		least   uint64
	}{
		{"small bodies", 0, Job{Kind: HTTP1, Connections: 8, Size: 1000}, 8},
		{"large bodies", 1, Job{Kind: HTTP1, Connections: 8, Size: 300_000}, 8},
		{"gRPC", 2, Job{Kind: GRPC, Connections: 4, Streams: 8, Size: 1000}, 32},
		{"gRPC beyond all windows", 3, Job{Kind: GRPC, Connections: 2, Streams: 4, Size: 3_000_000}, 8},
		{"more messages than fit into one stream", 4, Job{Kind: Stream, Connections: 2, Streams: 2, Size: 1000}, 3 * perStream},
		{"echo", 5, Job{Kind: Ping, Connections: 8, Size: 1000}, 8},
		{"large echo", 5, Job{Kind: Ping, Connections: 2, Size: 3_000_000}, 2},
		{"connections", 5, Job{Kind: Connect, Connections: 4, Size: 100}, 8},
		{"bulk", 6, Job{Kind: Bulk, Connections: 2}, 1 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			job := tt.job
			job.Target, job.PIDs = ports[tt.service], []int{pid}
			job.Warm, job.For = 10*time.Millisecond, 100*time.Millisecond
			got, err := enough(job, tt.least)
			if err != nil {
				t.Fatal(err)
			}
			if got.Operations < tt.least || got.CPU <= 0 || got.Own <= 0 || got.Elapsed < job.For {
				t.Errorf("%+v", got)
			}
			if tt.job.Kind != Bulk && (got.P50 <= 0 || got.P50 > got.P99 || got.P99 > got.P999) {
				t.Errorf("latencies %v %v %v", got.P50, got.P99, got.P999)
			}
		})
	}
}

// enough makes load for longer and longer, until there are as many operations: the machine may be busy.
func enough(job Job, least uint64) (Result, error) {
	for {
		got, err := Run(job)
		if err == nil && got.Operations >= least || err != nil && !errors.Is(err, errIdle) || job.For > 20*time.Second {
			return got, err
		}
		job.For *= 2
	}
}

// TestRate counts from when an operation was due, so that a service that is too slow is not measured at its own pace.
func TestRate(t *testing.T) {
	ports, pid := serving(t, Service{Kind: ServeHTTP1, Size: 100})
	job := Job{
		Kind: HTTP1, Target: ports[0], Connections: 4, Size: 100, Rate: 200, Warm: 10 * time.Millisecond, For: time.Second, PIDs: []int{pid},
	}
	// A machine that is busy for a second may be so at the wrong moment; it is not for ever.
	untilSo := func(so func(Result) bool) (got Result) {
		t.Helper()
		for job.For = time.Second; job.For < 20*time.Second; job.For *= 2 {
			var err error
			if got, err = Run(job); err != nil && !errors.Is(err, errIdle) {
				t.Fatal(err)
			}
			if err == nil && so(got) {
				return got
			}
		}
		t.Errorf("at a rate of %g: %+v", job.Rate, got)
		return got
	}
	untilSo(func(got Result) bool {
		want := job.Rate * got.Elapsed.Seconds()
		return float64(got.Operations) > want/2 && float64(got.Operations) < want*3/2
	})
	job.Rate, job.Connections = 5e6, 1 // nobody can keep up with it
	untilSo(func(got Result) bool { return got.Late > 0 && got.P50 > 100*time.Millisecond })
}

// TestWrong has answers that are not what is expected: each must end the run.
func TestWrong(t *testing.T) {
	ports, pid := serving(t, Service{Kind: ServeHTTP1, Size: 100}, Service{Kind: ServeGRPC, Size: 100}, Service{Kind: ServeEcho})
	tests := []struct {
		name string
		job  Job
		want string
	}{
		{"length", Job{Kind: HTTP1, Target: ports[0], Connections: 1, Size: 101}, "a body of 100 bytes, want 101"},
		{"length of a message", Job{Kind: GRPC, Target: ports[1], Connections: 1, Streams: 1, Size: 101}, "after 105 bytes, want 106"},
		{"not HTTP", Job{Kind: HTTP1, Target: ports[2], Connections: 1, Size: 100}, "the answer is"},
		{"nobody there", Job{Kind: HTTP1, Target: netip.MustParseAddrPort("127.0.0.1:1"), Connections: 1}, "refused"},
		{"no rate", Job{Kind: GRPC, Target: ports[1], Connections: 1, Streams: 1, Rate: 1}, "has no rate"},
		{"unknown", Job{Kind: "x", Target: ports[0], Connections: 1}, "not known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.job.For, tt.job.PIDs = 5*time.Second, []int{pid}
			if _, err := Run(tt.job); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestTLS makes load over TLS on a server of the standard library.
func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) != 1 || r.TLS.NegotiatedProtocol != "http/1.1" {
			w.WriteHeader(http.StatusForbidden)
		}
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(Body(100_000))
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	cert := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	got, err := enough(Job{
		Kind: HTTP1, Target: netip.MustParseAddrPort(s.Listener.Addr().String()), Connections: 4, Size: 100_000, For: 300 * time.Millisecond,
		PIDs: []int{os.Getpid()},
		TLS: &TLS{
			Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
			Key:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), Protocols: []string{"http/1.1"},
		},
	}, 4)
	if err != nil || got.Operations < 4 {
		t.Errorf("%+v %v", got, err)
	}
}

// TestHold leaves connections idle, each used once.
func TestHold(t *testing.T) {
	ports, pid := serving(t, Service{Kind: ServeHTTP1, Size: 100})
	got, err := Run(Job{Kind: Hold, Target: ports[0], Connections: 100, Size: 100, For: 10 * time.Millisecond, PIDs: []int{pid}})
	if err != nil || got.Operations != 100 || got.Memory < 1<<20 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := range int64(10_000) {
		h.add(i * 1000)
	}
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999} {
		want := q * 10_000 * 1000
		if got := h.quantile(q); got < want*0.98 || got > want*1.02 {
			t.Errorf("quantile %g is %g, want %g", q, got, want)
		}
	}
	if got := (&histogram{}).quantile(0.5); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
	for _, v := range []uint64{0, 1, 63, 64, 127, 128, 1 << 40, 1<<63 - 1} {
		if got := value(bucket(v)); got < float64(v)*0.98 || got > float64(v)*1.02 {
			t.Errorf("%d is kept as %g", v, got)
		}
	}
}

func TestProcesses(t *testing.T) {
	_, pid := serving(t, Service{Kind: ServeEcho})
	if tree := Tree(os.Getpid()); tree[0] != os.Getpid() || !slices.Contains(tree, pid) {
		t.Errorf("%v has no %d", tree, pid)
	}
	if pss, anonymous, err := PSS([]int{pid}); err != nil || pss < 1<<20 || anonymous <= 0 || anonymous > pss {
		t.Errorf("%d %d %v", pss, anonymous, err)
	}
	if _, err := CPU([]int{1 << 30}); err == nil {
		t.Error("a process that does not exist has CPU time")
	}
}

func FuzzBodyLength(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 12"))
	f.Add([]byte("HTTP/1.1 200 OK\r\ncontent-length:\t7 \r\nx: y"))
	f.Fuzz(func(t *testing.T, head []byte) {
		if n, err := bodyLength(head); err == nil && !bytes.Contains(bytes.ToLower(head), []byte("content-length:")) {
			t.Errorf("length %d out of %q", n, head)
		}
	})
}

// FuzzHTTP2 feeds both ends of a connection that is not one.
func FuzzHTTP2(f *testing.F) {
	settings := appendHead(nil, 0, frameSettings, 0, 0)
	f.Add(settings)
	f.Add(append(append([]byte(preface), settings...), appendHead(nil, 0, frameHeaders, flagEndHeaders|flagEndStream, 1)...))
	f.Add(appendHead(settings, 0, frameGoAway, 0, 0))
	f.Fuzz(func(_ *testing.T, p []byte) {
		server := newHTTP2Server(Message(10), false)
		server.start(&conn{loop: &loop{}}, false)
		_ = server.http2.read(p)
		client := newHTTP2Client(&run{loop: &loop{}, job: Job{Kind: GRPC, Streams: 1}, active: map[*timing]struct{}{}})
		client.start(&conn{loop: &loop{}}, true)
		_ = client.http2.read(p)
	})
}
