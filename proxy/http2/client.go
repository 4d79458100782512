package http2

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// unknownMaxStreams is how many streams a client opens before it has heard of the server's limit.
const unknownMaxStreams = 100

// Why an exchange that was not yet sent is refused.
var (
	errDraining  = errors.New("http2 connection: it drains and opens no more streams")
	errNoUpgrade = errors.New("http2 connection: the server does not offer extended CONNECT; send upgrades over HTTP/1.1")
)

// ClientOwner is who keeps a ClientConn, a pool as a rule. Its methods are called
// from within the connection's, so that they may open exchanges but should not
// do more than keep books.
type ClientOwner interface {
	// OnRoom says that Available has risen from 0, or that the server's SETTINGS have arrived.
	OnRoom(c *ClientConn)
	// OnDraining says that the server has sent GOAWAY: nothing can be opened any more, what is open goes on.
	// Err is nil if the server is just leaving. Exchanges that it did not take are aborted after this.
	OnDraining(c *ClientConn)
	// OnDead says, once, that the connection is useless. Err is nil after draining. Exchanges are aborted after this.
	OnDead(c *ClientConn)
}

// ClientConn is the client's side of a connection. Its OnData, OnEOF, OnClose
// and OnDrain are to be called as the loop's Handler is; the bytes that OnData
// did not consume are to be offered again, with more. The loop must
// be able to keep 16 KiB and 9 bytes.
type ClientConn struct {
	core
	owner ClientOwner
	// opening are exchanges whose head is not yet sent: they have no identifier, since those go out in order.
	opening  []*exchange
	draining bool
	goneID   uint32 // the last stream that the server's GOAWAY promised to serve
}

// NewClientConn begins a connection on conn by sending the preface and our
// SETTINGS. Exchanges may be opened at once.
func NewClientConn(conn Conn, cfg Config, owner ClientOwner) *ClientConn {
	c := &ClientConn{owner: owner, goneID: maxStreamID}
	c.begin(conn, c, false, cfg)
	conn.Write([]byte(Preface))
	conn.Write(appendSettings(c.out[:0], &c.cfg, false))
	return c
}

// OnData takes all bytes that are unread and returns how many it consumed.
func (c *ClientConn) OnData(p []byte) int { return c.frames(p) }

// Available is how many exchanges can be opened now.
func (c *ClientConn) Available() int {
	if c.dead || c.draining {
		return 0
	}
	limit := min(c.cfg.MaxStreams, unknownMaxStreams)
	if c.gotPeer {
		limit = int(min(int64(c.cfg.MaxStreams), int64(c.peer.maxStreams)))
	}
	return max(0, limit-c.Active())
}

// Upgrades reports whether the server takes upgrades (RFC 8441), and whether that is known yet: OnRoom follows.
func (c *ClientConn) Upgrades() (offered, known bool) { return c.peer.extendedConnect, c.gotPeer }

// Active is the number of open exchanges, those without a head included.
func (c *ClientConn) Active() int { return len(c.streams) + len(c.opening) }

// Open begins an exchange whose response goes to r; it reports false if none can be opened.
// The stream begins with SendHead; before, the exchange only holds its place.
func (c *ClientConn) Open(r stream.Receiver) (stream.Sender, bool) {
	if c.Available() == 0 {
		return nil, false
	}
	x := c.cfg.Memory.takeExchange()
	x.c, x.recv, x.left = &c.core, r, -1
	c.opening = append(c.opening, x)
	return x, true
}

// Drain opens no more exchanges and closes the connection after the last one.
func (c *ClientConn) Drain() {
	if !c.dead {
		c.draining = true
		c.finishDrained()
	}
}

func (c *ClientConn) finishDrained() {
	if c.draining && !c.dead && c.Active() == 0 {
		c.control(appendGoAway(c.out[:0], 0, ErrCodeNo, ""))
		c.finish()
	}
}

func (c *ClientConn) writeHead(x *exchange, h *stream.Head, end bool) {
	switch {
	case h.Upgrade && !c.gotPeer: // whether the server takes it, its SETTINGS say
		x.held = c.cfg.Memory.takeHead()
		x.held.CopyFrom(h)
		return
	case h.Upgrade && !c.peer.extendedConnect:
		x.abort(stream.AbortRefused, errNoUpgrade)
		return
	}
	c.unopen(x)
	if c.lastID == 0 {
		x.id = 1
	} else {
		x.id = c.lastID + 2
	}
	c.lastID = x.id
	c.streams[x.id] = x
	x.window, x.sendWindow = c.recvInitial, int64(c.peer.initialWindow)
	x.opened = c.now()
	switch {
	case h.Upgrade:
		protocol, _ := h.Get("upgrade")
		x.protocol = string(protocol)
		x.flags |= isUpgrade
	case string(h.Method()) == "CONNECT":
		x.flags |= isTunnel
	case string(h.Method()) == "HEAD":
		x.flags |= isHead
	}
	c.startBlock().request(h, c.cfg.Scheme)
	c.writeBlock(x.id, end)
	c.guards.earn(guardWindow, windowEarns)
	if end {
		x.localEnd()
	}
	if c.lastID == maxStreamID && !c.draining { // identifiers are used up (RFC 9113 section 5.1.1)
		c.draining = true
		c.owner.OnDraining(c)
		c.refuseOpening(errDraining)
		c.finishDrained()
	}
}

// sendHeld sends what was given to x while its head was held back.
func (x *exchange) sendHeld() {
	switch {
	case x.over():
	case x.pending.n > 0:
		x.queue()
	case x.flags&endQueued != 0:
		x.c.dataHeader(x, 0, 0, true)
		x.localEnd()
	}
}

func (c *ClientConn) unopen(x *exchange) {
	if i := slices.Index(c.opening, x); i >= 0 {
		c.opening = slices.Delete(c.opening, i, i+1)
	}
}

func (c *ClientConn) ended(x *exchange) {
	c.unopen(x)
	if c.Available() == 1 {
		c.owner.OnRoom(c)
	}
	c.finishDrained()
}

func (c *ClientConn) settled() {
	for _, x := range slices.Clone(c.opening) {
		if h := x.held; h != nil {
			x.held = nil
			c.writeHead(x, h, false)
			c.cfg.Memory.giveHead(h)
			x.sendHeld()
		}
	}
	if c.Available() > 0 {
		c.owner.OnRoom(c)
	}
}

func (c *ClientConn) drained() {}

func (c *ClientConn) lastServed() uint32 { return 0 }

func (c *ClientConn) broken(err error) {
	c.owner.OnDead(c)
	c.refuseOpening(err)
}

// refuseOpening aborts what was never sent.
func (c *ClientConn) refuseOpening(err error) {
	for len(c.opening) > 0 {
		c.opening[len(c.opening)-1].abort(stream.AbortRefused, err)
	}
}

func (c *ClientConn) goAway(last uint32, code ErrCode, debug []byte) *Error {
	if last > c.goneID {
		return fault(ErrCodeProtocol, "GOAWAY promises more than the one before")
	}
	c.goneID = last
	var err error
	if code != ErrCodeNo {
		err = &Error{Code: code, Remote: true, Reason: string(debug)}
	}
	if !c.draining {
		c.draining, c.err = true, err
		c.owner.OnDraining(c)
	}
	if err == nil {
		err = errDraining
	}
	c.refuseOpening(err)
	for id, x := range c.streams {
		if id > last {
			x.abort(stream.AbortRefused, fmt.Errorf("http2 stream %d was not taken: %w", id, err))
		}
	}
	c.finishDrained()
	return nil
}

func (c *ClientConn) headers(id uint32, flags frameFlags, block []byte) *Error {
	if c.idle(id) {
		return fault(ErrCodeProtocol, "HEADERS on a stream that was never open")
	}
	x := c.streams[id]
	switch {
	case x == nil:
		return c.discard(block)
	case x.flags&gotHead != 0:
		return x.readTrailers(flags, block)
	}
	h := c.cfg.Memory.takeHead()
	defer c.cfg.Memory.giveHead(h)
	r, err := c.readHead(kindResponse, block, h)
	switch {
	case err != nil:
		return err
	case r.tooLarge:
		c.control(appendReset(c.out[:0], id, ErrCodeCancel))
		x.abort(stream.AbortTooLarge, &Error{Code: ErrCodeCancel, Stream: id, Reason: "the response's head is too large"})
		return nil
	case r.fault != "":
		return c.streamFault(x, ErrCodeProtocol, r.fault)
	}
	end := flags&flagEndStream != 0
	if h.Status < 200 {
		return x.onInterim(h, end)
	}
	return x.onResponse(h, end)
}

func (x *exchange) onInterim(h *stream.Head, end bool) *Error {
	if end || h.Status == 101 {
		return x.c.streamFault(x, ErrCodeProtocol, "a 1xx response with END_STREAM, or 101")
	}
	if x.interims++; x.interims > interimMax {
		return x.c.streamFault(x, ErrCodeEnhanceYourCalm, "1xx responses without end")
	}
	x.recv.OnInterim(h)
	return nil
}

// onResponse takes the head of the final response.
func (x *exchange) onResponse(h *stream.Head, end bool) *Error {
	x.flags |= gotHead
	success := h.Status < 300
	switch {
	case x.flags&isHead != 0 || h.Status == 204 || h.Status == 304:
		x.left = 0
	case x.flags&(isTunnel|isUpgrade) != 0 && success:
		x.flags |= isTunnel
		dropLength(h)
		if x.flags&isUpgrade != 0 {
			h.Status, h.Upgrade = 101, true
			h.AddString("upgrade", x.protocol)
		}
	default:
		x.flags &^= isTunnel
		x.left = h.ContentLength
		if end && x.left > 0 {
			return x.c.streamFault(x, ErrCodeProtocol, "END_STREAM differs from Content-Length")
		}
	}
	if end {
		x.flags |= gotEnd | toldEnd
	}
	x.recv.OnHead(h, end)
	if end {
		x.remoteEnd()
	}
	return nil
}
