// Package trace carries trace context from one request's headers to the next
// and describes the spans in between.
//
// In: the headers of a request. Out: a Context, the same headers rewritten, and
// Spans for an exporter. It must not know how spans travel, nor HTTP beyond the
// interface Carrier.
//
// Parsing and writing work on bytes and allocate nothing. IDs and Propagator
// belong to one goroutine each; everything else is a value.
package trace

import (
	"encoding/hex"
)

// ID names a trace. All zero is no trace.
type ID [16]byte

// String returns the id in lower case hex.
func (t ID) String() string { return hex.EncodeToString(t[:]) }

// SpanID names a span within its trace. All zero is no span.
type SpanID [8]byte

// String returns the id in lower case hex.
func (s SpanID) String() string { return hex.EncodeToString(s[:]) }

// Decision says whether the spans of a trace are recorded.
type Decision uint8

// The decisions.
const (
	// Undecided: nobody upstream of us has said.
	Undecided Decision = iota
	// Drop: do not record.
	Drop
	// Keep: record.
	Keep
	// Debug: record, and let no collector drop it either (B3).
	Debug
)

// Recorded reports whether spans are to be recorded.
func (d Decision) Recorded() bool { return d >= Keep }

// Context is the place of one span in its trace.
type Context struct {
	Trace ID
	// Span is the span itself, Parent the one that it is part of; zero at the root.
	Span, Parent SpanID
	Decision     Decision
	// State is tracestate as it arrived. It points into the headers that it was read from.
	State []byte
	// Random reports that the trace id is known to be random (W3C, level 2).
	Random bool
}

// decodeHex decodes src into dst, which has half its length. It reports false if
// src is not hex, or, unless upper is set, has upper case digits.
func decodeHex(dst, src []byte, upper bool) bool {
	if len(src) != 2*len(dst) {
		return false
	}
	for i := range dst {
		high, ok1 := digit(src[2*i], upper)
		low, ok2 := digit(src[2*i+1], upper)
		if !ok1 || !ok2 {
			return false
		}
		dst[i] = high<<4 | low
	}
	return true
}

func digit(c byte, upper bool) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case upper && 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	default:
		return 0, false
	}
}
