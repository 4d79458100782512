package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcField is orderField as gRPC's metadata has it.
const grpcField = "x-soak"

// messageMax is the largest message of a stream.
const messageMax = 48 << 10

// rawCodec has messages be bytes.
type rawCodec struct{}

func (rawCodec) Name() string { return "raw" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	p, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("marshal %T", v)
	}
	return *p, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	p, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("unmarshal into %T", v)
	}
	*p = append((*p)[:0], data...)
	return nil
}

// The methods: one message each way, and streams both ways.
const (
	unary  = "/soak.Soak/Unary"
	stream = "/soak.Soak/Stream"
)

// serveGRPC answers any method: what comes is the body of the order's seed in messages of any size, and so is what goes.
func (b *backend) serveGRPC(_ any, s grpc.ServerStream) error {
	o, err := orderOf(s.Context())
	if err != nil {
		b.report(&order{}, err)
		return err
	}
	id := metadata.Pairs(idField, fmt.Sprintf("%016x", o.ID))
	s.SetTrailer(id)
	if err := s.SetHeader(id); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(s)
	up := &checker{seed: o.seedUp()}
	down := &messages{o: o, seed: o.seedAnswer(), send: func(m []byte) error { return s.SendMsg(&m) }}
	if method == unary {
		down.whole = true
	}
	var m []byte
	for {
		err := s.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if !o.byClient() && !o.byBackend() {
				b.report(o, fmt.Errorf("the backend's stream: %w", err))
			}
			return err
		}
		if _, err := up.Write(m); err != nil {
			b.report(o, err)
			return err
		}
		if o.Mode == modeEcho && method == stream {
			if err := down.advance(up.off); err != nil {
				return err
			}
		}
	}
	if up.off != o.Up {
		err := wrong("the backend's stream ends, as if complete, after %d of %d bytes", up.off, o.Up)
		b.report(o, err)
		return err
	}
	return down.advance(o.Down)
}

func orderOf(ctx context.Context) (*order, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(grpcField); len(v) == 1 {
		return parseOrder(v[0])
	}
	return nil, wrong("a call without an order: %v", md)
}

// messages sends a body in messages.
type messages struct {
	o     *order
	seed  uint64
	sent  int
	whole bool // in one message
	send  func([]byte) error
}

// advance sends up to an offset. At the order's end of the exchange it returns the status that the client is to see.
func (m *messages) advance(to int) error {
	for {
		if m.o.byBackend() && (m.whole || m.sent >= m.o.DownAt) {
			return status.Errorf(codes.Aborted, "%016x", m.o.ID)
		}
		n := min(messageMax, to-m.sent)
		if m.whole {
			n = to - m.sent
		}
		if n == 0 && (!m.whole || to != 0) {
			return nil
		}
		p := make([]byte, n)
		fill(p, m.seed, m.sent)
		if err := m.send(p); err != nil {
			return err
		}
		m.sent += n
		if m.whole {
			return nil
		}
	}
}

// grpcPlayer makes calls on a connection that workers share.
type grpcPlayer struct {
	conn   *grpc.ClientConn
	stream bool
}

func dialGRPC(r *rig, v *via) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+v.host, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.dial(ctx, v) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(hugeMax+1)))
}

func (g *grpcPlayer) play(ctx context.Context, w *worker) {
	o := w.order(endClose, endWaiting, endCut)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, grpcField, o.String()))
	defer cancel()
	facts := &facts{}
	var err error
	if g.stream {
		err = g.streams(ctx, o, cancel)
	} else {
		err = g.calls(ctx, o, cancel)
	}
	if o.End == endCut && !isWrong(err) {
		if want := fmt.Sprintf("%016x", o.ID); status.Code(err) == codes.Aborted && status.Convert(err).Message() == want {
			err = errEnded
		} else {
			err = fmt.Errorf("status %w in the place of the backend's %s %q", err, codes.Aborted, want)
			o.End = endWhole // not what the backend has ended it with
		}
	}
	w.end(o, facts, err)
}

func (g *grpcPlayer) calls(ctx context.Context, o *order, cancel func()) error {
	p := make([]byte, o.Up)
	fill(p, o.seedUp(), 0)
	var got []byte
	var header, trailer metadata.MD
	if o.byClient() {
		ctx, stop := context.WithTimeout(ctx, abortAfter(o))
		defer stop()
		if err := g.conn.Invoke(ctx, unary, &p, &got); err != nil {
			return err
		}
		cancel()
	} else if err := g.conn.Invoke(ctx, unary, &p, &got, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		return err
	}
	down := &checker{seed: o.seedAnswer()}
	if _, err := down.Write(got); err != nil {
		return err
	}
	if down.off != o.Down {
		return wrong("a message of %d bytes, want %d", down.off, o.Down)
	}
	if o.byClient() {
		return nil
	}
	return errors.Join(checkID(o, header), checkID(o, trailer))
}

func checkID(o *order, md metadata.MD) error {
	if v := md.Get(idField); len(v) != 1 || v[0] != fmt.Sprintf("%016x", o.ID) {
		return wrong("the answer's metadata %v is not of %016x", md, o.ID)
	}
	return nil
}

func (g *grpcPlayer) streams(ctx context.Context, o *order, cancel func()) error {
	s, err := g.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, stream)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		up := &messages{o: &order{End: endWhole}, seed: o.seedUp(), send: func(m []byte) error { return s.SendMsg(&m) }}
		to := o.Up
		if o.End == endClose {
			to = o.UpAt
		}
		err := up.advance(to)
		if o.End == endClose {
			cancel()
		} else if err == nil {
			err = s.CloseSend()
		}
		sent <- err
	}()
	err = g.receive(s, o, cancel)
	if serr := <-sent; serr != nil && err == nil && !o.byClient() {
		err = fmt.Errorf("send: %w", serr)
	}
	return err
}

func (g *grpcPlayer) receive(s grpc.ClientStream, o *order, cancel func()) error {
	down := &checker{seed: o.seedAnswer()}
	var m []byte
	for {
		err := s.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if _, err := down.Write(m); err != nil {
			return err
		}
		if o.End == endWaiting && down.off > o.DownAt {
			cancel()
		}
	}
	if down.off != o.Down {
		return wrong("the stream ends, as if complete, after %d of %d bytes", down.off, o.Down)
	}
	header, err := s.Header()
	if err != nil {
		return err
	}
	return errors.Join(checkID(o, header), checkID(o, s.Trailer()))
}

func (g *grpcPlayer) close() {}
