package tls13

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
)

// secretBytesMax is the longest traffic secret: of SHA-384.
const secretBytesMax = 48

// Secrets takes the application traffic secrets of one handshake from
// crypto/tls, which gives them out in one way only: to Config.KeyLogWriter. Use
// each for one connection; the zero value is ready. The handshake's goroutine
// writes it, and nobody may look before the handshake is done, except that
// goroutine itself, by Known.
type Secrets struct {
	client, server secret
	next           io.Writer // the configuration's own, which goes on working
}

type secret struct {
	b [secretBytesMax]byte
	n int
}

func (s *secret) bytes() []byte { return s.b[:s.n] }

// Tap returns a copy of cfg, for one connection, that tells s its secrets.
// Tickets, session caches and callbacks work as with cfg itself.
func (s *Secrets) Tap(cfg *tls.Config, server bool) *tls.Config {
	if server {
		// A config makes its ticket keys when they are first asked for. This asks, so that the copy has the same keys,
		// and not some of its own under which no ticket of another connection could be read.
		_, _ = cfg.DecryptTicket(nil, tls.ConnectionState{})
	}
	tapped := cfg.Clone()
	s.next = cfg.KeyLogWriter
	tapped.KeyLogWriter = s
	if choose := cfg.GetConfigForClient; choose != nil {
		tapped.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen == nil || err != nil {
				return chosen, err
			}
			chosen = chosen.Clone()
			s.next = chosen.KeyLogWriter
			chosen.KeyLogWriter = s
			return chosen, nil
		}
	}
	return tapped
}

// Write takes a line of the NSS key log format: label, client random and secret (crypto/tls, Config.KeyLogWriter).
func (s *Secrets) Write(line []byte) (int, error) {
	label, rest, _ := bytes.Cut(line, []byte(" "))
	_, value, _ := bytes.Cut(bytes.TrimSuffix(rest, []byte("\n")), []byte(" "))
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		s.client.take(value)
	case "SERVER_TRAFFIC_SECRET_0":
		s.server.take(value)
	}
	if s.next != nil {
		return s.next.Write(line)
	}
	return len(line), nil
}

// take decodes value. What is too long to be a secret is not taken, so that New refuses the session.
func (s *secret) take(value []byte) {
	if hex.DecodedLen(len(value)) > len(s.b) {
		return
	}
	if n, err := hex.Decode(s.b[:], value); err == nil {
		s.n = n
	}
}

// Known reports whether both secrets have come: records written from now on may be protected by them.
func (s *Secrets) Known() bool { return s.client.n > 0 && s.server.n > 0 }

// Clear zeroes the secrets.
func (s *Secrets) Clear() { s.client, s.server = secret{}, secret{} }
