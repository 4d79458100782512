package accesslog

import (
	"unicode"
	"unicode/utf8"
)

// escape is a way to make foreign bytes harmless at their place in a line.
type escape uint8

const (
	// escapeBare is for a column without quotes: what ends a column, a line or a terminal's good manners is written
	// as \xNN.
	escapeBare escape = iota
	// escapeQuoted is for text between double quotes, where spaces are harmless. Bytes are written as \u00NN, so that
	// a text format that looks like JSON is JSON.
	escapeQuoted
	// escapeJSON is for a JSON string.
	escapeJSON
)

const hexDigits = "0123456789abcdef"

// harmless says of each ASCII byte whether it can stand as it is; bytes above are looked at as runes.
var harmless = [...][256]bool{escapeBare: printable(false), escapeQuoted: printable(true), escapeJSON: printable(true)}

func printable(space bool) (ok [256]bool) {
	for c := byte('!'); c <= '~'; c++ {
		ok[c] = c != '"' && c != '\\'
	}
	ok[' '] = space
	return ok
}

// apply escapes dst from start on.
func (x escape) apply(dst []byte, start int) []byte {
	clean, ok := start, &harmless[x]
	for clean < len(dst) && ok[dst[clean]] {
		clean++
	}
	if clean == len(dst) {
		return dst
	}
	end := len(dst)
	for i := clean; i < end; {
		c := dst[i]
		if c < utf8.RuneSelf {
			if ok[c] {
				dst = append(dst, c)
			} else {
				dst = x.appendByte(dst, c)
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(dst[i:end])
		switch {
		case size == 1 && x == escapeJSON:
			dst = append(dst, `\ufffd`...)
		case x == escapeJSON && r != '\u2028' && r != '\u2029', size > 1 && unicode.IsPrint(r):
			dst = append(dst, dst[i:i+size]...)
		case x == escapeJSON:
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&0xf])
		default:
			for _, b := range dst[i : i+size] {
				dst = x.appendByte(dst, b)
			}
		}
		i += size
	}
	n := copy(dst[clean:], dst[end:])
	return dst[:clean+n]
}

func (x escape) appendByte(dst []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case x == escapeBare:
		return append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&0xf])
	default:
		return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
	}
}
