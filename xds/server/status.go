package server

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// ClientStatus is what the server knows of one stream, open or past.
type ClientStatus struct {
	Client      Client
	Scope       string
	Incremental bool // false: state of the world
	Since       time.Time
	Until       time.Time // zero while the stream is open
	Cause       string    // why it ended; empty if in good order, or still open
	Types       []TypeStatus
}

// TypeStatus is how far a client is with one type.
type TypeStatus struct {
	TypeURL  string
	Names    int  // subscribed to by name
	Wildcard bool // subscribed to all

	// Synced is true if nothing waits to be sent and the client has accepted the last response.
	Synced bool

	// The last response that was sent, and the last that was accepted. The zero time means never.
	SentVersion, SentNonce string
	SentAt, AckedAt        time.Time

	// The last response that the client refused, and why. It stays after later ones have been accepted, for the
	// client goes on with what it had of the refused resources. The zero time means never.
	NackMessage string
	NackedAt    time.Time
}

// progress is a TypeStatus in the making.
type progress struct {
	TypeStatus
	due      bool   // a request waits for its application, or for an assembly
	queued   int    // answers assembled and not yet sent
	last     uint64 // the nonce of the last answer
	answered uint64 // the highest nonce that the client accepted or refused
	refused  bool   // it refused that
}

// Clients lists the open streams, and those that ended lately, by node and age.
func (s *Server) Clients() []ClientStatus {
	clients := s.departed.list(time.Now())
	s.index.mu.RLock()
	for st := range s.index.streams {
		clients = append(clients, st.status())
	}
	s.index.mu.RUnlock()
	slices.SortFunc(clients, func(a, b ClientStatus) int {
		return cmp.Or(cmp.Compare(a.Client.Node.ID, b.Client.Node.ID), a.Since.Compare(b.Since))
	})
	return clients
}

// join lists a stream, or reports false if the server drains.
func (s *Server) join(st *stream) bool {
	if !s.index.join(st) {
		return false
	}
	s.logger.Info("discovery stream opened", "node", st.client.Node.ID, "peer", st.client.Peer,
		"identity", st.client.Identity, "scope", st.scope)
	return true
}

// namesOf keeps of a node's metadata what says who it was.
func namesOf(metadata map[string]any) map[string]any {
	var kept map[string]any
	for _, key := range []string{"NAME", "NAMESPACE"} {
		if v, ok := metadata[key].(string); ok {
			if kept == nil {
				kept = map[string]any{}
			}
			kept[key] = v
		}
	}
	return kept
}

// part takes a stream that ended from the index to the list of the departed.
func (s *Server) part(st *stream, cause error) {
	last := st.status()
	for _, sub := range st.types {
		names := make([]string, 0, len(sub.named))
		for name := range sub.named {
			names = append(names, name)
		}
		s.index.leave(st, sub.typeURL, names, sub.wildcard)
	}
	s.index.part(st)
	last.Until = time.Now()
	last.Client.Node.Metadata = namesOf(last.Client.Node.Metadata)
	if cause != nil {
		last.Cause = cause.Error()
	}
	s.departed.add(last)
	s.logger.Info("discovery stream ended", "node", st.client.Node.ID, "peer", st.client.Peer, "cause", last.Cause)
}

// acknowledge notes what a request says of an earlier response. A stale request, which a newer response has
// overtaken, must not be applied in the state-of-the-world dialect: the answer to that response will say all. In the
// incremental one what it subscribes to always counts.
func (st *stream) acknowledge(r *request) (stale bool) {
	stale, refused := st.judge(r)
	if refused {
		st.server.logger.Warn("a client refused its configuration and goes on with the last good one; see `lateen status`",
			"node", st.client.Node.ID, "type", r.typeURL, "nonce", r.nonce, "cause", shorten(r.refusal))
	}
	return stale
}

// judge is acknowledge without the log.
func (st *stream) judge(r *request) (stale, refused bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := st.progress[r.typeURL]
	if p == nil {
		p = &progress{TypeStatus: TypeStatus{TypeURL: r.typeURL}}
		st.progress[r.typeURL] = p
	}
	p.due = true // until reckon knows better: what it accepts and what it asks for become known at once
	if r.nonce == "" || p.last == 0 {
		return false, false
	}
	nonce, err := strconv.ParseUint(r.nonce, 10, 64)
	if st.sotw && (err != nil || nonce != p.last) {
		return true, false
	}
	if err != nil || nonce <= p.answered || nonce > p.last {
		return false, false
	}
	p.answered, p.refused = nonce, r.refused
	if r.refused {
		p.NackedAt, p.NackMessage = time.Now(), shorten(r.refusal)
	} else {
		p.AckedAt = time.Now()
	}
	return false, r.refused
}

// shorten cuts a reason to what is kept of it.
func shorten(refusal string) string { return refusal[:min(len(refusal), refusalMaxBytes)] }

// reckon notes what a stream subscribes to.
func (st *stream) reckon(sub *subscription) {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := st.progress[sub.typeURL]
	p.Names, p.Wildcard = len(sub.named), sub.wildcard
	p.due = len(sub.due) > 0 || sub.all
}

// queued notes the answers of an assembly.
func (st *stream) queued(answers []*answer) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.assembling = false
	for _, p := range st.progress {
		p.due = false
	}
	for _, a := range answers {
		st.progress[a.typeURL].queued++
	}
}

// number gives an answer its nonce, just before it is written.
func (st *stream) number(a *answer) {
	st.nonce++
	a.nonce = strconv.FormatUint(st.nonce, 10)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.progress[a.typeURL].last = st.nonce
}

// sent notes an answer that was written.
func (st *stream) sent(a *answer) {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := st.progress[a.typeURL]
	p.queued--
	p.SentVersion, p.SentNonce, p.SentAt = a.version, a.nonce, time.Now()
}

// status describes the stream as it is.
func (st *stream) status() ClientStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	c := ClientStatus{Client: *st.client, Scope: st.scope, Incremental: !st.sotw, Since: st.began}
	for typeURL, p := range st.progress {
		t := p.TypeStatus
		t.Synced = !st.assembling && !p.due && p.queued == 0 && st.marked[typeURL] == nil && p.answered == p.last && !p.refused
		c.Types = append(c.Types, t)
	}
	slices.SortFunc(c.Types, func(a, b TypeStatus) int { return cmp.Compare(a.TypeURL, b.TypeURL) })
	return c
}

// departed keeps the status of streams that ended lately, oldest first.
type departed struct {
	max  int
	keep time.Duration

	mu      sync.Mutex
	streams []ClientStatus
}

func (d *departed) add(c ClientStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams = append(d.streams, c)
	d.forget(c.Until)
}

func (d *departed) list(now time.Time) []ClientStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(now)
	return slices.Clone(d.streams)
}

// forget drops what is too old or too much. The lock is held.
func (d *departed) forget(now time.Time) {
	n := max(0, len(d.streams)-d.max)
	for n < len(d.streams) && now.Sub(d.streams[n].Until) > d.keep {
		n++
	}
	d.streams = slices.Delete(d.streams, 0, n)
}
