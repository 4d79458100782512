package identity

import (
	"bytes"
	"crypto/tls"
	"slices"
	"sync"
	"time"
)

// ticketTag marks our entry in a session's extra data; the bundle's Version
// follows it.
const ticketTag = "lateen bundle "

// bindTickets makes the server's session tickets worthless under any bundle but
// the one they were made under: such a ticket is put aside, and the client
// shakes hands in full. VerifyConnection, which crypto/tls calls for resumed
// sessions too, covers the instant between reading one bundle and another.
func bindTickets(cfg *tls.Config, h *Holder) {
	cfg.WrapSession = func(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
		state.Extra = append(state.Extra, ticketExtra(h))
		return cfg.EncryptTicket(cs, state)
	}
	cfg.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		state, err := cfg.DecryptTicket(ticket, cs)
		if err != nil || state == nil {
			return nil, err
		}
		want := ticketExtra(h)
		if !slices.ContainsFunc(state.Extra, func(e []byte) bool { return bytes.Equal(e, want) }) {
			return nil, nil
		}
		return state, nil
	}
}

func ticketExtra(h *Holder) []byte {
	v := h.Current().Bundle.Version()
	return append([]byte(ticketTag), v[:]...)
}

// sessionsMax is the most sessions one client configuration remembers. A mesh
// client has one server name per configuration, hence one session.
const sessionsMax = 4

// resumptionMargin is how long before the end of the other side's certificate neither side resumes a session any more. It
// is what a handshake takes at the most, as good as always.
const resumptionMargin = 2 * time.Second

// resumptionTime is the clock by which crypto/tls judges whether a session may be resumed; certificates are verified by
// the real one. It is ahead, because the certificate is verified again at the end of the handshake: one that ended
// meanwhile would fail it, although a full handshake would be shown the new one.
func resumptionTime() time.Time { return time.Now().Add(resumptionMargin) }

// sessions is the session cache of one client configuration. It forgets
// everything when the holder's credentials change: under a new bundle an old
// session proves nothing, and under a new certificate it would still speak for
// the old one.
type sessions struct {
	holder *Holder

	mu    sync.Mutex
	of    *Credentials
	cache tls.ClientSessionCache
}

// ForConnection returns a configuration of ClientTLS for one connection that begins now. A ticket that arrives on it after
// the holder's credentials have changed is not remembered: its session would prove what was so before.
func ForConnection(cfg *tls.Config) *tls.Config {
	s, ok := cfg.ClientSessionCache.(*sessions)
	if !ok {
		return cfg
	}
	cfg = cfg.Clone()
	cfg.ClientSessionCache = s.current()
	return cfg
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) { return s.current().Get(key) }

// Put implements tls.ClientSessionCache.
func (s *sessions) Put(key string, cs *tls.ClientSessionState) { s.current().Put(key, cs) }

func (s *sessions) current() tls.ClientSessionCache {
	now := s.holder.Current()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil || s.of != now {
		s.of, s.cache = now, tls.NewLRUClientSessionCache(sessionsMax)
	}
	return s.cache
}
