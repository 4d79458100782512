package table

import (
	"bytes"

	"github.com/lateen-mesh/lateen/plan"
)

// NormalizePath brings a path, without its query, into the form in which routes
// and policies see it (MeshConfig's pathNormalization). out aliases path when
// nothing changes, and is appended to dst otherwise. It is not ok to leave the
// root, or to hide a NUL.
func NormalizePath(dst, path []byte, how plan.PathNormalization) (out []byte, ok bool) {
	if how == plan.PathNone {
		return path, true
	}
	if clean(path, how) {
		return path, true
	}
	if how == plan.PathDecodeAndMergeSlashes {
		path = decodeSlashes(path)
	}
	out = append(dst, path...)
	base := len(dst)
	normalizeEscapes(out[base:])
	n, ok := removeDots(out[base:], how != plan.PathBase)
	return out[:base+n], ok
}

// clean reports, in one pass, whether there is nothing to do.
func clean(p []byte, how plan.PathNormalization) bool {
	for i, c := range p {
		switch c {
		case '\\', '%', 0:
			return false
		case '/':
			if i+1 < len(p) && (p[i+1] == '.' || p[i+1] == '/' && how != plan.PathBase) {
				return false
			}
		}
	}
	return true
}

// decodeSlashes decodes %2F and %5C.
func decodeSlashes(p []byte) []byte {
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		if c, ok := escaped(p[i:]); ok && (c == '/' || c == '\\') {
			out = append(out, c)
			i += 2
			continue
		}
		out = append(out, p[i])
	}
	return out
}

func escaped(p []byte) (byte, bool) {
	if len(p) < 3 || p[0] != '%' {
		return 0, false
	}
	hi, lo := unhex(p[1]), unhex(p[2])
	if hi < 0 || lo < 0 {
		return 0, false
	}
	return byte(hi<<4 | lo), true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// normalizeEscapes turns backslashes into slashes and writes escapes in upper case, in place (RFC 3986 section
// 6.2.2.1).
func normalizeEscapes(p []byte) {
	for i, c := range p {
		switch {
		case c == '\\':
			p[i] = '/'
		case c == '%' && i+2 < len(p) && unhex(p[i+1]) >= 0 && unhex(p[i+2]) >= 0:
			p[i+1], p[i+2] = upper(p[i+1]), upper(p[i+2])
		}
	}
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'f' {
		return c &^ 0x20
	}
	return c
}

// removeDots removes dot segments, also escaped ones, in place (RFC 3986 section 5.2.4), and with merge empty
// segments, too.
func removeDots(p []byte, merge bool) (n int, ok bool) {
	end := 0 // of what is kept
	for i := 0; i < len(p); {
		// p[i] is a slash; the segment reaches to the next one.
		j := bytes.IndexByte(p[i+1:], '/')
		last := j < 0
		stop := len(p)
		if !last {
			stop = i + 1 + j
		}
		segment := p[i+1 : stop]
		switch {
		case bytes.IndexByte(segment, 0) >= 0 || bytes.Contains(segment, []byte("%00")):
			return end, false
		case dots(segment) == 1:
			if last {
				p[end] = '/'
				end++
			}
		case dots(segment) == 2:
			if end == 0 {
				return 0, false // above the root
			}
			end = bytes.LastIndexByte(p[:end], '/')
			if last {
				p[end] = '/'
				end++
			}
		case merge && len(segment) == 0 && !last:
		default:
			p[end] = '/'
			copy(p[end+1:], segment)
			end += 1 + len(segment)
		}
		i = stop
	}
	if end == 0 {
		return 1, len(p) > 0 && setSlash(p)
	}
	return end, true
}

func setSlash(p []byte) bool {
	p[0] = '/'
	return true
}

// dots is 1 for ".", 2 for "..", in clear or escaped, and 0 for anything else.
func dots(segment []byte) int {
	n := 0
	for i := 0; i < len(segment); i++ {
		if c, ok := escaped(segment[i:]); ok && c == '.' {
			i += 2
		} else if segment[i] != '.' {
			return 0
		}
		if n++; n > 2 {
			return 0
		}
	}
	return n
}
