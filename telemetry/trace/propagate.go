package trace

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
)

// Header names.
const (
	// HeaderRequestID is the request's own id.
	HeaderRequestID   = "x-request-id"
	headerTraceparent = "traceparent"
	headerTracestate  = "tracestate"
)

// requestIDMaxBytes bounds an incoming request id that is kept.
const requestIDMaxBytes = 256

// Carrier is a request's headers. Names are in lower case; a value that Get
// returns is valid until the headers change, and Set copies the value that it is
// given and replaces every field of that name.
type Carrier interface {
	Get(name string) ([]byte, bool)
	Set(name string, value []byte)
	Del(name string) bool
}

// Formats is a set of ways to write trace context.
type Formats uint8

// The formats.
const (
	// FormatB3 writes the x-b3-* headers: Istio's Zipkin provider.
	FormatB3 Formats = 1 << iota
	// FormatB3Single writes the header b3.
	FormatB3Single
	// FormatW3C writes traceparent and passes tracestate on: Istio's OpenTelemetry provider.
	FormatW3C
)

// Sampler decides about traces on which nobody has decided yet. It decides by
// the trace id, so that every proxy with the same percentage decides the same, and one
// with a higher percentage keeps what one with a lower keeps. The zero value keeps none.
//
// Source: OpenTelemetry specification, consistent probability sampling; the
// randomness is in the trace id's last 56 bits (W3C Trace Context, level 2).
type Sampler struct{ kept uint64 }

const (
	randomBits  = 56
	randomRange = 1 << randomBits
)

// NewSampler returns a sampler that keeps the given percentage, 0 to 100, of traces.
func NewSampler(percent float64) Sampler {
	if percent <= 0 || math.IsNaN(percent) {
		return Sampler{}
	}
	return Sampler{kept: uint64(min(percent, 100) / 100 * randomRange)}
}

// Decide returns Keep or Drop.
func (s Sampler) Decide(t ID) Decision {
	randomness := binary.BigEndian.Uint64(t[8:]) & (randomRange - 1)
	if randomness >= randomRange-s.kept {
		return Keep
	}
	return Drop
}

// Propagator reads and writes trace context for one event loop. Only the
// goroutine that owns it may call its methods.
type Propagator struct {
	// Formats are those to write. They are also those to read: B3, in either form, before W3C.
	Formats Formats
	// Sampler decides where the request does not say.
	Sampler Sampler
	// IDs makes new ids.
	IDs *IDs
	// buf is memory for values, because what is given to a Carrier would otherwise be allocated.
	buf []byte
}

// Begin returns the context of a new span for an incoming request: a child of the
// span that the request names, or the root of a new trace. The decision of
// whoever sent the request is honoured.
func (p *Propagator) Begin(h Carrier) Context {
	c := p.extract(h)
	if c.Trace == (ID{}) {
		c.Trace, c.Random, c.Span = p.IDs.Trace(), true, SpanID{}
	}
	if c.Decision == Undecided {
		c.Decision = p.Sampler.Decide(c.Trace)
	}
	return p.Child(c)
}

// Child returns the context of a new span that is part of c's.
func (p *Propagator) Child(c Context) Context {
	c.Parent, c.Span = c.Span, p.IDs.Span()
	return c
}

func (p *Propagator) extract(h Carrier) Context {
	if p.Formats&(FormatB3|FormatB3Single) != 0 {
		if single, ok := h.Get(headerB3); ok {
			if c, ok := ParseB3(single); ok {
				return c
			}
		}
		if c, ok := parseB3Headers(h); ok {
			return c
		}
	}
	if p.Formats&FormatW3C == 0 {
		return Context{}
	}
	parent, _ := h.Get(headerTraceparent)
	c, ok := ParseTraceparent(parent)
	if !ok {
		return Context{}
	}
	if state, ok := h.Get(headerTracestate); ok && ValidTracestate(state) {
		c.State = state
	}
	return c
}

// Inject writes the context into a request's headers, so that the receiver makes
// c.Span its parent. c.State may point into the same headers.
func (p *Propagator) Inject(h Carrier, c *Context) {
	if p.Formats&FormatB3Single != 0 {
		p.buf = c.AppendB3(p.buf[:0])
		h.Set(headerB3, p.buf)
	}
	if p.Formats&FormatB3 != 0 {
		p.injectB3(h, c)
	}
	if p.Formats&FormatW3C == 0 {
		return
	}
	p.buf = c.AppendTraceparent(p.buf[:0])
	h.Set(headerTraceparent, p.buf)
	state, ok := h.Get(headerTracestate)
	switch {
	case len(c.State) == 0:
		// A new trace, or a state that is not valid: it belongs to nobody now.
		h.Del(headerTracestate)
	case ok && bytes.Equal(state, c.State):
		// It is there already, perhaps with further fields of the same name, which Set would drop.
	default:
		h.Set(headerTracestate, c.State)
	}
}

func (p *Propagator) injectB3(h Carrier, c *Context) {
	p.buf = c.appendB3Trace(p.buf[:0])
	h.Set(headerB3Trace, p.buf)
	p.buf = hex.AppendEncode(p.buf[:0], c.Span[:])
	h.Set(headerB3Span, p.buf)
	if c.Parent != (SpanID{}) {
		p.buf = hex.AppendEncode(p.buf[:0], c.Parent[:])
		h.Set(headerB3Parent, p.buf)
	} else {
		h.Del(headerB3Parent)
	}
	if c.Decision == Debug { // which implies sampled
		p.buf = append(p.buf[:0], '1')
		h.Set(headerB3Flags, p.buf)
		h.Del(headerB3Sampled)
		return
	}
	h.Del(headerB3Flags)
	p.buf = append(p.buf[:0], '0')
	if c.Decision.Recorded() {
		p.buf[0] = '1'
	}
	h.Set(headerB3Sampled, p.buf)
}

// EnsureRequestID makes sure that the request has an id. One that it brought is
// kept if it is printable and of sensible length.
func (p *Propagator) EnsureRequestID(h Carrier) {
	if id, ok := h.Get(HeaderRequestID); ok && usableRequestID(id) {
		return
	}
	p.buf = p.IDs.AppendRequestID(p.buf[:0])
	h.Set(HeaderRequestID, p.buf)
}

func usableRequestID(id []byte) bool {
	if len(id) == 0 || len(id) > requestIDMaxBytes {
		return false
	}
	for _, c := range id {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
