package http2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// grpcBox is the message of the echo service.
type grpcBox = wrapperspb.BytesValue

// echo is a gRPC service without generated code. "fail" fails, "hang" waits for the end of the context and tells done.
type echo struct {
	done chan error
	hung atomic.Int32 // calls that "hang" has begun
}

func (e *echo) one(ctx context.Context, in *grpcBox) (*grpcBox, error) {
	switch string(in.Value) {
	case "fail":
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-detail", "why"))
		return nil, status.Error(codes.NotFound, "no such thing: 100 % gone")
	case "hang":
		e.hung.Add(1)
		<-ctx.Done()
		e.done <- ctx.Err()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if sent := md["x-sent"]; sent != nil {
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-seen", strings.Join(sent, ","), "x-seen-bin", strings.Join(md["x-sent-bin"], "")))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
	}
	return in, nil
}

func (e *echo) stream(s grpc.ServerStream, in, out bool) error {
	var sum []byte
	for {
		m := new(grpcBox)
		err := s.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			e.done <- err
			return err
		}
		r, err := e.one(s.Context(), m)
		if err != nil {
			return err
		}
		switch {
		case in && out:
			if err := s.SendMsg(r); err != nil {
				return err
			}
		default:
			sum = append(sum, m.Value...)
		}
	}
	if in && !out {
		return s.SendMsg(&grpcBox{Value: sum})
	}
	if !in {
		for i := range sum {
			if err := s.SendMsg(&grpcBox{Value: sum[i:]}); err != nil {
				return err
			}
		}
	}
	return nil
}

const echoName = "test.Echo"

func (e *echo) desc() *grpc.ServiceDesc {
	streamer := func(name string, in, out bool) grpc.StreamDesc {
		return grpc.StreamDesc{
			StreamName: name, ClientStreams: in, ServerStreams: out,
			Handler: func(_ any, s grpc.ServerStream) error { return e.stream(s, in, out) },
		}
	}
	return &grpc.ServiceDesc{
		ServiceName: echoName, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(grpcBox)
			if err := dec(in); err != nil {
				return nil, err
			}
			return e.one(ctx, in)
		}}},
		Streams: []grpc.StreamDesc{streamer("Up", true, false), streamer("Down", false, true), streamer("Both", true, true)},
	}
}

// newGRPC is a gRPC client and server of the grpc package with our server and client in between.
func newGRPC(t *testing.T, cfg Config, opts ...grpc.ServerOption) (*relay, *grpc.ClientConn, *echo) {
	e := &echo{done: make(chan error, 100)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gs := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(16<<20))...)
	gs.RegisterService(e.desc(), nil)
	var wg sync.WaitGroup
	wg.Go(func() { _ = gs.Serve(ln) })
	t.Cleanup(func() { gs.Stop(); wg.Wait() })
	r := newRelay(t, ln.Addr().String(), cfg)
	cc, err := grpc.NewClient("passthrough:///"+r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return r, cc, e
}

func unaryCall(ctx context.Context, cc *grpc.ClientConn, in []byte, opts ...grpc.CallOption) ([]byte, error) {
	out := new(grpcBox)
	err := cc.Invoke(ctx, "/"+echoName+"/Unary", &grpcBox{Value: in}, out, opts...)
	return out.Value, err
}

func openStream(t *testing.T, ctx context.Context, cc *grpc.ClientConn, name string) grpc.ClientStream { //nolint:revive // t comes first in tests
	t.Helper()
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/"+echoName+"/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t *testing.T, s grpc.ClientStream, p []byte) {
	t.Helper()
	if err := s.SendMsg(&grpcBox{Value: p}); err != nil {
		t.Fatal(err)
	}
}

func recv(t *testing.T, s grpc.ClientStream) []byte {
	t.Helper()
	m := new(grpcBox)
	if err := s.RecvMsg(m); err != nil {
		t.Fatal(err)
	}
	return m.Value
}

func TestGRPCUnary(t *testing.T) {
	_, cc, _ := newGRPC(t, Config{})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-sent", "a", "x-sent", "b", "x-sent-bin", "\x00\xff")
	var header, trailer metadata.MD
	for range 10 {
		got, err := unaryCall(ctx, cc, []byte("hello"), grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil || string(got) != "hello" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if header.Get("x-seen")[0] != "a,b" || header.Get("x-seen-bin")[0] != "\x00\xff" || trailer.Get("x-trailer")[0] != "t" {
		t.Errorf("%v, %v", header, trailer)
	}
}

func TestGRPCStatus(t *testing.T) {
	_, cc, _ := newGRPC(t, Config{})
	var trailer metadata.MD
	_, err := unaryCall(t.Context(), cc, []byte("fail"), grpc.Trailer(&trailer))
	if s := status.Convert(err); s.Code() != codes.NotFound || s.Message() != "no such thing: 100 % gone" || trailer.Get("x-detail")[0] != "why" {
		t.Errorf("%v, %v", err, trailer)
	}
	err = cc.Invoke(t.Context(), "/"+echoName+"/None", new(grpcBox), new(grpcBox)) // a Trailers-Only response
	if status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

func TestGRPCStreams(t *testing.T) {
	_, cc, _ := newGRPC(t, Config{})
	up := openStream(t, t.Context(), cc, "Up")
	for range 100 {
		send(t, up, []byte("ab"))
	}
	if err := up.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if got := recv(t, up); string(got) != strings.Repeat("ab", 100) {
		t.Errorf("up: %q", got)
	}

	down := openStream(t, t.Context(), cc, "Down")
	send(t, down, bytes.Repeat([]byte("x"), 500))
	if err := down.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		if got := recv(t, down); len(got) != 500-i {
			t.Fatalf("down: message %d has %d bytes", i, len(got))
		}
	}
	if err := down.RecvMsg(new(grpcBox)); !errors.Is(err, io.EOF) {
		t.Errorf("down: %v", err)
	}

	both := openStream(t, t.Context(), cc, "Both")
	for i := range 200 {
		send(t, both, []byte{byte(i)})
		if got := recv(t, both); len(got) != 1 || got[0] != byte(i) {
			t.Fatalf("both: %v for %d", got, i)
		}
	}
	if err := both.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := both.RecvMsg(new(grpcBox)); !errors.Is(err, io.EOF) {
		t.Errorf("both: %v", err)
	}
}

// TestGRPCBig sends big messages each way, unary and streamed at once, through large windows and small ones.
func TestGRPCBig(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  Config
		size int
	}{
		"large windows": {Config{}, 8 << 20},
		"small windows": {Config{StreamWindow: 16_000, ConnWindow: 70_000, SendBuffer: 4_000}, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			_, cc, _ := newGRPC(t, tt.cfg)
			want := pattern(tt.size)
			var wg sync.WaitGroup
			wg.Go(func() {
				if got, err := unaryCall(t.Context(), cc, want); err != nil || !bytes.Equal(got, want) {
					t.Errorf("unary: %d bytes, %v", len(got), err)
				}
			})
			both := openStream(t, t.Context(), cc, "Both")
			send(t, both, want)
			if got := recv(t, both); !bytes.Equal(got, want) {
				t.Errorf("stream: %d bytes", len(got))
			}
			wg.Wait()
		})
	}
}

// TestGRPCCancel: a cancelled call ends at the server, before and in the middle of its messages, and others go on.
func TestGRPCCancel(t *testing.T) {
	r, cc, e := newGRPC(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	both := openStream(t, ctx, cc, "Both")
	send(t, both, []byte("a"))
	recv(t, both)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := unaryCall(ctx, cc, []byte("hang")); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
	})
	other := openStream(t, t.Context(), cc, "Both")
	cancel()
	wg.Wait()
	if err := both.RecvMsg(new(grpcBox)); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	if err := <-e.done; status.Code(err) != codes.Canceled && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	send(t, other, []byte("b"))
	recv(t, other)
	r.loop.Lock()
	defer r.loop.Unlock()
	if n := r.up.Active(); n != 1 {
		t.Errorf("%d exchanges are open", n)
	}
}

func TestGRPCDeadline(t *testing.T) {
	_, cc, e := newGRPC(t, Config{})
	// On a busy machine the deadline may pass before the call has come to the server.
	for limit := 50 * time.Millisecond; e.hung.Load() == 0; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		if _, err := unaryCall(ctx, cc, []byte("hang")); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		cancel()
	}
	if err := <-e.done; err == nil {
		t.Error("the server did not see the deadline")
	}
}

// TestGRPCMaxStreams: the server's limit holds calls back at our connection, not at the client.
func TestGRPCMaxStreams(t *testing.T) {
	_, cc, _ := newGRPC(t, Config{MaxStreams: 5})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got, err := unaryCall(t.Context(), cc, []byte("x")); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wg.Wait()
}

// TestGRPCAge: the backend's connections are so short-lived that it drains them under load; no call fails.
func TestGRPCAge(t *testing.T) {
	r, cc, _ := newGRPC(t, Config{}, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 20 * time.Millisecond}))
	r.loop.Lock()
	first := r.client()
	r.loop.Unlock()
	for {
		if _, err := unaryCall(t.Context(), cc, []byte("x")); err != nil {
			t.Fatal(err)
		}
		r.loop.Lock()
		drained := r.up != first
		r.loop.Unlock()
		if drained {
			return
		}
	}
}
