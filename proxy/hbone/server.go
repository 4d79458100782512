package hbone

import (
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// serverStreams is how many tunnels a peer may have open on one connection.
const serverStreams = 1000

// ServerUser is who decides on the tunnels that peers ask for.
type ServerUser interface {
	// OnTunnel is asked for a tunnel to t.Dst. It calls Accept or Refuse of t before it returns.
	OnTunnel(t *Inbound)
	// OnFault says what the peer did wrong.
	OnFault(s *Server, err error)
	// OnEnd is the end of the connection, after that of its tunnels.
	OnEnd(s *Server, err error)
}

// Server serves tunnels on one connection of a peer. It is the connection's loop.Handler.
type Server struct {
	conn *loop.Conn
	h2   *http2.ServerConn
	user ServerUser
	used time.Time
	head stream.Head // scratch for answers
}

// NewServer serves tunnels on a connection whose peer has proved its identity, and becomes its handler.
func NewServer(c *loop.Conn, cfg http2.Config, user ServerUser) *Server {
	s := &Server{conn: c, user: user, used: c.Loop().Now()}
	cfg = settings(cfg)
	cfg.MaxStreams = serverStreams
	s.h2 = http2.NewServerConn(c, s, cfg, (*serverOwner)(s))
	c.SetHandler(s)
	return s
}

// serverOwner keeps OnFault of the HTTP/2 connection off the Server's own methods.
type serverOwner Server

// OnFault passes on what the peer did wrong.
func (o *serverOwner) OnFault(_ *http2.ServerConn, err *http2.Error) {
	o.user.OnFault((*Server)(o), err)
}

// Accept makes a place for a request, before its head is known.
func (s *Server) Accept(send stream.Sender) stream.Receiver {
	return &Inbound{tunnel: tunnel{send: send, over: s.conn}, server: s}
}

// Active is the number of open tunnels.
func (s *Server) Active() int { return s.h2.Active() }

// Drain asks the peer to open no more tunnels and closes the connection after the last one.
func (s *Server) Drain() { s.h2.Drain() }

// Sweep closes the connection if it has been without tunnels for as long as idle. It is to be called every second or so.
func (s *Server) Sweep(now time.Time, idle time.Duration) {
	switch {
	case s.h2.Active() > 0:
		s.used = now
	case now.Sub(s.used) >= idle+closeWait:
		s.conn.Close()
	case now.Sub(s.used) >= idle:
		s.h2.Drain() // a request may be under way
	}
}

// OnData takes what the peer sends. It, OnEOF, OnDrain and OnClose are those of loop.Handler.
func (s *Server) OnData(_ *loop.Conn, p []byte) int { return s.h2.OnData(p) }

// OnEOF is the end of what the peer sends.
func (s *Server) OnEOF(*loop.Conn) { s.h2.OnEOF() }

// OnDrain goes on writing.
func (s *Server) OnDrain(*loop.Conn) { s.h2.OnDrain() }

// OnClose is the end of the connection.
func (s *Server) OnClose(_ *loop.Conn, err error) {
	s.h2.OnClose(err)
	s.user.OnEnd(s, err)
}

// Inbound is a tunnel that a peer has asked for.
type Inbound struct {
	tunnel
	server *Server
	dst    netip.AddrPort
	client netip.AddrPort
	status int // to refuse with; 0: 503
	said   bool
}

// Dst is where the tunnel is to lead.
func (t *Inbound) Dst() netip.AddrPort { return t.dst }

// Client is whom the peer says that the tunnel is for; invalid if it says nothing. Whether to believe it is the
// caller's business.
func (t *Inbound) Client() netip.AddrPort { return t.client }

// OnHead takes the request.
func (t *Inbound) OnHead(h *stream.Head, end bool) {
	dst, ok := ParseAuthority(h.Authority())
	if string(h.Method()) != "CONNECT" || h.Upgrade || !ok {
		t.Refuse(400)
		return
	}
	t.dst = dst
	if v, ok := h.Get("forwarded"); ok {
		t.client, _ = ParseForwarded(v)
	}
	t.server.user.OnTunnel(t)
	if end {
		t.OnData(nil, true)
	}
}

// Accept makes the connection that the tunnel carries, from src. The peer is told by Grant, or by the first bytes
// written; until then Conn.Abort refuses the tunnel.
func (t *Inbound) Accept(src netip.AddrPort) *loop.Conn {
	t.conn = t.over.Loop().Carry(t, src, t.dst)
	return t.conn
}

// Grant tells the peer that the tunnel stands.
func (t *Inbound) Grant() { t.say(200, false) }

// Refuse tells the peer that there will be no tunnel. It does nothing after Grant.
func (t *Inbound) Refuse(status int) { t.say(status, true) }

// RefuseWith is the status by which Conn.Abort refuses a tunnel that is not granted.
func (t *Inbound) RefuseWith(status int) { t.status = status }

func (t *Inbound) say(status int, end bool) {
	if t.said {
		return
	}
	t.said = true
	h := &t.server.head
	h.Reset()
	h.Status = status
	t.send.SendHead(h, end)
}

// Write sends bytes, which grants the tunnel.
func (t *Inbound) Write(p []byte) {
	t.Grant()
	t.tunnel.Write(p)
}

// CloseWrite ends our bytes, which grants the tunnel.
func (t *Inbound) CloseWrite() {
	t.Grant()
	t.tunnel.CloseWrite()
}

// Abort refuses the tunnel, or resets it if it was granted.
func (t *Inbound) Abort() {
	if !t.said {
		if t.status == 0 {
			t.status = 503
		}
		t.Refuse(t.status)
		return
	}
	t.tunnel.Abort()
}
