package table

import (
	"bytes"

	"github.com/lateen-mesh/lateen/plan"
)

// NormalizePath brings a path, without its query, into the form in which routes
// and policies see it (MeshConfig's pathNormalization; RFC 3986 section 6.2.2,
// as Envoy's normalize_path does it): needless escapes are resolved, backslashes
// become slashes, dot segments are removed, escaped ones included, and, where it
// is ordered, escaped slashes are resolved before and slashes merged after that.
// A path that does not begin with a slash ("*") is left alone.
//
// out aliases path when nothing changes, and is appended to dst otherwise; dst
// must not overlap path. It is not ok to hide a NUL.
func NormalizePath(dst, path []byte, how plan.PathNormalization) (out []byte, ok bool) {
	if how == plan.PathNone || len(path) == 0 || path[0] != '/' || clean(path, how) {
		return path, bytes.IndexByte(path, 0) < 0
	}
	base := len(dst)
	if out, ok = unescape(dst, path, how == plan.PathDecodeAndMergeSlashes); !ok {
		return nil, false
	}
	n := removeDots(out[base:])
	if how != plan.PathBase {
		n = mergeSlashes(out[base : base+n])
	}
	return out[:base+n], true
}

// clean reports, in one pass, that there is nothing to do. It may fail to see that.
func clean(p []byte, how plan.PathNormalization) bool {
	for i, c := range p {
		switch c {
		case '\\', '%':
			return false
		case '/':
			if i+1 < len(p) && (p[i+1] == '.' || p[i+1] == '/' && how != plan.PathBase) {
				return false
			}
		}
	}
	return true
}

// unescape appends p with the escapes of unreserved characters resolved (RFC 3986 section 6.2.2.2), with slashes
// those of slashes and backslashes, too, and with backslashes as slashes. A NUL is not ok. What follows a % that
// begins no escape is left as it is, so that no new escape comes about ("%4%31" does not become "%41").
func unescape(dst, p []byte, slashes bool) (out []byte, ok bool) {
	base := len(dst)
	for i := 0; i < len(p); i++ {
		c := p[i]
		if e, is := escaped(p[i:]); is {
			switch {
			case e == 0:
				return nil, false
			case bytes.IndexByte(dst[max(base, len(dst)-2):], '%') >= 0:
			case unreserved(e) || slashes && (e == '/' || e == '\\'):
				c = e
				i += 2
			}
		}
		switch c {
		case 0:
			return nil, false
		case '\\':
			c = '/'
		}
		dst = append(dst, c)
	}
	return dst, true
}

// unreserved is RFC 3986 section 2.3.
func unreserved(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// escaped reports what byte p begins with the escape of.
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

// removeDots removes dot segments in place (RFC 3986 section 5.2.4) and returns the new length. p begins with a
// slash, and so does what is left; nothing leads above the root.
func removeDots(p []byte) int {
	end := 0 // of what is kept
	for rest := p; len(rest) > 0; {
		// rest begins with a slash; the segment reaches to the next one.
		segment, last := rest[1:], true
		if i := bytes.IndexByte(segment, '/'); i >= 0 {
			segment, last = segment[:i], false
		}
		rest = rest[1+len(segment):]
		switch string(segment) {
		case ".":
		case "..":
			end = max(bytes.LastIndexByte(p[:end], '/'), 0)
		default:
			p[end] = '/'
			end += 1 + copy(p[end+1:], segment)
			continue
		}
		if last { // a directory is meant
			p[end] = '/'
			end++
		}
	}
	return end
}

// mergeSlashes leaves one of each run of slashes, in place, and returns the new length.
func mergeSlashes(p []byte) int {
	end := 0
	for _, c := range p {
		if c == '/' && end > 0 && p[end-1] == '/' {
			continue
		}
		p[end] = c
		end++
	}
	return end
}
