package netns

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpctest "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcService is gRPC's own test service, as far as it is called here.
type grpcService struct {
	grpctest.UnimplementedTestServiceServer
}

func (grpcService) UnaryCall(ctx context.Context, r *grpctest.SimpleRequest) (*grpctest.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("seen-bin", strings.Join(md["x-bin"], "")))
	}
	return &grpctest.SimpleResponse{Payload: &grpctest.Payload{Body: r.GetPayload().GetBody()}}, nil
}

func (grpcService) StreamingInputCall(s grpctest.TestService_StreamingInputCallServer) error {
	n := 0
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&grpctest.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			return err
		}
		n += len(r.GetPayload().GetBody())
	}
}

func (grpcService) StreamingOutputCall(r *grpctest.StreamingOutputCallRequest, s grpctest.TestService_StreamingOutputCallServer) error {
	for _, p := range r.GetResponseParameters() {
		if err := s.Send(&grpctest.StreamingOutputCallResponse{Payload: &grpctest.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

func (grpcService) FullDuplexCall(s grpctest.TestService_FullDuplexCallServer) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&grpctest.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

func (w *world) grpc(t *testing.T) {
	l := w.server.listen(t, ":8081")
	s := grpc.NewServer()
	grpctest.RegisterTestServiceServer(s, grpcService{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	conn, err := grpc.NewClient("passthrough:///shop:81", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return w.client.dial(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := grpctest.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	payload := func(n int) *grpctest.Payload { return &grpctest.Payload{Body: make([]byte, n)} }
	t.Run("unary", func(t *testing.T) {
		for _, n := range []int{0, 1, 1000, 100_000, 3_000_000} {
			var trailer metadata.MD
			r, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-bin", "\x00\xff"), &grpctest.SimpleRequest{Payload: payload(n)}, grpc.Trailer(&trailer))
			if err != nil || len(r.GetPayload().GetBody()) != n || strings.Join(trailer["seen-bin"], "") != "\x00\xff" {
				t.Errorf("%d bytes: %d, %v, trailer %q", n, len(r.GetPayload().GetBody()), err, trailer)
			}
		}
	})
	t.Run("status", func(t *testing.T) {
		_, err := c.UnaryCall(ctx, &grpctest.SimpleRequest{ResponseStatus: &grpctest.EchoStatus{Code: int32(codes.DataLoss), Message: "gone: 100 % ü"}})
		if s := status.Convert(err); s.Code() != codes.DataLoss || s.Message() != "gone: 100 % ü" {
			t.Errorf("%v", err)
		}
	})
	t.Run("client streams", func(t *testing.T) {
		stream, err := c.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			if err := stream.Send(&grpctest.StreamingInputCallRequest{Payload: payload(10_000)}); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := stream.CloseAndRecv(); err != nil || r.GetAggregatedPayloadSize() != 2_000_000 {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("server streams", func(t *testing.T) {
		req := &grpctest.StreamingOutputCallRequest{}
		for range 200 {
			req.ResponseParameters = append(req.ResponseParameters, &grpctest.ResponseParameters{Size: 10_000})
		}
		stream, err := c.StreamingOutputCall(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			n += len(r.GetPayload().GetBody())
		}
		if n != 2_000_000 {
			t.Errorf("%d bytes", n)
		}
	})
	t.Run("both stream", func(t *testing.T) {
		for range 3 {
			w.pingPong(ctx, t, c)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		stream, err := c.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&grpctest.StreamingOutputCallRequest{Payload: payload(1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("%v", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		stream, err := c.FullDuplexCall(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%v", err)
		}
	})
}

// pingPong sends a message only after the last one has come back.
func (w *world) pingPong(ctx context.Context, t *testing.T, c grpctest.TestServiceClient) {
	t.Helper()
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := stream.Send(&grpctest.StreamingOutputCallRequest{Payload: &grpctest.Payload{Body: make([]byte, i*100)}}); err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || len(r.GetPayload().GetBody()) != i*100 {
			t.Fatalf("message %d: %d bytes, %v", i, len(r.GetPayload().GetBody()), err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// webSocket shakes hands and exchanges frames (RFC 6455).
func (w *world) webSocket(t *testing.T) {
	serveTCP(t, w.server.listen(t, ":8088"), serveWebSocket)
	c := w.client.mustDial(t, "shop:88")
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	if _, err := io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: shop\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "+key+"\r\nSec-WebSocket-Version: 13\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-WebSocket-Accept") != accept(key) ||
		!strings.EqualFold(res.Header.Get("Upgrade"), "websocket") || !strings.EqualFold(res.Header.Get("Connection"), "upgrade") {
		t.Fatalf("%s %v", res.Status, res.Header)
	}
	for i, n := range []int{0, 1, 125, 126, 70_000, 1 << 20} {
		message := make([]byte, n)
		_, _ = io.ReadFull(&pattern{at: i}, message)
		if err := writeFrame(c, 2, message, true); err != nil {
			t.Fatal(err)
		}
		op, got, err := readFrame(r)
		if err != nil || op != 2 || string(got) != string(message) {
			t.Fatalf("message of %d: %d of %d, %v", n, op, len(got), err)
		}
	}
	if err := writeFrame(c, 8, []byte{3, 232}, true); err != nil {
		t.Fatal(err)
	}
	if op, _, err := readFrame(r); op != 8 || err != nil {
		t.Errorf("close: %d, %v", op, err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455 section 1.3
	return base64.StdEncoding.EncodeToString(sum[:])
}

// serveWebSocket sends every message back.
func serveWebSocket(c *net.TCPConn) {
	r := bufio.NewReader(c)
	req, err := http.ReadRequest(r)
	if err != nil || !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		return
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		accept(req.Header.Get("Sec-WebSocket-Key")))
	for {
		op, message, err := readFrame(r)
		if err != nil || writeFrame(c, op, message, false) != nil || op == 8 {
			return
		}
	}
}

func writeFrame(w io.Writer, op byte, message []byte, mask bool) error {
	head := []byte{0x80 | op, 0}
	switch n := len(message); {
	case n < 126:
		head[1] = byte(n)
	case n < 1<<16:
		head[1] = 126
		head = binary.BigEndian.AppendUint16(head, uint16(n))
	default:
		head[1] = 127
		head = binary.BigEndian.AppendUint64(head, uint64(n))
	}
	out := append([]byte{}, message...)
	if mask {
		head[1] |= 0x80
		key := []byte{1, 2, 3, 4}
		head = append(head, key...)
		for i := range out {
			out[i] ^= key[i%4]
		}
	}
	_, err := w.Write(append(head, out...))
	return err
}

func readFrame(r io.Reader) (byte, []byte, error) {
	head := make([]byte, 2, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1] & 0x7f)
	if extra := map[uint64]int{126: 2, 127: 8}[n]; extra > 0 {
		size := make([]byte, 8)
		if _, err := io.ReadFull(r, size[8-extra:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(size)
	}
	key := make([]byte, 4)
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, key); err != nil {
			return 0, nil, err
		}
	}
	message := make([]byte, n)
	_, err := io.ReadFull(r, message)
	for i := range message {
		message[i] ^= key[i%4]
	}
	return head[0] & 0x0f, message, err
}

// ownTLS is TLS of the application, which the proxies must not touch.
func (w *world) ownTLS(t *testing.T) {
	cert := selfSigned(t, "shop")
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	echo := func(c *net.TCPConn) {
		s := tls.Server(c, config)
		_, _ = io.Copy(s, s)
		_ = s.Close()
	}
	serveTCP(t, w.server.listen(t, ":8085"), echo)
	serveTCP(t, w.server.listen(t, ":8086"), echo)
	serveTCP(t, w.server.listen(t, ":7003"), echo)
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	for _, address := range []string{"shop:85", "shop:86", w.server.address(t, "tcp4") + ":7003"} {
		t.Run(address, func(t *testing.T) {
			c := tls.Client(w.client.mustDial(t, address), &tls.Config{RootCAs: roots, ServerName: "shop"})
			go func() {
				_, _ = io.CopyN(c, &pattern{}, 1<<20)
				_ = c.CloseWrite()
			}()
			if n, err := io.Copy(io.Discard, c); n != 1<<20 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}

func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
