package api

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// check judges one object that could be read.
type check struct {
	*Object
	r *reader
}

// in is the path of something below base.
func in(base string, parts ...any) string { return join(append([]any{base}, parts...)) }

func (c *check) fault(path, format string, args ...any) {
	pl := c.place(path)
	c.r.fault(pl, path, format, args...)
}

func (c *check) warn(path, format string, args ...any) {
	pl := c.place(path)
	c.r.warn(pl, path, format, args...)
}

func (c *check) has(path string) bool {
	_, ok := c.places[path]
	return ok
}

var (
	labelName  = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
	portName   = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`)
	hostLabel  = regexp.MustCompile(`^[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?$`)
	fieldName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110 section 5.1
)

// labels judges labels, or a selector by labels.
func (c *check) labels(path string, labels map[string]string) {
	for k, v := range labels {
		p := in(path, k)
		switch {
		case k == "":
			c.fault(p, "a label's name must not be empty")
		case strings.Contains(k, "*") || strings.Contains(v, "*"):
			c.fault(p, "* is no wildcard in labels; write the label in full, or leave it out to match all")
		case !labelName.MatchString(k):
			c.fault(p, "%q is not a label's name; use letters, digits, -, _ and ., with a DNS name and / before it if needed", k)
		case !labelValue.MatchString(v):
			c.fault(p, "%q is not a label's value; use up to 63 letters, digits, -, _ and .", v)
		}
	}
}

// exportTo judges a visibility list.
func (c *check) exportTo(path string, list []string) {
	for i, n := range list {
		p := in(path, i)
		switch {
		case slices.Contains(list[:i], n):
			c.fault(p, "%q is listed twice; remove one", n)
		case n == "*" && len(list) > 1:
			c.fault(p, "* means every namespace and must stand alone")
		case n == "~":
			c.fault(p, "~ is not accepted here; write . for this namespace only")
		case n != "*" && n != "." && !dnsLabel.MatchString(n):
			c.fault(p, "%q is not a namespace; write a name, . for this namespace or * for all", n)
		}
	}
}

// isHost reports whether s is a DNS name; with wildcard "*" and a leading "*." pass too.
func isHost(s string, wildcard bool) bool {
	if wildcard {
		if s == "*" {
			return true
		}
		s = strings.TrimPrefix(s, "*.")
	}
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > maxName {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !hostLabel.MatchString(part) {
			return false
		}
	}
	return true
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// isPrefix reports whether s is an address or a range in CIDR notation.
func isPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil || isIP(s)
}

// port judges a port's number.
func (c *check) port(path string, n uint32) {
	if n == 0 || n > 65535 {
		c.fault(path, "%d is not a port; write a number from 1 to 65535", n)
	}
}

// optionalPort judges a port's number that may be left out.
func (c *check) optionalPort(path string, n uint32) {
	if c.has(path) || n != 0 {
		c.port(path, n)
	}
}

func (c *check) subnets(path string, list []string) {
	for i, s := range list {
		if !isPrefix(s) {
			c.fault(in(path, i), "%q is neither an address nor a range such as 10.0.0.0/8", s)
		}
	}
}

// regex judges an RE2 expression.
func (c *check) regex(path, expression string) {
	const maxRegex = 1024
	switch _, err := regexp.Compile(expression); {
	case expression == "":
		c.fault(path, "an empty expression matches nothing useful; write one, or leave the field out")
	case len(expression) > maxRegex:
		c.fault(path, "the expression has %d bytes, more than the %d allowed", len(expression), maxRegex)
	case err != nil:
		c.fault(path, "is not an RE2 expression: %s; look-around and back-references do not exist there",
			strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
}

func (c *check) percent(path string, value float64) {
	if value < 0 || value > 100 {
		c.fault(path, "%v is not a percentage; write a number from 0 to 100", value)
	}
}

// notNegative judges numbers whose type would allow less than 0.
func (c *check) notNegative(base string, values map[string]int32) {
	for name, v := range values {
		if v < 0 {
			c.fault(in(base, name), "is %d; it cannot be negative", v)
		}
	}
}
