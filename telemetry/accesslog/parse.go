package accesslog

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// compileText cuts a format string into segments. In it, %% is a percent sign,
// and an operator has the form %NAME%, %NAME(parameter)% or %NAME(parameter):length%.
func compileText(text string) ([]segment, error) {
	if len(text) > formatMaxBytes {
		return nil, fmt.Errorf("the format is %d bytes long; at most %d are accepted", len(text), formatMaxBytes)
	}
	var segments []segment
	var literal strings.Builder
	for i := 0; i < len(text); {
		if text[i] != '%' {
			literal.WriteByte(text[i])
			i++
			continue
		}
		if strings.HasPrefix(text[i:], "%%") {
			literal.WriteByte('%')
			i += 2
			continue
		}
		call, err := parseCall(text[i:])
		if err != nil {
			return nil, fmt.Errorf("column %d: %w", i+1, err)
		}
		op, err := call.compile()
		if err != nil {
			return nil, fmt.Errorf("column %d: %w", i+1, err)
		}
		segments = append(segments, segment{literal: literal.String(), op: op})
		literal.Reset()
		i += call.size
	}
	if literal.Len() > 0 {
		segments = append(segments, segment{literal: literal.String()})
	}
	return segments, nil
}

// call is an operator as it is written.
type call struct {
	name, parameter string
	hasParameter    bool
	length          int // -1 if none is given
	size            int // bytes, percent signs included
}

// parseCall parses the operator that text begins with.
func parseCall(text string) (call, error) {
	c := call{length: -1}
	i := 1
	for i < len(text) && (text[i] == '_' || 'A' <= text[i] && text[i] <= 'Z' || '0' <= text[i] && text[i] <= '9') {
		i++
	}
	c.name = text[1:i]
	if c.name == "" {
		return c, fmt.Errorf("an operator's name is expected after %%; write %%%% for a percent sign")
	}
	if strings.HasPrefix(text[i:], "(") {
		end := strings.IndexByte(text[i:], ')')
		if end < 0 {
			return c, fmt.Errorf("operator %s has no closing parenthesis", c.name)
		}
		c.parameter, c.hasParameter = text[i+1:i+end], true
		i += end + 1
	}
	if strings.HasPrefix(text[i:], ":") {
		j := i + 1
		for j < len(text) && '0' <= text[j] && text[j] <= '9' {
			j++
		}
		n, err := strconv.Atoi(text[i+1 : j])
		if err != nil {
			return c, fmt.Errorf("operator %s: a number is expected after the colon", c.name)
		}
		c.length, i = n, j
	}
	if !strings.HasPrefix(text[i:], "%") {
		return c, fmt.Errorf("operator %s does not end in %%", c.name)
	}
	c.size = i + 1
	return c, nil
}

// compile makes the operator, or says why it cannot be.
func (c *call) compile() (operator, error) {
	s, ok := lookup(c.name)
	if !ok {
		if isUnfilled(c.name) {
			return operator{}, fmt.Errorf("operator %s is one of Envoy's that Lateen does not fill; remove it from the format", c.name)
		}
		return operator{}, fmt.Errorf("unknown operator %s", c.name)
	}
	op := s.op
	switch {
	case c.hasParameter && s.parameter == parameterNone:
		return operator{}, fmt.Errorf("operator %s takes no parameter", c.name)
	case c.parameter == "" && (s.parameter == parameterHeader || s.parameter == parameterName):
		return operator{}, fmt.Errorf("operator %s needs a parameter in parentheses", c.name)
	case c.length >= 0 && !s.truncates:
		return operator{}, fmt.Errorf("operator %s takes no length", c.name)
	}
	op.maxBytes = max(0, c.length)
	if err := c.compileParameter(&op, s.parameter); err != nil {
		return operator{}, fmt.Errorf("operator %s: %w", c.name, err)
	}
	return op, nil
}

func (c *call) compileParameter(op *operator, p parameter) (err error) {
	switch p {
	case parameterHeader:
		err = op.setHeaders(c.parameter)
	case parameterTime:
		format := c.parameter
		if format == "" {
			format = defaultClock
		}
		op.clock, err = compileClock(format)
	case parameterMask:
		if c.hasParameter {
			op.form = formMasked
			op.mask, err = strconv.Atoi(c.parameter)
			if err != nil || op.mask < 0 || op.mask > 128 {
				err = fmt.Errorf("the length of a prefix, 0 to 128, is expected, not %q", c.parameter)
			}
		}
	case parameterGRPC:
		op.form, err = choice(c.parameter, map[string]form{"": op.form, "CAMEL_STRING": formCamel, "SNAKE_STRING": formSnake, "NUMBER": formNumber})
	case parameterSpaces:
		op.form, err = choice(c.parameter, map[string]form{"": formUnderscore, "ALLOW_WHITESPACES": formFull})
	case parameterPath:
		op.form, err = choice(c.parameter, map[string]form{
			"": formFull, "WQ": formFull, "WQ:ORIG_OR_PATH": formFull, "WQ:PATH": formPathOnly, "WQ:ORIG": formOriginalOnly,
			"NQ": formWithoutQuery, "NQ:ORIG_OR_PATH": formWithoutQuery, "NQ:PATH": formWithoutQueryPathOnly, "NQ:ORIG": formWithoutQueryOriginalOnly,
		})
	case parameterServerName:
		_, err = choice(c.parameter, map[string]form{"": formFull, "SNI_ONLY": formFull})
	case parameterName:
		op.fixed = c.parameter
		if op.class == classFixed {
			op.fixed = os.Getenv(c.parameter)
		}
	case parameterNone:
		if op.class == classFixed {
			op.fixed, err = os.Hostname()
		}
	}
	return err
}

// setHeaders takes X or X?Y.
func (o *operator) setHeaders(parameter string) error {
	main, alternative, has := strings.Cut(strings.ToLower(parameter), "?")
	if main == "" || has && alternative == "" {
		return fmt.Errorf("a header's name is missing in %q", parameter)
	}
	for _, name := range []string{main, alternative} {
		if strings.HasPrefix(name, ":") && (o.field != fieldRequest || !strings.Contains(" :method :path :authority :scheme ", " "+name+" ")) {
			return fmt.Errorf("there is no pseudo-header %s here", name)
		}
	}
	o.headers = [2]string{main, alternative}
	return nil
}

func choice(parameter string, forms map[string]form) (form, error) {
	f, ok := forms[parameter]
	if !ok {
		return 0, fmt.Errorf("unknown parameter %q", parameter)
	}
	return f, nil
}
