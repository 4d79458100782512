package proxy

import "time"

// This file finds out that the other end of a connection has gone without a word, as when its node has lost its power:
// nothing comes back then, not even a refusal, and TCP itself goes on to send for a quarter of an hour.

const (
	// silenceAsk is how long a proxy of the mesh may say nothing while requests are under way until it is asked for a sign
	// of life (PING, RFC 9113 section 6.7).
	silenceAsk = 2 * time.Second
	// silenceDoubt is how long it has to answer until new requests go elsewhere, silenceEnd until it is taken for lost, and
	// with it what was under way; silenceStill if its kernel acknowledges what we send, so that it may merely lack a processor.
	silenceDoubt = 2 * time.Second
	silenceEnd   = 8 * time.Second
	silenceStill = 30 * time.Second
)

// silence is what is known of whether the other end of an HTTP/2 connection lives.
type silence struct {
	heardAt time.Time // of it
	askedAt time.Time // zero: it has said something since
	doubted bool      // takes no new requests
}

// heed has a connection's silences noticed if there is a proxy of the mesh at its other end. Others may take our asking for
// an attack.
func (u *upstream) heed() {
	if t := &u.pool.t; t.peer() && !t.tunnelled() {
		u.silence = &silence{heardAt: u.pool.w.loop.Now()}
	}
}

// heard notes that the peer lives.
func (u *upstream) heard() {
	s := u.silence
	if s == nil {
		return
	}
	s.heardAt = u.pool.w.loop.Now()
	if s.askedAt.IsZero() {
		return
	}
	s.askedAt = time.Time{}
	if !s.doubted {
		return
	}
	s.doubted = false
	p := u.pool
	if ep := p.t.ep; ep != nil {
		ep.Found()
	}
	if !u.retired {
		p.serve(u)
	}
}

// listen asks a silent peer for a sign of life, and leaves it if it gives none.
func (u *upstream) listen(now time.Time) {
	s := u.silence
	switch {
	case s == nil:
		return
	case s.askedAt.IsZero():
		if u.h2.Active() > 0 && now.Sub(s.heardAt) >= silenceAsk {
			s.askedAt = now
			u.h2.Ping()
		}
		return
	case now.Sub(s.askedAt) < silenceDoubt:
		return
	}
	s.doubted = true
	if ep := u.pool.t.ep; ep != nil {
		ep.Lost(now)
	}
	if silent := now.Sub(s.askedAt); silent >= silenceStill || silent >= silenceEnd && u.c.Unheard() {
		u.c.Abort()
	}
}
