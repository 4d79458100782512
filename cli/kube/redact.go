package kube

import (
	"regexp"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hidden stands for what was taken out.
const hidden = "[hidden]"

// secretive finds keys and tokens in texts of any kind: in PEM, as JWT, in headers, in addresses, and in fields of JSON and
// YAML that are called so. What stands in a place of its own goes; the places stay readable.
type secretive struct {
	rules []hiding
}

type hiding struct {
	found *regexp.Regexp
	by    string
}

func newSecretive() *secretive {
	const word = `[A-Za-z0-9_-]*(?:password|passwd|secret|token|api[_-]?key|private[_-]?key|privatekey|credential|authorization|cookie|bearer)`
	return &secretive{[]hiding{
		{regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`), hidden},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), hidden},
		{regexp.MustCompile(`(?i)\b(bearer|basic)[ =]+[A-Za-z0-9._~+/=-]{6,}`), "$1 " + hidden},
		{regexp.MustCompile(`(\w://[^\s/@:]*:)[^\s/@]+@`), "$1" + hidden + "@"},
		// "name": "value" of JSON, and where that is quoted in JSON itself.
		{regexp.MustCompile(`(?i)("` + word + `"\s*:\s*)"(?:[^"\\]|\\.)*"`), `$1"` + hidden + `"`},
		{regexp.MustCompile(`(?i)(\\"` + word + `\\"\s*:\s*)\\"(?:[^"\\]|\\[^"])*\\"`), `$1\"` + hidden + `\"`},
		// A block of YAML, and all that is indented behind it.
		{regexp.MustCompile(`(?im)(\b` + word + `:[ \t]*[|>][-+0-9]*[ \t]*\n)(?:[ \t]+.*(?:\n|\z))+`), "$1  " + hidden + "\n"},
		// name: value of YAML and name=value of logs; a name of an object (secretName) is none.
		{regexp.MustCompile(`(?im)(\b` + word + `\s*[:=][ \t]*)([^\s"'{\[|>][^\s,;}]*|"[^"\n]*"|'[^'\n]*')`), "$1" + hidden},
	}}
}

// hide returns a text without what is secret in it.
func (s *secretive) hide(text []byte) []byte {
	for _, r := range s.rules {
		text = r.found.ReplaceAll(text, []byte(r.by))
	}
	return text
}

// bareMeta takes from an object's metadata what only repeats it, with all that its user may have written there.
func bareMeta(m *meta.ObjectMeta) {
	m.ManagedFields = nil
	delete(m.Annotations, core.LastAppliedConfigAnnotation)
}

// barePod leaves of a pod's own containers what runs where: their commands and variables are the application's.
func barePod(p *core.Pod) {
	bareMeta(&p.ObjectMeta)
	for _, list := range [][]core.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if c.Name != proxyContainer && p.Labels["app"] != controlApp {
				c.Command, c.Args = nil, nil
			}
			for j := range c.Env {
				if c.Name != proxyContainer && c.Env[j].Value != "" {
					c.Env[j].Value = hidden
				}
			}
			c.Lifecycle = nil
		}
	}
}
