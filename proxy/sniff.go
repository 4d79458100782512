package proxy

import "bytes"

// guess is what the first bytes of a client say about the protocol.
type guess uint8

const (
	guessMore  guess = iota // too few bytes to tell
	guessHTTP1              // an HTTP/1 request line
	guessHTTP2              // the HTTP/2 preface
	guessOther              // neither
)

// The bounds of protocol detection.
const (
	// sniffBytes is how much of a first line is waited for before it is taken for something else than HTTP.
	sniffBytes = 8 << 10
	methodMax  = 24
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniff tells HTTP from other protocols by the first bytes of the client: the
// HTTP/2 preface (RFC 9113 section 3.4), or a whole request line that ends in
// an HTTP/1 version (RFC 9112 section 3). A line without one is not HTTP: SMTP
// and FTP begin with words and a space, too.
func sniff(p []byte) guess {
	if len(p) == 0 {
		return guessMore
	}
	if n := min(len(p), len(preface)); string(p[:n]) == preface[:n] {
		if n == len(preface) {
			return guessHTTP2
		}
		return guessMore
	}
	for i, c := range p[:min(len(p), methodMax)] {
		if c == ' ' && i > 0 {
			return sniffLine(p)
		}
		if c == '\r' || c == '\n' { // RFC 9112 section 2.2: empty lines before a request are skipped
			if i == 0 && c == '\r' && len(p) == 1 {
				return guessMore
			}
			if i == 0 && len(p) >= 2 && p[0] == '\r' && p[1] == '\n' {
				return sniff(p[2:])
			}
			return guessOther
		}
		if !methodByte(c) {
			return guessOther
		}
	}
	if len(p) < methodMax {
		return guessMore
	}
	return guessOther
}

// servesHTTP2 reports whether a server's first bytes are the SETTINGS frame with which those of HTTP/2 begin (RFC 9113
// section 3.4): whole settings of six bytes each, no flags, stream 0. A frame's header comes in one piece in practice.
func servesHTTP2(p []byte) bool {
	const header, frameSettings, setting = 9, 4, 6
	if len(p) < header {
		return false
	}
	length := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	return length <= 64*setting && length%setting == 0 && string(p[3:header]) == string([]byte{frameSettings, 0, 0, 0, 0, 0})
}

func sniffLine(p []byte) guess {
	line, _, whole := bytes.Cut(p, []byte("\n"))
	if !whole {
		if len(p) > sniffBytes {
			return guessOther
		}
		return guessMore
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if n := len(line); n > 9 && bytes.HasPrefix(line[n-9:], []byte(" HTTP/1.")) {
		return guessHTTP1
	}
	return guessOther
}

// methodByte accepts the characters of a token (RFC 9110 section 5.6.2) that methods are made of in practice.
func methodByte(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '-' || c == '_' || '0' <= c && c <= '9'
}
