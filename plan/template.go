package plan

import "strings"

// TemplatePart is a piece of a header value: text, or what stands between the two % of a command operator, such as
// DOWNSTREAM_REMOTE_ADDRESS or REQ(x-user).
type TemplatePart struct {
	Text     string
	Operator bool
}

// Template splits the value of an edited field into text and Envoy's command operators ("Access logging, format
// strings"): a name in capitals, perhaps an argument in parentheses and a length behind a colon, between two %. %% is one
// % of the text, and so is every % that begins no operator.
func Template(value string) []TemplatePart {
	var out []TemplatePart
	text := ""
	for {
		before, rest, found := strings.Cut(value, "%")
		text += before
		if !found {
			break
		}
		n := operatorLen(rest)
		if n == 0 {
			text += "%"
			value = strings.TrimPrefix(rest, "%")
			continue
		}
		if text != "" {
			out = append(out, TemplatePart{Text: text})
			text = ""
		}
		out = append(out, TemplatePart{Text: rest[:n], Operator: true})
		value = rest[n+1:]
	}
	if text != "" {
		out = append(out, TemplatePart{Text: text})
	}
	return out
}

// operatorLen is the length of the operator at the beginning of a text, up to its closing %; 0: there is none.
func operatorLen(s string) int {
	n := 0
	for n < len(s) && (s[n] == '_' || 'A' <= s[n] && s[n] <= 'Z' || '0' <= s[n] && s[n] <= '9') {
		n++
	}
	if n == 0 {
		return 0
	}
	if strings.HasPrefix(s[n:], "(") {
		end := strings.IndexByte(s[n:], ')')
		if end < 0 {
			return 0
		}
		n += end + 1
	}
	if strings.HasPrefix(s[n:], ":") {
		digits := len(s[n+1:]) - len(strings.TrimLeft(s[n+1:], "0123456789"))
		if digits == 0 {
			return 0
		}
		n += 1 + digits
	}
	if !strings.HasPrefix(s[n:], "%") {
		return 0
	}
	return n
}
