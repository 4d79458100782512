// Package hbone carries connections between proxies in HTTP/2 streams (HBONE,
// Istio's "HTTP-based overlay network environment"): a client asks by CONNECT
// for a tunnel to an address, over mutual TLS, and the tunnel's bytes are those of
// a loop.Conn, with half-close (END_STREAM), reset (RST_STREAM) and flow control.
//
// In: connections that are encrypted already (Server) or functions that make
// them (Client). Out: carried connections. It must not know policies, plans,
// sessions or certificates. Everything of one Server or Client belongs to one
// event loop; nothing may be called from another goroutine.
package hbone

import (
	"bytes"
	"crypto/tls"
	"net/netip"

	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// ALPN is the one application protocol of HBONE's TLS.
const ALPN = "h2"

const (
	// streamWindow is how many bytes of one tunnel may be on their way to a receiver that does not read.
	streamWindow = 1 << 20
	// connWindow is the same for all tunnels of a connection together.
	connWindow = 4 << 20
	// frameBytes is the longest frame of a peer: what one write to the application takes. A loop keeps that much.
	frameBytes = 48 << 10
)

// settings are HTTP/2's for tunnels.
func settings(cfg http2.Config) http2.Config {
	cfg.StreamWindow, cfg.ConnWindow, cfg.FrameBytes = streamWindow, connWindow, frameBytes
	return cfg
}

// tunnel is one stream that carries a connection: the stream's Receiver and the connection's Carrier.
type tunnel struct {
	conn *loop.Conn    // what is carried; nil until the tunnel is granted or taken
	send stream.Sender // the stream
	over *loop.Conn    // whose stream it is
}

// OnInterim does nothing: a tunnel has no use for 1xx responses.
func (t *tunnel) OnInterim(*stream.Head) {}

// OnData delivers bytes of the tunnel.
func (t *tunnel) OnData(p []byte, end bool) {
	if t.conn == nil {
		return
	}
	t.conn.Feed(p)
	if end {
		t.conn.FeedEOF()
	}
}

// OnTrailers is the end of the peer's bytes; a tunnel has no trailers.
func (t *tunnel) OnTrailers(*stream.Head) { t.OnData(nil, true) }

// OnAbort is the end of the tunnel.
func (t *tunnel) OnAbort(_ stream.Abort, err error) {
	if t.conn != nil {
		t.conn.FeedReset(err)
	}
}

// OnDrain says that the stream takes more again.
func (t *tunnel) OnDrain() {
	if t.conn != nil {
		t.conn.Drained()
	}
}

// Write sends bytes.
func (t *tunnel) Write(p []byte) { t.send.SendData(p, false) }

// CloseWrite ends our bytes.
func (t *tunnel) CloseWrite() { t.send.SendData(nil, true) }

// Full reports that bytes wait for the peer's window, or for the connection.
func (t *tunnel) Full() bool { return t.send.Full() }

// Pause has the peer's window run out.
func (t *tunnel) Pause() { t.send.Pause() }

// Resume renews it.
func (t *tunnel) Resume() { t.send.Resume() }

// Abort resets the stream.
func (t *tunnel) Abort() { t.send.Reset(stream.AbortReset) }

// TLS describes the TLS connection that carries the tunnel.
func (t *tunnel) TLS() *tls.ConnectionState { return t.over.TLS() }

// ParseAuthority reads the :authority of a CONNECT request: the address and port that the tunnel is to lead to, IPv6
// in brackets. Names, zones and port 0 are refused.
func ParseAuthority(p []byte) (netip.AddrPort, bool) {
	const longest = len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535")
	if len(p) > longest {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddrPort(string(p))
	if err != nil || a.Addr().Zone() != "" || a.Port() == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), true
}

// forwardedMax bounds what is read of a Forwarded field.
const forwardedMax = 512

// ParseForwarded reads the client's address from the first "for" of a Forwarded field (RFC 7239), as proxies of a mesh
// write it: for="10.0.0.1:4711".
func ParseForwarded(p []byte) (netip.AddrPort, bool) {
	first, _, _ := bytes.Cut(p[:min(len(p), forwardedMax)], []byte(","))
	for pair := range bytes.SplitSeq(first, []byte(";")) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(pair), []byte("="))
		if stream.EqualFold(name, "for") {
			return ParseAuthority(bytes.Trim(value, `"`))
		}
	}
	return netip.AddrPort{}, false
}
