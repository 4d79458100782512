package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

// box is the message of the test service.
type box = wrapperspb.BytesValue

// grpcServer echoes messages of /test.Echo/*, one for one. "fail" ends the call with NotFound; "hang" tells hung that it has arrived,
// waits for the end of the call and tells how that came.
func grpcServer(t *testing.T, name string, hung chan<- error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		_ = s.SetHeader(metadata.Pairs("x-server", name))
		s.SetTrailer(metadata.Pairs("x-last", "word"))
		for {
			m := new(box)
			if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			switch string(m.Value) {
			case "fail":
				return status.Error(codes.NotFound, "100 % gone")
			case "hang":
				hung <- nil // it has the message
				<-s.Context().Done()
				hung <- s.Context().Err()
				return nil
			}
			if err := s.SendMsg(m); err != nil {
				return err
			}
		}
	}), grpc.MaxRecvMsgSize(8<<20))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func grpcClient(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func unary(ctx context.Context, c *grpc.ClientConn, in string, opts ...grpc.CallOption) (string, error) {
	out := new(box)
	err := c.Invoke(ctx, "/test.Echo/Unary", &box{Value: []byte(in)}, out, opts...)
	return string(out.Value), err
}

func grpcRig(t *testing.T, route *plan.Route, addrs ...string) *rig {
	t.Helper()
	c := clusterOf(speaks(plan.ProtocolGRPC))
	for i, a := range addrs {
		eps := c[1].(*plan.Endpoints)
		eps.Endpoints = append(eps.Endpoints, endpointAt(a, fmt.Sprintf("c-%d", i)))
	}
	return newRig(t, route, c...)
}

func TestGRPC(t *testing.T) {
	r := grpcRig(t, to("c"), grpcServer(t, "s", nil))
	c := grpcClient(t, r.addr)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var head, trail metadata.MD
	for _, n := range []int{0, 1, 100_000, 4 << 20} {
		in := strings.Repeat("x", n)
		out, err := unary(ctx, c, in, grpc.Header(&head), grpc.Trailer(&trail))
		if err != nil || out != in || head.Get("x-server")[0] != "s" || trail.Get("x-last")[0] != "word" {
			t.Fatalf("%d bytes: %d came back, %v, %v, %v", n, len(out), err, head, trail)
		}
	}
	_, err := unary(ctx, c, "fail", grpc.Trailer(&trail))
	if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != "100 % gone" || trail.Get("x-last")[0] != "word" {
		t.Errorf("%v, %v", err, trail)
	}
	// Both ways at once, a message answered before the next one is sent.
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Both")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		in := bytes.Repeat([]byte{byte(i)}, i*1000)
		if err := s.SendMsg(&box{Value: in}); err != nil {
			t.Fatal(err)
		}
		out := new(box)
		if err := s.RecvMsg(out); err != nil || !bytes.Equal(out.Value, in) {
			t.Fatalf("message %d: %d bytes, %v", i, len(out.Value), err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new(box)); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
	r.released("c")
	codesSeen := map[int]int{}
	for _, s := range r.series(6) {
		if s.Key.Protocol != telemetry.ProtocolGRPC || s.Key.Code != 200 {
			t.Errorf("series %v", s.Key.AppendValues(nil))
		}
		codesSeen[s.Key.GRPC.Code()] += int(s.Duration.Count())
	}
	if codesSeen[0] != 5 || codesSeen[5] != 1 || len(codesSeen) != 2 {
		t.Errorf("counted by gRPC status: %v, want 0: 5, 5: 1", codesSeen)
	}
}

// TestGRPCLocalAnswers: what the proxy answers by itself, a gRPC client understands.
func TestGRPCLocalAnswers(t *testing.T) {
	tests := []struct {
		name  string
		route *plan.Route
		code  codes.Code
	}{
		{"no endpoint", to("c"), codes.Unavailable},
		{"no rule", &plan.Route{Hosts: []plan.VirtualHost{{Domains: []string{"*"}}}}, codes.Unimplemented},
		{"abort", to("c", func(r *plan.Rule) { r.Fault = &plan.Fault{AbortGRPC: 7, AbortPercent: 100} }), codes.PermissionDenied},
		{"abort with a status", to("c", func(r *plan.Rule) { r.Fault = &plan.Fault{AbortStatus: 429, AbortGRPC: -1, AbortPercent: 100} }), codes.Unavailable},
	}
	for _, tt := range tests {
		r := grpcRig(t, tt.route)
		var head metadata.MD
		_, err := unary(t.Context(), grpcClient(t, r.addr), "x", grpc.Header(&head), grpc.Trailer(&head))
		if status.Code(err) != tt.code {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.code)
		}
	}
	r := grpcRig(t, to("c"))
	res, _ := r.get("/", "Content-Type", "application/grpc-web")
	if res.StatusCode != 503 {
		t.Errorf("gRPC-Web got %s", res.Status)
	}
}

func TestGRPCCancel(t *testing.T) {
	hung := make(chan error, 2)
	r := grpcRig(t, to("c"), grpcServer(t, "s", hung))
	c := grpcClient(t, r.addr)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-hung
		cancel()
	}()
	if _, err := unary(ctx, c, "hang"); status.Code(err) != codes.Canceled {
		t.Errorf("the client got %v", err)
	}
	if err := <-hung; !errors.Is(err, context.Canceled) {
		t.Errorf("the server got %v", err)
	}
	r.released("c")
}

// TestGRPCTimeout: the client's own deadline holds in the proxy, too, unless the route's is shorter.
func TestGRPCTimeout(t *testing.T) {
	hung := make(chan error, 6) // the server may also know the deadline before it has the message
	server := grpcServer(t, "s", hung)
	for _, tt := range []struct {
		own   string
		route time.Duration
	}{{"50m", 0}, {"50m", time.Hour}, {"1H", 50 * time.Millisecond}} {
		r := grpcRig(t, to("c", func(p *plan.Rule) { p.Timeout = tt.route }), server)
		frame := "\x00\x00\x00\x00\x06\x0a\x04hang"
		req := request(t, "POST", "http://"+r.addr+"/test.Echo/Unary", strings.NewReader(frame), "Content-Type", "application/grpc", "Te", "trailers", "Grpc-Timeout", tt.own)
		res, _ := fetch(t, h2PlainClient(t), req)
		if res.Header.Get("X-Lateen-Reason") != "request_timeout" || res.Header.Get("Grpc-Status") != "14" {
			// The server knows the deadline as well, and may be first.
			if tt.own == "1H" || res.Trailer.Get("Grpc-Status") == "" && res.Header.Get("Grpc-Status") == "" {
				t.Errorf("own %s, route %s: %s %v", tt.own, tt.route, res.Status, res.Header)
			}
		}
		r.released("c")
	}
}

func TestGRPCTimeoutForms(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond, "5u": 5 * time.Microsecond, "6n": 6,
		"99999999H": (1 << 20) * time.Hour,
	} {
		if got, ok := grpcTimeout([]byte(in)); !ok || got != want {
			t.Errorf("%q is %s, %v; want %s", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "1", "S", "1s", "-1S", "1.5S", "123456789S", " 1S"} {
		if got, ok := grpcTimeout([]byte(in)); ok {
			t.Errorf("%q is %s, want none", in, got)
		}
	}
}

// TestGRPCRetries: a trailers-only answer is asked for again, and a refused stream is.
func TestGRPCRetries(t *testing.T) {
	calls := make(chan struct{}, 100)
	down := h2Backend(t, func(w http.ResponseWriter, _ *http.Request) {
		calls <- struct{}{}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "14")
	})
	good := grpcServer(t, "good", nil)
	retry := &plan.Retry{Attempts: 2, On: plan.OnGRPCUnavailable, AvoidPrevious: true}
	r := grpcRig(t, to("c", func(p *plan.Rule) { p.Retry = retry }), down.Listener.Addr().String(), good)
	c := grpcClient(t, r.addr)
	for range 20 {
		if out, err := unary(t.Context(), c, "again"); err != nil || out != "again" {
			t.Fatalf("%q, %v", out, err)
		}
	}
	if len(calls) == 0 {
		t.Error("nothing was retried")
	}
	r.released("c")
}
