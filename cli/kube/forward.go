package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"               //nolint:staticcheck // client-go still speaks of its types
	httpspdy "k8s.io/apimachinery/pkg/util/httpstream/spdy" //nolint:staticcheck // as above
	tunnelled "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/transport/websocket"
)

// The bounds of what is asked of a pod.
const (
	pageTimeout = 10 * time.Second
	pageMax     = 64 << 20
	// troubleMax bounds what the kubelet says of why it cannot connect.
	troubleMax = 4 << 10
)

// Ports of our pods' loopback interfaces.
const (
	portProxyAdmin   = 15000
	portControlAdmin = 15014
	portWebhook      = 15017
)

// dialer connects to a port of a pod, on the pod's own loopback interface.
type dialer func(ctx context.Context, namespace, pod string, port int) (net.Conn, error)

// forward connects by way of the API server, as `kubectl port-forward` does.
func forward(cfg *rest.Config, api rest.Interface) dialer {
	return func(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
		to := api.Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
		tunnel, err := openTunnel(ctx, cfg, to)
		if err == nil {
			var conn net.Conn
			if conn, err = openStreams(tunnel, port); err == nil {
				return conn, nil
			}
			_ = tunnel.Close()
		}
		return nil, fmt.Errorf("connect to port %d of pod %s/%s: %w", port, namespace, pod, err)
	}
}

// openTunnel opens a connection to a pod that carries streams, by WebSocket or, where a server or somebody in between
// does not know that, by SPDY.
func openTunnel(ctx context.Context, cfg *rest.Config, to *url.URL) (httpstream.Connection, error) {
	transport, holder, err := websocket.RoundTripperFor(cfg)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	socket, err := websocket.Negotiate(transport, holder, request, tunnelled.WebsocketsSPDYTunnelingPrefix+portforward.PortForwardProtocolV1Name)
	if err == nil {
		return httpspdy.NewClientConnectionWithPings(portforward.NewTunnelingConnection("lateen", socket), portforward.PingPeriod)
	}
	if !httpstream.IsUpgradeFailure(err) && !httpstream.IsHTTPSProxyError(err) {
		return nil, err
	}
	old, upgrader, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		return nil, err
	}
	if request, err = http.NewRequestWithContext(ctx, http.MethodPost, to.String(), http.NoBody); err != nil {
		return nil, err
	}
	tunnel, _, err := spdy.Negotiate(upgrader, &http.Client{Transport: old}, request, portforward.PortForwardProtocolV1Name)
	return tunnel, err
}

// openStreams opens the two streams that stand for a connection to a port.
func openStreams(tunnel httpstream.Connection, port int) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(core.StreamType, core.StreamTypeError)
	headers.Set(core.PortHeader, strconv.Itoa(port))
	headers.Set(core.PortForwardRequestIDHeader, "0")
	trouble, err := tunnel.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = trouble.Close() // we write nothing
	headers.Set(core.StreamType, core.StreamTypeData)
	data, err := tunnel.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	return &forwarded{Stream: data, tunnel: tunnel, trouble: trouble}, nil
}

// forwarded is a connection to a port of a pod.
type forwarded struct {
	httpstream.Stream
	tunnel  httpstream.Connection
	trouble io.Reader
}

// Read reads; where the connection ends it says why, if the kubelet does.
func (f *forwarded) Read(p []byte) (int, error) {
	n, err := f.Stream.Read(p)
	if errors.Is(err, io.EOF) && n == 0 {
		// The kubelet closes both streams when the connection has ended.
		if text, _ := io.ReadAll(io.LimitReader(f.trouble, troubleMax)); len(text) > 0 {
			err = errors.New(strings.TrimSpace(string(text)))
		}
	}
	return n, err
}

// Close ends the connection.
func (f *forwarded) Close() error { return errors.Join(f.Stream.Close(), f.tunnel.Close()) }

// forwardedAddr is what a forwarded connection's ends are called.
type forwardedAddr struct{}

func (forwardedAddr) Network() string { return "portforward" }
func (forwardedAddr) String() string  { return "pod" }

// LocalAddr and the others complete a net.Conn; there are no deadlines: who waits no longer closes.
func (f *forwarded) LocalAddr() net.Addr              { return forwardedAddr{} }
func (f *forwarded) RemoteAddr() net.Addr             { return forwardedAddr{} }
func (f *forwarded) SetDeadline(time.Time) error      { return nil }
func (f *forwarded) SetReadDeadline(time.Time) error  { return nil }
func (f *forwarded) SetWriteDeadline(time.Time) error { return nil }

// page asks an admin page of a pod. What is answered goes into out, as it is if that is a *[]byte, else from JSON. It
// returns what the pod's clock says.
func (d dialer) page(ctx context.Context, namespace, pod string, port int, path string, out any) (time.Time, error) {
	ctx, stop := context.WithTimeout(ctx, pageTimeout)
	defer stop()
	client := http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d(ctx, namespace, pod, port) },
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("localhost", strconv.Itoa(port))+path, http.NoBody)
	if err != nil {
		return time.Time{}, err
	}
	answer, err := client.Do(request)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // the address is none that anybody knows
		}
		return time.Time{}, fmt.Errorf("ask pod %s/%s for %s: %w", namespace, pod, path, err)
	}
	defer func() { _ = answer.Body.Close() }()
	at, _ := http.ParseTime(answer.Header.Get("Date"))
	text, err := io.ReadAll(io.LimitReader(answer.Body, pageMax))
	switch {
	case err != nil:
		return at, fmt.Errorf("ask pod %s/%s for %s: %w", namespace, pod, path, err)
	case answer.StatusCode != http.StatusOK:
		return at, fmt.Errorf("ask pod %s/%s for %s: it answered %s: %s", namespace, pod, path, answer.Status, strings.TrimSpace(string(text)))
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = text
		return at, nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return at, fmt.Errorf("read what pod %s/%s says at %s: %w", namespace, pod, path, err)
	}
	return at, nil
}
