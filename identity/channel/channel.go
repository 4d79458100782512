// Package channel is a thin gRPC client, with which a proxy talks to its control
// plane: unary calls and bidirectional streams of opaque messages.
//
// In go method names and encoded messages, out come encoded messages and Errors
// with gRPC codes. It speaks the gRPC protocol (grpc/grpc, doc/PROTOCOL-HTTP2.md)
// over the HTTP/2 of net/http, because linking grpc-go would cost every proxy
// more memory than all else it links. It must not know what the messages mean;
// it links neither gRPC nor the protobuf runtime.
//
// A Channel may be used by any number of goroutines. A Stream may be used by one
// sender and one receiver at a time.
package channel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// Bounds and times.
const (
	addressesMax    = 16
	messageMaxBytes = 4 << 20
	headerMaxBytes  = 64 << 10

	dialTimeout   = 5 * time.Second  // for one address, TLS handshake included
	invokeTimeout = 20 * time.Second // of an Invoke whose context has no deadline
	idleTimeout   = time.Minute      // until a connection without calls is closed
	pingAfter     = 30 * time.Second // of silence
	pingTimeout   = 15 * time.Second

	// Flow-control windows: how much a server may send ahead of us.
	streamWindowBytes     = 512 << 10
	connectionWindowBytes = 1 << 20
)

// Config says where the control plane is and how it is recognised.
type Config struct {
	// Addresses are the control plane's host:port, at most 16. They are
	// tried in turn, beginning with the one that worked last.
	Addresses []string
	// ServerName is the DNS name or IP address that the server's certificate
	// must carry, the SNI, and the :authority of the calls. If empty it is
	// the host of the address connected to.
	ServerName string
	// TrustDomain is the trust domain whose roots, in the holder's bundle,
	// may vouch for the server.
	TrustDomain string
	// Holder supplies these roots, and our client certificate as soon as
	// there is one. When what it holds changes, the calls that follow use a
	// new connection; streams in progress go on with the old.
	Holder *identity.Holder
	// Mark is set on our sockets (SO_MARK), so that rules that capture a
	// workload's traffic let its proxy's own pass. 0 sets none; others need
	// CAP_NET_ADMIN.
	Mark uint32
}

// Channel is a connection to the control plane that makes itself anew as
// needed. Nothing is connected before the first call.
//
// A silent connection is pinged after 30 s, with or without calls in progress,
// and closed if no answer comes within 15 s. A server must permit that: for
// grpc-go, keepalive.EnforcementPolicy with a MinTime below 30 s and
// PermitWithoutStream.
type Channel struct {
	addresses   []string
	serverName  string
	trustDomain string
	holder      *identity.Holder
	connect     func(ctx context.Context, network, address string) (net.Conn, error)
	next        atomic.Int64 // index of the address to try first

	mu          sync.Mutex
	closed      bool
	transport   *http.Transport
	credentials *identity.Credentials // those that transport was made for
	connections map[*connection]struct{}
}

// New returns a channel to the control plane.
func New(c Config) (*Channel, error) {
	var faults []error
	if n := len(c.Addresses); n == 0 || n > addressesMax {
		faults = append(faults, fmt.Errorf("%d addresses given, 1 to %d are allowed", n, addressesMax))
	}
	for _, a := range c.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			faults = append(faults, fmt.Errorf("address %q is not host:port: %w", a, err))
		}
	}
	if err := identity.ValidateTrustDomain(c.TrustDomain); err != nil {
		faults = append(faults, err)
	}
	if c.Holder == nil {
		faults = append(faults, errors.New("no holder of roots given"))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("make channel to control plane: %w", errors.Join(faults...))
	}
	return &Channel{
		addresses:   slices.Clone(c.Addresses),
		serverName:  c.ServerName,
		trustDomain: c.TrustDomain,
		holder:      c.Holder,
		connect:     (&net.Dialer{Control: mark(c.Mark)}).DialContext,
		connections: make(map[*connection]struct{}),
	}, nil
}

// Close closes all connections. Calls in progress end with Unavailable, calls
// to come too.
func (c *Channel) Close() {
	c.mu.Lock()
	c.closed = true
	transport, open := c.transport, slices.Collect(maps.Keys(c.connections))
	c.mu.Unlock()
	// A connection takes the lock when it closes, so it must be free here.
	if transport != nil {
		transport.CloseIdleConnections()
	}
	for _, conn := range open {
		_ = conn.Close()
	}
}

// Metadata is sent with a call: lower-case names and ASCII values, such as
// "authorization": "Bearer …". A value whose name ends in -bin must be base64.
type Metadata map[string]string

// Invoke makes a unary call of a method, such as
// /istio.v1.auth.IstioCertificateService/CreateCertificate, and returns the
// encoded answer. Errors are of type *Error. Without a deadline in the context
// it waits 20 s at most.
func (c *Channel) Invoke(ctx context.Context, method string, request []byte, md Metadata) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, invokeTimeout)
		defer cancel()
	}
	frame, err := frameOf(request)
	if err != nil {
		return nil, err
	}
	resp, err := c.roundTrip(ctx, method, bytes.NewReader(frame), md)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := checkHead(resp); err != nil {
		return nil, err
	}
	answer, err := readFrame(resp.Body)
	if err == nil {
		// The status follows the answer; a second answer is a fault.
		if _, err = readFrame(resp.Body); err == nil {
			return nil, &Error{Code: Internal, Message: "the server sent more than one answer to a unary call"}
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, transportError(ctx, err)
	}
	if err := statusOf(resp); err != nil {
		return nil, err
	}
	if answer == nil {
		return nil, &Error{Code: Internal, Message: "the server sent no answer to a unary call"}
	}
	return answer, nil
}

// newRequest makes the HTTP request of a call. A body that is a *bytes.Reader
// can be sent again, on a new connection, if the server has not processed it.
func (c *Channel) newRequest(ctx context.Context, method string, body io.Reader, md Metadata) (*http.Request, error) {
	host := c.serverName
	if host == "" {
		host = c.addresses[0]
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]" // an IPv6 address
	}
	u := url.URL{Scheme: "https", Host: host, Path: method}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make request for %q: %w", method, err)
	}
	for name, value := range md {
		r.Header.Set(name, value)
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	r.Header.Set("Grpc-Accept-Encoding", "identity")
	r.Header.Set("User-Agent", "lateen")
	if deadline, ok := ctx.Deadline(); ok {
		r.Header.Set("Grpc-Timeout", encodeTimeout(time.Until(deadline)))
	}
	return r, nil
}

// encodeTimeout writes a grpc-timeout header: at most eight digits and a unit.
// It rounds up, so that our own deadline passes first and is reported as such.
func encodeTimeout(d time.Duration) string {
	const digitsMax = 99_999_999
	if ms := max(int64((d-1)/time.Millisecond)+1, 1); ms <= digitsMax {
		return strconv.FormatInt(ms, 10) + "m"
	}
	return strconv.FormatInt(min(int64((d-1)/time.Second)+1, digitsMax), 10) + "S"
}

// roundTrip begins a call, over the transport that belongs to the current
// credentials.
func (c *Channel) roundTrip(ctx context.Context, method string, body io.Reader, md Metadata) (*http.Response, error) {
	r, err := c.newRequest(ctx, method, body, md)
	if err != nil {
		return nil, err
	}
	t, err := c.currentTransport()
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(r)
}

// errClosed is what calls end with after Close.
var errClosed = errors.New("the channel is closed")

func (c *Channel) currentTransport() (*http.Transport, error) {
	now := c.holder.Current()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	current, old := c.transport, (*http.Transport)(nil)
	if current == nil || c.credentials != now {
		current, old = c.newTransport(), current
		c.transport, c.credentials = current, now
	}
	c.mu.Unlock()
	if old != nil {
		// Connections with streams in progress live on, and end by the
		// idle timeout when these have ended.
		old.CloseIdleConnections()
	}
	return current, nil
}

func (c *Channel) newTransport() *http.Transport {
	var only2 http.Protocols
	only2.SetHTTP2(true)
	return &http.Transport{
		DialTLSContext:         c.dial,
		Protocols:              &only2,
		DisableCompression:     true,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: headerMaxBytes,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
			WriteByteTimeout:              pingTimeout,
			MaxReceiveBufferPerStream:     streamWindowBytes,
			MaxReceiveBufferPerConnection: connectionWindowBytes,
		},
	}
}

// dial connects to the first address that answers, in turn from the one that
// worked last. The address that the transport asks for is only a name.
func (c *Channel) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	first := int(c.next.Load())
	var failed error
	for i := range c.addresses {
		at := (first + i) % len(c.addresses)
		conn, err := c.dialOne(ctx, c.addresses[at])
		if err == nil {
			c.next.Store(int64(at))
			return conn, nil
		}
		if failed == nil {
			failed = fmt.Errorf("connect to control plane at %s: %w", c.addresses[at], err)
		} else {
			failed = fmt.Errorf("%w; at %s: %w", failed, c.addresses[at], err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func (c *Channel) dialOne(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := c.connect(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tracked := &connection{Conn: raw, channel: c}
	if err := tracked.add(); err != nil {
		_ = raw.Close()
		return nil, err
	}
	name := c.serverName
	if name == "" {
		if name, _, err = net.SplitHostPort(address); err != nil {
			return nil, err
		}
	}
	conn := tls.Client(tracked, identity.ControlTLS(c.holder, identity.ControlConfig{
		ServerName:  name,
		TrustDomain: c.trustDomain,
		ALPN:        []string{"h2"},
	}))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		_ = conn.Close()
		return nil, errors.New("the server does not offer HTTP/2; is this the control plane's gRPC port?")
	}
	return conn, nil
}

// connection is a TCP connection that its channel knows of while it is open.
type connection struct {
	net.Conn
	channel *Channel
}

func (c *connection) add() error {
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	if c.channel.closed {
		return errClosed
	}
	c.channel.connections[c] = struct{}{}
	return nil
}

// Close closes the connection and makes the channel forget it.
func (c *connection) Close() error {
	c.channel.mu.Lock()
	delete(c.channel.connections, c)
	c.channel.mu.Unlock()
	return c.Conn.Close()
}
