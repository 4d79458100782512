package trace

import (
	"bytes"
	"encoding/hex"
)

// B3's headers (openzipkin/b3-propagation).
const (
	headerB3        = "b3"
	headerB3Trace   = "x-b3-traceid"
	headerB3Span    = "x-b3-spanid"
	headerB3Parent  = "x-b3-parentspanid"
	headerB3Sampled = "x-b3-sampled"
	headerB3Flags   = "x-b3-flags"
)

// ParseB3 parses the single header b3: {trace}-{span}[-{decision}[-{parent}]], or
// a decision alone, which gives a Context without ids.
func ParseB3(p []byte) (Context, bool) {
	if len(p) == 1 {
		d := decisionOf(p)
		return Context{Decision: d}, d != Undecided
	}
	traceID, rest, _ := bytes.Cut(p, []byte("-"))
	spanID, rest, more := bytes.Cut(rest, []byte("-"))
	var c Context
	if !c.setIDs(traceID, spanID) {
		return Context{}, false
	}
	if !more {
		return c, true
	}
	decision, parent, more := bytes.Cut(rest, []byte("-"))
	if c.Decision = decisionOf(decision); c.Decision == Undecided || len(decision) != 1 {
		return Context{}, false
	}
	if more && !decodeHex(c.Parent[:], parent, true) {
		return Context{}, false
	}
	return c, true
}

// AppendB3 appends the context in the form of the single header b3.
func (c *Context) AppendB3(dst []byte) []byte {
	dst = append(c.appendB3Trace(dst), '-')
	dst = hex.AppendEncode(dst, c.Span[:])
	switch c.Decision {
	case Drop:
		dst = append(dst, "-0"...)
	case Keep:
		dst = append(dst, "-1"...)
	case Debug:
		dst = append(dst, "-d"...)
	default:
		return dst // a parent may only follow a decision
	}
	if c.Parent != (SpanID{}) {
		dst = hex.AppendEncode(append(dst, '-'), c.Parent[:])
	}
	return dst
}

// parseB3Headers reads the x-b3-* headers. A decision may come alone.
func parseB3Headers(h Carrier) (Context, bool) {
	traceID, _ := h.Get(headerB3Trace)
	spanID, _ := h.Get(headerB3Span)
	parent, _ := h.Get(headerB3Parent)
	sampled, _ := h.Get(headerB3Sampled)
	flags, _ := h.Get(headerB3Flags)
	var c Context
	if len(traceID) > 0 || len(spanID) > 0 {
		if !c.setIDs(traceID, spanID) || len(parent) > 0 && !decodeHex(c.Parent[:], parent, true) {
			return Context{}, false
		}
	}
	switch {
	case string(flags) == "1":
		c.Decision = Debug
	case string(sampled) == "d": // only the single header and flags say debug
		return Context{}, false
	case len(sampled) > 0:
		if c.Decision = decisionOf(sampled); c.Decision == Undecided {
			return Context{}, false
		}
	}
	return c, c.Trace != (ID{}) || c.Decision != Undecided
}

// setIDs takes a trace id of 16 or 32 digits and a span id of 16.
func (c *Context) setIDs(traceID, spanID []byte) bool {
	into := c.Trace[:]
	if len(traceID) == 16 {
		into = c.Trace[8:]
	}
	return decodeHex(into, traceID, true) && decodeHex(c.Span[:], spanID, true) &&
		c.Trace != ID{} && c.Span != SpanID{}
}

// appendB3Trace appends the trace id in 16 digits if that was how it came, since
// old tracers compare it as text.
func (c *Context) appendB3Trace(dst []byte) []byte {
	if [8]byte(c.Trace[:8]) == [8]byte{} {
		return hex.AppendEncode(dst, c.Trace[8:])
	}
	return hex.AppendEncode(dst, c.Trace[:])
}

func decisionOf(p []byte) Decision {
	switch string(p) {
	case "0", "false":
		return Drop
	case "1", "true":
		return Keep
	case "d":
		return Debug
	default:
		return Undecided
	}
}
