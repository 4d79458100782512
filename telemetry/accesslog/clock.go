package accesslog

import (
	"fmt"
	"strings"
	"time"
)

// defaultClock is how START_TIME is written when it has no parameter.
const defaultClock = "%Y-%m-%dT%H:%M:%S.%3fZ"

// clockPart is literal text and then one conversion of a time format.
type clockPart struct {
	literal string
	// conversion is strftime's letter; 0 is none.
	conversion byte
	// digits is the number of fractional digits of 'f', and divisor what the nanoseconds are divided by.
	digits, divisor int
}

// conversions are those of strftime (ISO C) that are supported, with Envoy's f and s.
const conversions = "YymdejHIMSpbBaAzZsf"

// compounds are conversions that stand for others.
func compound(c byte) (string, bool) {
	switch c {
	case 'F':
		return "%Y-%m-%d", true
	case 'T':
		return "%H:%M:%S", true
	case 'R':
		return "%H:%M", true
	case 'D':
		return "%m/%d/%y", true
	default:
		return "", false
	}
}

// compileClock compiles a time format: strftime's conversions, %s (seconds since
// 1970), %f and %1f to %9f (fractional digits; 9 by default).
func compileClock(format string) ([]clockPart, error) {
	var parts []clockPart
	var literal strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			literal.WriteByte(format[i])
			continue
		}
		if i++; i == len(format) {
			return nil, fmt.Errorf("time format %q ends in the middle of a conversion", format)
		}
		c, digits := format[i], 9
		if c == '%' {
			literal.WriteByte('%')
			continue
		}
		if long, ok := compound(c); ok {
			more, err := compileClock(long)
			if err != nil {
				return nil, err
			}
			more[0].literal = literal.String()
			literal.Reset()
			parts = append(parts, more...)
			continue
		}
		if '1' <= c && c <= '9' && i+1 < len(format) && format[i+1] == 'f' {
			digits, c = int(c-'0'), 'f'
			i++
		}
		if !strings.ContainsRune(conversions, rune(c)) {
			return nil, fmt.Errorf("time format %q has the unknown conversion %%%c", format, c)
		}
		part := clockPart{literal: literal.String(), conversion: c, digits: digits, divisor: 1}
		for range 9 - digits {
			part.divisor *= 10
		}
		parts = append(parts, part)
		literal.Reset()
	}
	if literal.Len() > 0 {
		parts = append(parts, clockPart{literal: literal.String()})
	}
	return parts, nil
}

func appendClock(dst []byte, parts []clockPart, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	for i := range parts {
		p := &parts[i]
		dst = append(dst, p.literal...)
		switch p.conversion {
		case 'Y':
			dst = appendPadded(dst, year, 4)
		case 'y':
			dst = appendPadded(dst, year%100, 2)
		case 'm':
			dst = appendPadded(dst, int(month), 2)
		case 'd':
			dst = appendPadded(dst, day, 2)
		case 'H':
			dst = appendPadded(dst, hour, 2)
		case 'M':
			dst = appendPadded(dst, minute, 2)
		case 'S':
			dst = appendPadded(dst, second, 2)
		case 'f':
			dst = appendPadded(dst, t.Nanosecond()/p.divisor, p.digits)
		default:
			dst = appendRareClock(dst, p.conversion, t)
		}
	}
	return dst
}

func appendRareClock(dst []byte, conversion byte, t time.Time) []byte {
	switch conversion {
	case 'e':
		return t.AppendFormat(dst, "_2")
	case 'j':
		return appendPadded(dst, t.YearDay(), 3)
	case 'I':
		return t.AppendFormat(dst, "03")
	case 'p':
		return t.AppendFormat(dst, "PM")
	case 'b':
		return t.AppendFormat(dst, "Jan")
	case 'B':
		return t.AppendFormat(dst, "January")
	case 'a':
		return t.AppendFormat(dst, "Mon")
	case 'A':
		return t.AppendFormat(dst, "Monday")
	case 'z':
		return t.AppendFormat(dst, "-0700")
	case 'Z':
		return t.AppendFormat(dst, "MST")
	case 's':
		return appendPadded(dst, int(t.Unix()), 1)
	default:
		return dst
	}
}

// appendPadded appends n with leading zeros, at least digits long.
func appendPadded(dst []byte, n, digits int) []byte {
	if digits == 2 && 0 <= n && n < 100 {
		return append(dst, byte('0'+n/10), byte('0'+n%10))
	}
	if n < 0 {
		dst, n = append(dst, '-'), -n
	}
	var buf [20]byte
	i := len(buf)
	for n > 0 || digits > 0 {
		i--
		buf[i] = byte('0' + n%10)
		n /= 10
		digits--
	}
	return append(dst, buf[i:]...)
}
