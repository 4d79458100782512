// Package redact takes secrets out of texts that somebody is to be shown: logs, configuration, answers of servers.
//
// In: bytes of any kind. Out: the same without what looks like a key, a token or a password. It must not know where the
// text comes from. A Redactor may be used concurrently.
package redact

import "regexp"

// Hidden stands for what was taken out.
const Hidden = "[hidden]"

// Redactor finds keys and tokens in texts of any kind: in PEM, as JWT, in headers, in addresses, and in fields of JSON and
// YAML that are called so. What stands in a place of its own goes; the places stay readable.
type Redactor struct {
	rules []hiding
}

type hiding struct {
	found *regexp.Regexp
	by    string
}

// New returns a Redactor.
func New() *Redactor {
	const word = `[A-Za-z0-9_-]*(?:password|passwd|secret|token|api[_-]?key|private[_-]?key|privatekey|credential|authorization|cookie|bearer)`
	return &Redactor{[]hiding{
		{regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`), Hidden},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), Hidden},
		{regexp.MustCompile(`(?i)\b(bearer|basic)[ =]+[A-Za-z0-9._~+/=-]{6,}`), "$1 " + Hidden},
		{regexp.MustCompile(`(\w://[^\s/@:]*:)[^\s/@]+@`), "$1" + Hidden + "@"},
		// "name": "value" of JSON, and where that is quoted in JSON itself.
		{regexp.MustCompile(`(?i)("` + word + `"\s*:\s*)"(?:[^"\\]|\\.)*"`), `$1"` + Hidden + `"`},
		{regexp.MustCompile(`(?i)(\\"` + word + `\\"\s*:\s*)\\"(?:[^"\\]|\\[^"])*\\"`), `$1\"` + Hidden + `\"`},
		// A block of YAML, and all that is indented behind it.
		{regexp.MustCompile(`(?im)(\b` + word + `:[ \t]*[|>][-+0-9]*[ \t]*\n)(?:[ \t]+.*(?:\n|\z))+`), "$1  " + Hidden + "\n"},
		// name: value of YAML and name=value of logs; a name of an object (secretName) is none.
		{regexp.MustCompile(`(?im)(\b` + word + `\s*[:=][ \t]*)([^\s"'{\[|>][^\s,;}]*|"[^"\n]*"|'[^'\n]*')`), "$1" + Hidden},
	}}
}

// Hide returns a text without what is secret in it.
func (s *Redactor) Hide(text []byte) []byte {
	for _, r := range s.rules {
		text = r.found.ReplaceAll(text, []byte(r.by))
	}
	return text
}
