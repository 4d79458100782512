package http2

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// Limits on what a peer may make us keep or repeat.
const (
	// blockFactor times Config.HeadBytesMax bounds a compressed header block. Between one and the other the
	// block is decoded to keep the tables right, and the request answered with 431.
	blockFactor = 2
	// continuationsMax bounds the CONTINUATION frames of one block (CVE-2024-27316 and its kin).
	continuationsMax = 64
	// queuedControlMax bounds the frames that answer or steer while the peer does not read (CVE-2019-9512).
	queuedControlMax = 1000
	// queuedBytesMax bounds everything that is written while the peer does not read. No DATA is, then.
	queuedBytesMax = 4 << 20
	// dataFrameMax bounds our DATA frames, for fairness between streams, even if the peer takes longer ones.
	dataFrameMax = 64 << 10
	// creditPart: a window is renewed when this part of it is used up.
	creditPart = 4
	// keptFactor times Config.ConnWindow may wait for paused Receivers before the connection's window is withheld, too.
	keptFactor = 4
)

// The payloads of our PINGs, to tell their answers apart.
var (
	pingKeepalive = [8]byte{'a', 'l', 'i', 'v', 'e'}
	pingDrain     = [8]byte{'d', 'r', 'a', 'i', 'n'}
)

// Why a connection ended without an error of HTTP/2.
var (
	errPeerClosed = errors.New("http2 connection: the peer closed it")
	errClosed     = errors.New("http2 connection: it was closed by its owner")
)

// role is what a server and a client do differently.
type role interface {
	// headers takes a whole header block.
	headers(id uint32, flags frameFlags, block []byte) *Error
	// writeHead sends the head of x.
	writeHead(x *exchange, h *stream.Head, end bool)
	// ended is called when x has left streams.
	ended(x *exchange)
	// settled is called after the peer's SETTINGS were taken over.
	settled()
	// goAway takes the peer's GOAWAY.
	goAway(last uint32, code ErrCode, debug []byte) *Error
	// drained is called when the peer answered pingDrain.
	drained()
	// lastServed is the highest stream of the peer that was or may be worked on.
	lastServed() uint32
	// broken is called once, when the connection has become useless and before its exchanges are told.
	broken(err error)
}

// core is what a server's and a client's connection have in common.
type core struct {
	conn   Conn
	cfg    Config
	role   role
	server bool
	start  time.Time

	dead bool
	err  error

	peer       settings
	gotPeer    bool // the peer's SETTINGS arrived
	acked      bool // the peer acknowledged ours
	pingsOpen  bool // a keepalive PING is unanswered
	flushing   bool
	lastID     uint32 // the highest stream that the client opened
	streams    map[uint32]*exchange
	guards     guards
	queued     int // control frames written since Full
	queuedSize int // bytes written since Full

	dec decoder
	enc encoder
	// The header block that waits for CONTINUATION, and its stream; 0 if there is none.
	block       []byte
	blockStream uint32
	blockFlags  frameFlags
	blockFrames int

	// recvWindow is what the peer may still send; owed is what it has sent and we have not given back yet;
	// kept is what waits for paused Receivers, withheld the part of kept that has not been added to owed.
	recvWindow, owed, kept, withheld int
	// recvInitial is the window with which streams begin.
	recvInitial int
	// sendWindow is what we may still send; waiting is what all streams have queued.
	sendWindow int64
	waiting    int
	// first and last are the ring of streams with something to send and window for it.
	first, last *exchange

	out [64]byte // where short frames are made
}

func (c *core) begin(conn Conn, r role, server bool, cfg Config) {
	c.conn, c.role, c.server, c.cfg = conn, r, server, cfg.withDefaults()
	c.start = c.cfg.Now()
	c.peer = initialSettings
	c.enc.keepCase = c.cfg.HTTP1
	c.sendWindow = initialWindow
	c.recvWindow = c.cfg.ConnWindow
	c.recvInitial = max(c.cfg.StreamWindow, initialWindow) // a smaller one counts once the peer has heard of it
	c.streams = make(map[uint32]*exchange)
}

// OnEOF takes the end of the peer's sending: HTTP/2 has no use for a half-open
// connection, so its exchanges are aborted and it is closed.
func (c *core) OnEOF() {
	if !c.dead {
		c.end(stream.AbortClosed, errPeerClosed)
		c.conn.Close()
	}
}

// OnClose takes the end of the connection; err is nil if the owner closed it itself.
func (c *core) OnClose(err error) {
	switch {
	case c.dead:
	case err == nil:
		c.end(stream.AbortLocal, errClosed)
	default:
		c.end(stream.AbortReset, err)
	}
}

// OnDrain goes on writing after Conn was Full.
func (c *core) OnDrain() {
	c.cfg.Memory.enter()
	c.queued, c.queuedSize = 0, 0
	c.flush()
	c.cfg.Memory.leave()
}

// Err says why the connection ended or drains; nil while it is usable and after a graceful end.
func (c *core) Err() error { return c.err }

// Ping sends a keepalive PING. It reports false, and sends nothing, if the one
// before is unanswered: the peer has been silent for the owner's whole interval.
func (c *core) Ping() bool {
	if c.dead || c.pingsOpen {
		return false
	}
	c.pingsOpen = true
	c.control(appendPing(c.out[:0], 0, pingKeepalive))
	return true
}

// Tick resets the exchanges that have waited for the peer's window longer than
// Config.StallTimeout. The owner's timer calls it, every few seconds.
func (c *core) Tick() {
	if c.dead || c.waiting == 0 {
		return
	}
	now := c.now()
	for _, x := range c.streams {
		if x.pending.n > 0 && x.flags&isTunnel == 0 && now-x.moved > c.cfg.StallTimeout {
			c.control(appendReset(c.out[:0], x.id, ErrCodeCancel))
			x.abort(stream.AbortTimeout, &Error{Code: ErrCodeCancel, Stream: x.id, Reason: "the peer gave no window"})
		}
	}
}

// now is the time since the connection began.
func (c *core) now() time.Duration { return c.cfg.Now().Sub(c.start) }

// frames obeys the whole frames in p and returns their length.
func (c *core) frames(p []byte) int {
	c.cfg.Memory.enter()
	defer c.cfg.Memory.leave()
	done := 0
	for !c.dead && len(p)-done >= frameHeaderLen {
		h := parseFrameHeader(p[done:])
		if h.length > c.cfg.FrameBytes {
			c.fail(fault(ErrCodeFrameSize, "a frame is longer than SETTINGS_MAX_FRAME_SIZE"))
			break
		}
		end := done + frameHeaderLen + h.length
		if end > len(p) {
			break
		}
		if err := c.frame(h, p[done+frameHeaderLen:end]); err != nil {
			c.fail(err)
		} else if c.queued > queuedControlMax || c.queuedSize > queuedBytesMax {
			c.fail(fault(ErrCodeEnhanceYourCalm, "the peer asks and does not read the answers"))
			c.conn.Abort()
		}
		done = end
	}
	if c.dead {
		return len(p)
	}
	c.credit()
	c.flush()
	return done
}

func (c *core) frame(h frameHeader, p []byte) *Error {
	if !c.gotPeer && (h.typ != frameSettings || h.flags&flagAck != 0) {
		return fault(ErrCodeProtocol, "the first frame is not SETTINGS")
	}
	if c.blockStream != 0 && (h.typ != frameContinuation || h.stream != c.blockStream) {
		return fault(ErrCodeProtocol, "a header block is interrupted")
	}
	switch h.typ {
	case frameData:
		return c.onData(h, p)
	case frameHeaders:
		return c.onHeaders(h, p)
	case framePriority:
		return c.onPriority(h)
	case frameReset:
		return c.onReset(h, p)
	case frameSettings:
		return c.onSettings(h, p)
	case framePushPromise:
		return fault(ErrCodeProtocol, "PUSH_PROMISE, and push is off")
	case framePing:
		return c.onPing(h, p)
	case frameGoAway:
		return c.onGoAway(h, p)
	case frameWindowUpdate:
		return c.onWindowUpdate(h, p)
	case frameContinuation:
		return c.onContinuation(h, p)
	default:
		return c.spend(guardControl, 1)
	}
}

// spend takes n of a guard's budget.
func (c *core) spend(g guard, n int) *Error {
	if c.guards.spend(g, n, c.now()) {
		return nil
	}
	return fault(ErrCodeEnhanceYourCalm, guardNames[g])
}

// idle reports whether a stream has never been opened. Even ones never are, as there is no push.
func (c *core) idle(id uint32) bool { return id%2 == 0 || id > c.lastID }

func (c *core) onHeaders(h frameHeader, p []byte) *Error {
	if h.stream == 0 {
		return fault(ErrCodeProtocol, "HEADERS on stream 0")
	}
	p, err := stripPadding(h.flags, p)
	if err != nil {
		return err
	}
	if h.flags&flagPriority != 0 {
		if len(p) < priorityLen {
			return fault(ErrCodeFrameSize, "HEADERS too short for its priority")
		}
		p = p[priorityLen:]
	}
	if h.flags&flagEndHeaders != 0 {
		return c.role.headers(h.stream, h.flags, p)
	}
	c.block = append(c.block, p...)
	c.blockStream, c.blockFlags, c.blockFrames = h.stream, h.flags, 0
	return nil
}

func (c *core) onContinuation(h frameHeader, p []byte) *Error {
	if c.blockStream == 0 {
		return fault(ErrCodeProtocol, "CONTINUATION without HEADERS")
	}
	c.blockFrames++
	if c.blockFrames > continuationsMax || len(c.block)+len(p) > blockFactor*c.cfg.HeadBytesMax {
		return fault(ErrCodeEnhanceYourCalm, "a header block without end")
	}
	c.block = append(c.block, p...)
	if h.flags&flagEndHeaders == 0 {
		return nil
	}
	block, id := c.block, c.blockStream
	c.block, c.blockStream = nil, 0
	return c.role.headers(id, c.blockFlags, block)
}

// readHead decodes a block into h; what is wrong with the message stands in the reader that it returns.
func (c *core) readHead(kind headKind, block []byte, h *stream.Head) (*headReader, *Error) {
	r := &c.cfg.Memory.reader
	r.begin(kind, h, &c.cfg)
	if err := c.dec.decode(block, r); err != nil {
		return nil, fault(ErrCodeCompression, err.Error())
	}
	r.finish()
	c.guards.earn(guardControl, controlEarns)
	return r, nil
}

// discard decodes a block for a stream that is gone, to keep the tables right (RFC 9113 section 5.1, closed).
func (c *core) discard(block []byte) *Error {
	r, err := c.readHead(kindLate, block, nil)
	if err == nil && c.server && r.opens {
		return fault(ErrCodeProtocol, "HEADERS opens a stream that was open before, or is out of order")
	}
	return err
}

// onPriority ignores PRIORITY but for its form (RFC 9113 section 5.3.2).
func (c *core) onPriority(h frameHeader) *Error {
	switch {
	case h.stream == 0:
		return fault(ErrCodeProtocol, "PRIORITY on stream 0")
	case h.length != priorityLen:
		if x := c.streams[h.stream]; x != nil {
			return c.streamFault(x, ErrCodeFrameSize, "PRIORITY of a wrong size")
		}
		return fault(ErrCodeFrameSize, "PRIORITY of a wrong size")
	}
	return c.spend(guardControl, 1)
}

func (c *core) onReset(h frameHeader, p []byte) *Error {
	switch {
	case h.length != 4:
		return fault(ErrCodeFrameSize, "RST_STREAM of a wrong size")
	case h.stream == 0 || c.idle(h.stream):
		return fault(ErrCodeProtocol, "RST_STREAM on a stream that was never open")
	}
	x := c.streams[h.stream]
	if x == nil {
		return c.spend(guardControl, 1)
	}
	var err *Error
	// A tunnel that stands is a connection of its own: that it is reset says nothing of the others.
	if c.server && c.now()-x.opened < soonReset && x.flags&(isTunnel|sentHead) != isTunnel|sentHead {
		err = c.spend(guardReset, 1)
	}
	code, why := ErrCode(binary.BigEndian.Uint32(p)), stream.AbortReset
	if code == ErrCodeRefusedStream && !c.server {
		why = stream.AbortRefused
	}
	x.abort(why, &Error{Code: code, Stream: h.stream, Remote: true})
	return err
}

func (c *core) onPing(h frameHeader, p []byte) *Error {
	switch {
	case h.length != 8:
		return fault(ErrCodeFrameSize, "PING of a wrong size")
	case h.stream != 0:
		return fault(ErrCodeProtocol, "PING on a stream")
	case h.flags&flagAck == 0:
		c.control(appendPing(c.out[:0], flagAck, [8]byte(p)))
		return c.spend(guardControl, 1)
	}
	switch [8]byte(p) {
	case pingKeepalive:
		c.pingsOpen = false
	case pingDrain:
		c.role.drained()
	default:
	}
	return c.spend(guardControl, 1)
}

func (c *core) onGoAway(h frameHeader, p []byte) *Error {
	switch {
	case h.stream != 0:
		return fault(ErrCodeProtocol, "GOAWAY on a stream")
	case h.length < 8:
		return fault(ErrCodeFrameSize, "GOAWAY of a wrong size")
	}
	if err := c.spend(guardControl, 1); err != nil {
		return err
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	return c.role.goAway(last, ErrCode(binary.BigEndian.Uint32(p[4:])), p[8:])
}

func (c *core) onSettings(h frameHeader, p []byte) *Error {
	switch {
	case h.stream != 0:
		return fault(ErrCodeProtocol, "SETTINGS on a stream")
	case h.flags&flagAck != 0 && h.length != 0, h.length%settingLen != 0:
		return fault(ErrCodeFrameSize, "SETTINGS of a wrong size")
	case h.flags&flagAck != 0:
		c.onSettingsAck()
		return c.spend(guardControl, 1)
	}
	before := c.peer
	for ; len(p) > 0; p = p[settingLen:] {
		id, v := settingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])
		if err := c.peer.set(id, v, !c.server); err != nil {
			return err
		}
		if id == settingTableSize {
			c.enc.setTableSize(v)
		}
	}
	if d := int64(c.peer.initialWindow) - int64(before.initialWindow); d != 0 {
		if err := c.shiftWindows(d); err != nil {
			return err
		}
	}
	c.control(frameHeader{typ: frameSettings, flags: flagAck}.append(c.out[:0]))
	c.gotPeer = true
	c.role.settled()
	return c.spend(guardControl, settingsCost)
}

// control writes a frame that answers or steers.
func (c *core) control(p []byte) {
	c.queued++
	c.write(p)
}

// write writes anything but DATA, which alone waits while the Conn is Full.
func (c *core) write(p []byte) {
	c.queuedSize += len(p)
	c.conn.Write(p)
	if !c.conn.Full() {
		c.queued, c.queuedSize = 0, 0
	}
}

// writeBlock writes the encoder's header block, which begins after room for a
// frame header, as HEADERS and as many CONTINUATIONs as the peer's limit asks for.
func (c *core) writeBlock(id uint32, end bool) {
	block := c.enc.out
	limit := int(c.peer.maxFrameSize)
	n := min(len(block)-frameHeaderLen, limit)
	h := frameHeader{length: n, typ: frameHeaders, stream: id}
	if end {
		h.flags |= flagEndStream
	}
	rest := block[frameHeaderLen+n:]
	if len(rest) == 0 {
		h.flags |= flagEndHeaders
	}
	h.append(block[:0])
	c.write(block[:frameHeaderLen+n])
	for len(rest) > 0 {
		n := min(len(rest), limit)
		h := frameHeader{length: n, typ: frameContinuation, stream: id}
		if n == len(rest) {
			h.flags = flagEndHeaders
		}
		c.write(h.append(c.out[:0]))
		c.write(rest[:n])
		rest = rest[n:]
	}
	c.enc.out = nil
	if m := c.cfg.Memory; cap(block) <= blockKeptMax {
		m.block = block[:0]
	}
	c.guards.earn(guardControl, controlEarns)
}

// startBlock makes the encoder ready for a block.
func (c *core) startBlock() *encoder {
	c.enc.begin(c.cfg.Memory.block)
	return &c.enc
}

// fail ends the connection because of the peer.
func (c *core) fail(err *Error) {
	if c.dead {
		return
	}
	c.conn.Write(appendGoAway(nil, c.role.lastServed(), err.Code, err.Reason))
	c.end(stream.AbortProtocol, err)
	c.conn.Close()
}

// end makes the connection useless: its owner is told, then its exchanges.
func (c *core) end(why stream.Abort, err error) {
	c.dead, c.err = true, err
	c.block, c.blockStream = nil, 0
	c.role.broken(err)
	for _, x := range c.streams {
		x.abort(why, err)
	}
}

// finish closes a drained connection.
func (c *core) finish() {
	if !c.dead {
		c.dead = true
		c.role.broken(nil)
		c.conn.Close()
	}
}
