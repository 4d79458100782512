// Package redact takes secrets out of texts that somebody is to be shown: logs, configuration, answers of servers.
//
// In: bytes of any kind. Out: the same without what looks like a key, a token or a password. It must not know where the
// text comes from. A Redactor may be used concurrently.
package redact

import (
	"bytes"
	"regexp"
)

// Hidden stands for what was taken out.
const Hidden = "[hidden]"

// Redactor finds keys and tokens in texts of any kind: in PEM, as JWT, in headers, in addresses, and in fields of JSON and
// YAML that are called so. What stands in a place of its own goes; the places stay readable.
type Redactor struct {
	rules []hiding
}

// hiding is a kind of secret. To look for all of them in each byte of a text would read half a megabyte in a second, so that
// a place is found first by a character or two that the secret cannot be without.
type hiding struct {
	place place
	found *regexp.Regexp // what begins at a place: begins with \A
	by    string
}

// place finds where a secret may begin, in or after text[from:]; -1: nowhere. It is to be asked again from next on.
type place func(text []byte, from int) (begin, next int)

// New returns a Redactor.
func New() *Redactor {
	const word = `[A-Za-z0-9_-]*(?:password|passwd|secret|token|api[_-]?key|private[_-]?key|privatekey|credential|authorization|cookie|bearer)`
	return &Redactor{[]hiding{
		{pem, regexp.MustCompile(`\A-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`), Hidden},
		{jwt, regexp.MustCompile(`\AeyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), Hidden},
		{scheme, regexp.MustCompile(`(?i)\A(bearer|basic)[ =]+[A-Za-z0-9._~+/=-]{6,}`), "$1 " + Hidden},
		{address, regexp.MustCompile(`\A(\w://[^\s/@:]*:)[^\s/@]+@`), "$1" + Hidden + "@"},
		// "name": "value" of JSON, and where that is quoted in JSON itself.
		{named(`"`), regexp.MustCompile(`(?i)\A("` + word + `"\s*:\s*)"(?:[^"\\]|\\.)*"`), `$1"` + Hidden + `"`},
		{named(`\"`), regexp.MustCompile(`(?i)\A(\\"` + word + `\\"\s*:\s*)\\"(?:[^"\\]|\\[^"])*\\"`), `$1\"` + Hidden + `\"`},
		// A block of YAML, and all that is indented behind it.
		{named(""), regexp.MustCompile(`(?im)\A(` + word + `:[ \t]*[|>][-+0-9]*[ \t]*\n)(?:[ \t]+.*(?:\n|\z))+`), "$1  " + Hidden + "\n"},
		// name: value of YAML and name=value of logs; a name of an object (secretName) is none.
		{named(""), regexp.MustCompile(`(?im)\A(` + word + `\s*[:=][ \t]*)([^\s"'{\[|>][^\s,;}]*|"[^"\n]*"|'[^'\n]*')`), "$1" + Hidden},
	}}
}

// Hide returns a text without what is secret in it. Bytes that are not of a secret are kept as they are.
func (s *Redactor) Hide(text []byte) []byte {
	for _, r := range s.rules {
		text = r.hide(text)
	}
	return text
}

func (r hiding) hide(text []byte) []byte {
	var out []byte
	done := 0
	for begin, next := r.place(text, 0); begin >= 0; begin, next = r.place(text, next) {
		if begin < done {
			continue
		}
		match := r.found.FindSubmatchIndex(text[begin:])
		if match == nil {
			continue
		}
		out = append(out, text[done:begin]...)
		out = r.found.Expand(out, []byte(r.by), text[begin:], match)
		done = begin + match[1]
		next = max(next, done)
	}
	if done == 0 {
		return text
	}
	return append(out, text[done:]...)
}

// pem finds the first line of what is encoded as PEM (RFC 7468, section 2).
func pem(text []byte, from int) (begin, next int) {
	i := bytes.Index(text[from:], []byte("-----BEGIN "))
	if i < 0 {
		return -1, 0
	}
	return from + i, from + i + 1
}

// jwt finds how a header of JSON begins in a token (RFC 7515, section 3.1).
func jwt(text []byte, from int) (begin, next int) {
	for {
		i := bytes.Index(text[from:], []byte("eyJ"))
		if i < 0 {
			return -1, 0
		}
		begin, from = from+i, from+i+1
		if begin > 0 && inWord(text[begin-1]) {
			continue
		}
		for from < len(text) && (inWord(text[from]) || text[from] == '-') {
			from++ // If none begins here, none does in the rest of this part of it.
		}
		return begin, from
	}
}

// scheme finds the schemes of an Authorization header (RFC 7235, section 2.1).
func scheme(text []byte, from int) (begin, next int) {
	for {
		i := bytes.IndexAny(text[from:], "bB")
		if i < 0 {
			return -1, 0
		}
		from += i + 1
		if i = from - 1; i > 0 && inWord(text[i-1]) {
			continue
		}
		for _, name := range []string{"bearer", "basic"} {
			if rest := text[i:]; len(rest) > len(name) && bytes.EqualFold(rest[:len(name)], []byte(name)) {
				return i, from
			}
		}
	}
}

// address finds the last letter of a URL's scheme.
func address(text []byte, from int) (begin, next int) {
	for {
		i := bytes.Index(text[from:], []byte("://"))
		if i < 0 {
			return -1, 0
		}
		from += i + 1
		if i = from - 2; i >= 0 && inWord(text[i]) {
			return i, from
		}
	}
}

// endings are those of the names of secrets.
var endings = [][]byte{
	[]byte("password"), []byte("passwd"), []byte("secret"), []byte("token"), []byte("key"), []byte("credential"),
	[]byte("authorization"), []byte("cookie"), []byte("bearer"),
}

// named finds the name of a secret that a colon or an equals sign follows. Before and behind the name stands quote.
func named(quote string) place {
	return func(text []byte, from int) (begin, next int) {
		for {
			i := bytes.IndexAny(text[from:], ":=")
			if i < 0 {
				return -1, 0
			}
			from += i + 1
			head, quoted := bytes.CutSuffix(bytes.TrimRight(text[:from-1], "\t\n\f\r "), []byte(quote))
			if !quoted || !ends(head) {
				continue
			}
			begin = len(head)
			for begin > 0 && (inWord(head[begin-1]) || head[begin-1] == '-') {
				begin--
			}
			if quote == "" { // A word begins with a letter.
				for head[begin] == '-' {
					begin++
				}
			}
			if bytes.HasSuffix(head[:begin], []byte(quote)) {
				return begin - len(quote), from
			}
		}
	}
}

func ends(name []byte) bool {
	for _, e := range endings {
		if n := len(name) - len(e); n >= 0 && bytes.EqualFold(name[n:], e) {
			return true
		}
	}
	return false
}

// inWord reports whether a byte is of a word, as \w and \b of package regexp have it.
func inWord(b byte) bool {
	return b == '_' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}
