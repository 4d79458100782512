package plan

import (
	"strings"
	"testing"
)

func TestTemplate(t *testing.T) {
	for value, want := range map[string]string{
		"":                 "",
		"plain":            "plain",
		"100%":             "100%",
		"100%%":            "100%",
		"50% off, 20% off": "50% off, 20% off",
		"%":                "%",
		"%%%":              "%%",
		"%%A%%":            "%A%",
		"%A%":              "<A>",
		"a%A%b%B_2%":       "a<A>b<B_2>",
		"%A%%B%":           "<A><B>",
		"5%%A%":            "5%A%",
		"5%%%A%":           "5%<A>",
		"%REQ(x?y)%":       "<REQ(x?y)>",
		"%REQ(x?y):8%":     "<REQ(x?y):8>",
		"%REQ(x%":          "%REQ(x%",
		"%REQ(x):%":        "%REQ(x):%",
		"%a%":              "%a%",
		"%20%A%":           "<20>A%",
		"%C3%A9":           "<C3>A9",
	} {
		var b strings.Builder
		for _, p := range Template(value) {
			if p.Operator {
				b.WriteString("<" + p.Text + ">")
			} else {
				b.WriteString(p.Text)
			}
		}
		if b.String() != want {
			t.Errorf("%q is %q, want %q", value, b.String(), want)
		}
	}
}
