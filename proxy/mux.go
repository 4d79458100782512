package proxy

import (
	"crypto/tls"
	"errors"
	"time"

	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// This file is how requests of HTTP/1.1 share connections to other proxies of ours, as streams of HTTP/2
// (docs/decisions/007-mux.md). For limits, retries and telemetry they remain requests of HTTP/1.1.

const (
	// muxStreams is how many requests share one connection; beyond it another one is made.
	muxStreams = 100
	// muxResetsMax is how many more requests may be given up on a connection than are answered on it before it is used no
	// more: half of what the peer's guard against rapid resets allows at once, as those under way may be given up too.
	muxResetsMax = 250
)

// muxMode is what is known of how an endpoint takes requests of HTTP/1.1.
type muxMode uint8

const (
	muxUntried muxMode = iota // no connection has shown it yet
	muxTaken                  // it takes many on one connection
	muxRefused                // one after another
)

// muxing is a pool's sharing of connections.
type muxing struct {
	mode    muxMode
	dialing int // of pool.dialing, those that are to be shared
	plain   int // of pool.waiters, those that need a connection of their own
}

// learn notes what the endpoint has chosen.
func (m *muxing) learn(c *loop.Conn) {
	m.mode = muxRefused
	if state := c.TLS(); state != nil && state.NegotiatedProtocol == alpnMux {
		m.mode = muxTaken
	}
}

// lacks reports whether those who wait need one more connection, and whether that is to be shared. Of an endpoint that
// is not known yet one connection is made first: it shows whether it will do for all.
func (p *pool) lacks() (mux, lacking bool) {
	m := &p.mux
	all := len(p.waiters)
	sharing := all - m.plain
	switch {
	case p.key.http2:
		return false, all > 0 && p.dialing == 0
	case m.mode == muxRefused:
		return sharing > 0, p.dialing < all
	case m.plain > p.dialing-m.dialing:
		return false, true
	case sharing == 0 || m.mode == muxUntried && m.dialing > 0:
		return false, false
	}
	for _, u := range p.multi {
		if u.free() {
			return false, false // they wait for the limit of connections
		}
	}
	each := muxStreams
	if limit := p.key.plan.Limits.RequestsPerConnection; limit > 0 {
		each = min(each, int(limit))
	}
	return true, m.dialing*each < sharing
}

// muxed is what is known of a connection that is shared.
type muxed struct {
	credential *tls.Certificate // what we proved us by
	resets     int              // requests given up, less those that were answered
}

// share makes a connection that has just been made one for many requests.
func (u *upstream) share() {
	p := u.pool
	u.mux = &muxed{credential: p.w.p.holder.Current().Certificate}
	u.h2 = http2.NewClientConn(u.c, p.w.h2Mux(), h2Client{u})
	p.multi = append(p.multi, u)
	u.c.SetHandler(h2Client{u})
	u.heed()
	if p.limited() { // its requests count, each as the connection that it would have had
		if u.counted {
			u.counted = false
			p.t.cluster.ReleaseConnection()
		}
		u.left = true
		p.open--
	}
}

// limited reports whether the cluster has a limit of connections.
func (p *pool) limited() bool { return p.key.plan.Limits.Connections > 0 }

// lane is a request's place on a shared connection. It stands for the connection that the request would have to itself
// without sharing: against a cluster's limit of connections, lanes count in the place of what they share.
type lane struct {
	pool    *pool // nil: there is no limit, or the connection is not shared
	counted bool  // against the cluster's limit
}

// enter takes a lane for an attempt, where connections are limited; false if there is none. As with connections, a pool
// that has none may go beyond the limit by one.
func (p *pool) enter(u *upstream, a *attempt) bool {
	if u.mux == nil || !p.limited() {
		return true
	}
	counted := p.t.cluster.AcquireConnection()
	if !counted && p.open > 0 {
		return false
	}
	p.open++
	a.lane = lane{p, counted}
	return true
}

// leave gives the lane to those who wait for one.
func (l lane) leave() {
	p := l.pool
	if p == nil {
		return
	}
	p.open--
	if l.counted {
		p.t.cluster.ReleaseConnection()
	}
	if len(p.waiters) == 0 {
		return
	}
	for _, u := range p.multi {
		if u.free() {
			p.serve(u)
			return
		}
	}
	p.dial()
}

// endOfConnection reports whether an exchange was aborted because its connection ended, and not its stream alone.
func endOfConnection(why stream.Abort, err error) bool {
	e, ok := errors.AsType[*http2.Error](err)
	return (why == stream.AbortClosed || why == stream.AbortReset || why == stream.AbortLocal) && (!ok || e.Stream == 0)
}

// refusedStream reports whether an exchange that was refused was so by the peer's word about its stream, and not because the
// connection takes no more of them.
func refusedStream(err error) bool {
	e, ok := errors.AsType[*http2.Error](err)
	return ok && e.Stream != 0
}

// gaveUp is told when a request is given up on a connection. One that has been silent since a request was sent that
// timed out is not used for others, as one of HTTP/1.1 is not after a timeout; nor is one before its peer takes it for an
// attack that many clients leave.
func (u *upstream) gaveUp(why stream.Abort, started time.Time) {
	if u.mux == nil {
		return
	}
	u.mux.resets++
	if u.mux.resets >= muxResetsMax || why == stream.AbortTimeout && u.silence != nil && u.silence.heardAt.Before(started) {
		u.retire()
	}
}

// answered is told when a request has come to its end.
func (u *upstream) answered() {
	if u.mux != nil && u.mux.resets > 0 {
		u.mux.resets--
	}
}

// outlived reports that a connection that is shared was made with a certificate that has been replaced since.
func (u *upstream) outlived() bool {
	return u.mux != nil && u.mux.credential != u.pool.w.p.holder.Current().Certificate
}
