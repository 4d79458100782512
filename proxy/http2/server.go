package http2

import (
	"errors"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// ServerOwner is who keeps a ServerConn.
type ServerOwner interface {
	// OnFault says what the client did wrong, where no Receiver can be told: a request that was refused before it
	// reached the Server, or, with Error.Stream 0, why the connection ends. It is called before anything is aborted.
	OnFault(c *ServerConn, err *Error)
}

// ServerConn is the server's side of a connection. Its OnData, OnEOF, OnClose
// and OnDrain are to be called as the loop's Handler is; the bytes that OnData
// did not consume are to be offered again, with more. The loop must
// be able to keep 16 KiB and 9 bytes.
type ServerConn struct {
	core
	server   stream.Server
	owner    ServerOwner
	prefaced bool
	draining bool
	// final is the last stream that the final GOAWAY promised to serve.
	final    uint32
	hasFinal bool
}

// NewServerConn begins a connection on conn by sending our SETTINGS and asks
// server for the Receiver of each request. The client's preface is expected as
// the first bytes, also after ALPN and after detection by DetectPreface.
func NewServerConn(conn Conn, server stream.Server, cfg Config, owner ServerOwner) *ServerConn {
	s := &ServerConn{server: server, owner: owner}
	s.begin(conn, s, true, cfg)
	conn.Write(appendSettings(s.out[:0], &s.cfg, true))
	return s
}

// OnData takes all bytes that are unread and returns how many it consumed.
func (s *ServerConn) OnData(p []byte) int {
	if s.prefaced || s.dead {
		return s.frames(p)
	}
	match, more := DetectPreface(p)
	if more {
		return 0
	}
	if !match {
		s.fail(fault(ErrCodeProtocol, "no HTTP/2 preface"))
		return len(p)
	}
	s.prefaced = true
	return len(Preface) + s.frames(p[len(Preface):])
}

// Active is the number of open exchanges.
func (s *ServerConn) Active() int { return len(s.streams) }

// Drain begins a graceful shutdown (RFC 9113 section 6.8): the client is asked
// to open no more streams; when its answer shows that it knows, streams beyond
// those open by then are ignored, and after the last of them the connection is
// closed. The owner closes it earlier when its patience ends.
func (s *ServerConn) Drain() {
	if s.draining || s.dead {
		return
	}
	s.draining = true
	s.control(appendGoAway(s.out[:0], maxStreamID, ErrCodeNo, ""))
	s.control(appendPing(s.out[:0], 0, pingDrain))
}

func (s *ServerConn) drained() {
	if !s.draining || s.hasFinal {
		return
	}
	s.final, s.hasFinal = s.lastID, true
	s.control(appendGoAway(s.out[:0], s.final, ErrCodeNo, ""))
	s.finishDrained()
}

func (s *ServerConn) finishDrained() {
	if s.hasFinal && len(s.streams) == 0 {
		s.finish()
	}
}

func (s *ServerConn) ended(x *exchange) {
	if x.flags&sentEnd != 0 {
		s.guards.earn(guardReset, 1)
	}
	s.finishDrained()
}

func (s *ServerConn) lastServed() uint32 {
	if s.hasFinal {
		return s.final
	}
	return s.lastID
}

func (s *ServerConn) settled() {}

func (s *ServerConn) broken(err error) {
	if e, ok := errors.AsType[*Error](err); ok {
		s.owner.OnFault(s, e)
	}
}

// goAway ignores the client's GOAWAY: it speaks of streams that we would open, and the client closes when it is done.
func (s *ServerConn) goAway(uint32, ErrCode, []byte) *Error { return nil }

func (s *ServerConn) headers(id uint32, flags frameFlags, block []byte) *Error {
	if id%2 == 0 {
		return fault(ErrCodeProtocol, "a client opened an even stream")
	}
	if x := s.streams[id]; x != nil {
		return x.readTrailers(flags, block)
	}
	if id <= s.lastID {
		return s.discard(block)
	}
	s.lastID = id
	h := s.cfg.Memory.takeHead()
	defer s.cfg.Memory.giveHead(h)
	r, err := s.readHead(kindRequest, block, h)
	end := flags&flagEndStream != 0
	switch {
	case err != nil:
		return err
	case s.hasFinal:
		return nil
	case r.fault == "" && end && h.ContentLength > 0:
		r.fault = "END_STREAM differs from Content-Length"
	}
	switch {
	case r.fault != "":
		return s.refuse(id, ErrCodeProtocol, r.fault)
	case len(s.streams) >= s.cfg.MaxStreams:
		return s.refuse(id, ErrCodeRefusedStream, "more streams than SETTINGS_MAX_CONCURRENT_STREAMS")
	case r.tooLarge:
		return s.refuseLarge(id, end)
	}
	s.open(id, r, h, end)
	return nil
}

// open begins an exchange.
func (s *ServerConn) open(id uint32, r *headReader, h *stream.Head, end bool) {
	x := s.cfg.Memory.takeExchange()
	x.c, x.id, x.flags, x.left, x.opened = &s.core, id, gotHead, h.ContentLength, s.now()
	x.window, x.sendWindow = s.recvInitial, int64(s.peer.initialWindow)
	if r.method.s == "CONNECT" || h.Upgrade {
		x.flags |= isTunnel
	}
	if h.Upgrade {
		x.flags |= isUpgrade
	}
	if end {
		x.flags |= gotEnd
	} else if x.left > 0 && x.left <= int64(s.cfg.StreamWindow) {
		x.flags |= isShort
	}
	s.streams[id] = x
	s.guards.earn(guardWindow, windowEarns)
	x.recv = s.server.Accept(x)
	if x.flags&closed != 0 {
		return
	}
	if end {
		x.flags |= toldEnd
	}
	x.recv.OnHead(h, end)
}

// refuse answers a request that reaches nobody.
func (s *ServerConn) refuse(id uint32, code ErrCode, reason string) *Error {
	s.control(appendReset(s.out[:0], id, code))
	s.owner.OnFault(s, &Error{Code: code, Stream: id, Reason: reason})
	return s.spend(guardReset, 1)
}

// dateFormat is that of the field Date (RFC 9110 section 5.6.7).
const dateFormat = "Mon, 02 Jan 2006 15:04:05 GMT"

// refuseLarge answers 431 (RFC 9113 section 10.5.1).
func (s *ServerConn) refuseLarge(id uint32, end bool) *Error {
	b := s.startBlock()
	b.field(":status", "431")
	b.field("date", s.cfg.Now().UTC().Format(dateFormat))
	s.writeBlock(id, true)
	if !end {
		s.control(appendReset(s.out[:0], id, ErrCodeNo))
	}
	s.owner.OnFault(s, &Error{Code: ErrCodeNo, Stream: id, Reason: "the head is too large; answered 431"})
	return s.spend(guardReset, 1)
}

func (s *ServerConn) writeHead(x *exchange, h *stream.Head, end bool) {
	if h.Status != 101 && (h.Status < 200 || h.Status > 299) {
		x.flags &^= isTunnel
	}
	s.startBlock().response(h, x.flags&isUpgrade != 0)
	s.writeBlock(x.id, end)
	if end {
		x.localEnd()
	}
}
