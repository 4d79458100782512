package trace

import (
	cryptorand "crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
)

// IDs makes ids that nobody can predict, without a system call for each. It
// belongs to one goroutine.
type IDs struct {
	source *rand.ChaCha8
}

// NewIDs returns a source that is seeded by the system's.
func NewIDs() *IDs {
	var seed [32]byte
	_, _ = cryptorand.Read(seed[:]) // never fails (crypto/rand)
	return &IDs{source: rand.NewChaCha8(seed)}
}

// Trace returns a new trace id.
func (g *IDs) Trace() (t ID) {
	for t == (ID{}) {
		binary.BigEndian.PutUint64(t[:8], g.source.Uint64())
		binary.BigEndian.PutUint64(t[8:], g.source.Uint64())
	}
	return t
}

// Span returns a new span id.
func (g *IDs) Span() (s SpanID) {
	for s == (SpanID{}) {
		binary.BigEndian.PutUint64(s[:], g.source.Uint64())
	}
	return s
}

// AppendRequestID appends a new request id, a random UUID (RFC 9562 section 5.4).
func (g *IDs) AppendRequestID(dst []byte) []byte {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], g.source.Uint64())
	binary.BigEndian.PutUint64(u[8:], g.source.Uint64())
	u[6] = u[6]&0x0f | 0x40 // version 4
	u[8] = u[8]&0x3f | 0x80 // variant
	var text [36]byte
	hex.Encode(text[:8], u[:4])
	hex.Encode(text[9:13], u[4:6])
	hex.Encode(text[14:18], u[6:8])
	hex.Encode(text[19:23], u[8:10])
	hex.Encode(text[24:], u[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return append(dst, text[:]...)
}
