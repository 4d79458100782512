package accesslog

import (
	"encoding/binary"
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
	clean, ok, floor := start, &harmless[x], uint64(' ')
	if x == escapeBare {
		floor = '!'
	}
	for clean+8 <= len(dst) && plain(binary.LittleEndian.Uint64(dst[clean:]), floor) {
		clean += 8
	}
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

// plain reports whether all eight bytes of v are ASCII from floor to '~', other
// than the double quote and the backslash. In the sum of the terms, the lowest
// byte that is not has its high bit set; if all are, none has.
func plain(v, floor uint64) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	quote, backslash := v^ones*'"', v^ones*'\\'
	bad := v | (v + ones) | (v - ones*floor) | (quote - ones) | (backslash - ones)
	return bad&high == 0
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
