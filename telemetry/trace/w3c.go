package trace

import (
	"bytes"
	"encoding/hex"
)

// The lengths of traceparent's parts (W3C Trace Context, level 2, section 3.2).
const (
	traceparentBytes = 55
	flagSampled      = 1
	flagRandom       = 2
)

// Limits of tracestate (section 3.3).
const (
	stateMembersMax  = 32
	stateKeyMaxBytes = 256
	stateValueMax    = 256
	// stateMaxBytes is more than the 512 that everybody must carry.
	stateMaxBytes = 8 << 10
)

// ParseTraceparent parses a traceparent header. Versions that are not known yet
// are read as far as version 00 goes, as the specification asks.
func ParseTraceparent(p []byte) (Context, bool) {
	var c Context
	var version, flags [1]byte
	if len(p) < traceparentBytes || p[2] != '-' || p[35] != '-' || p[52] != '-' {
		return Context{}, false
	}
	if !decodeHex(version[:], p[:2], false) || version[0] == 0xff {
		return Context{}, false
	}
	if len(p) > traceparentBytes && (version[0] == 0 || p[traceparentBytes] != '-') {
		return Context{}, false
	}
	if !decodeHex(c.Trace[:], p[3:35], false) || !decodeHex(c.Span[:], p[36:52], false) || !decodeHex(flags[:], p[53:55], false) {
		return Context{}, false
	}
	if c.Trace == (ID{}) || c.Span == (SpanID{}) {
		return Context{}, false
	}
	c.Decision = Drop
	if flags[0]&flagSampled != 0 {
		c.Decision = Keep
	}
	c.Random = flags[0]&flagRandom != 0
	return c, true
}

// AppendTraceparent appends the context as a traceparent header of version 00.
func (c *Context) AppendTraceparent(dst []byte) []byte {
	dst = append(dst, "00-"...)
	dst = hex.AppendEncode(dst, c.Trace[:])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, c.Span[:])
	flags := byte('0')
	if c.Decision.Recorded() {
		flags += flagSampled
	}
	if c.Random {
		flags += flagRandom
	}
	return append(dst, '-', '0', flags)
}

// ValidTracestate reports whether a tracestate header may be passed on: a list
// of at most 32 members of the form key=value, no key twice. One that is not must
// be dropped whole.
func ValidTracestate(p []byte) bool {
	if len(p) > stateMaxBytes {
		return false
	}
	var keys [stateMembersMax][]byte
	n := 0
	for rest := p; rest != nil; {
		member := rest
		if i := bytes.IndexByte(rest, ','); i >= 0 {
			member, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		member = trimBlanks(member)
		if len(member) == 0 {
			continue // empty members are allowed
		}
		key, value, ok := bytes.Cut(member, []byte("="))
		if !ok || !validStateKey(key) || !validStateValue(value) || n == stateMembersMax {
			return false
		}
		for _, k := range keys[:n] {
			if bytes.Equal(k, key) {
				return false
			}
		}
		keys[n] = key
		n++
	}
	return n > 0
}

func trimBlanks(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

func validStateKey(key []byte) bool {
	if len(key) == 0 || len(key) > stateKeyMaxBytes {
		return false
	}
	for i, c := range key {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '-' || c == '*' || c == '/' || c == '@'):
		default:
			return false
		}
	}
	return true
}

func validStateValue(value []byte) bool {
	if len(value) == 0 || len(value) > stateValueMax || value[len(value)-1] == ' ' {
		return false
	}
	for _, c := range value {
		if c < ' ' || c > '~' || c == ',' || c == '=' {
			return false
		}
	}
	return true
}
