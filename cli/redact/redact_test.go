package redact

import (
	"strings"
	"testing"
)

func TestHide(t *testing.T) {
	s := New()
	for text, want := range map[string]string{
		"a -----BEGIN PRIVATE KEY-----\nabc":                               "a [hidden]",
		"x eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln y":                    "x [hidden] y",
		"Authorization: Bearer abcdef123":                                  "Authorization: [hidden] [hidden]",
		"GET https://u:p@host/":                                            "GET https://u:[hidden]@host/",
		`{"db_password": "x\"y", "name": "z"}`:                             `{"db_password": "[hidden]", "name": "z"}`,
		"  password: |\n    abc\n    def\nname: x\n":                       "  password: |\n  [hidden]\nname: x\n",
		`"{\"token\": \"abc\", \"n\": 1}"`:                                 `"{\"token\": \"[hidden]\", \"n\": 1}"`,
		"clientSecret: abc\nname: x\n":                                     "clientSecret: [hidden]\nname: x\n",
		"token=abc level=info":                                             "token=[hidden] level=info",
		"credentialName: shop-cert\n":                                      "credentialName: shop-cert\n",
		"secretName: shop-cert\n":                                          "secretName: shop-cert\n",
		"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----":      "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
		"secret default/shop-cert: ready":                                  "secret default/shop-cert: ready",
		"tokens:\n- a\n":                                                   "tokens:\n- a\n",
		"mountPath: /var/run/secrets/tokens\nserviceAccountToken:\n  x: 1": "mountPath: /var/run/secrets/tokens\nserviceAccountToken:\n  x: 1",
	} {
		if got := string(s.Hide([]byte(text))); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

// FuzzHide: whatever stands around it, a key does not get through, and nothing breaks.
func FuzzHide(f *testing.F) {
	const key = "c2VjcmV0c2VjcmV0c2VjcmV0"
	f.Add("a", "b")
	f.Fuzz(func(t *testing.T, before, after string) {
		text := New().Hide([]byte(before + "\n-----BEGIN PRIVATE KEY-----\n" + key + "\n-----END PRIVATE KEY-----\n" + after))
		if strings.Contains(string(text), key) && !strings.Contains(before+after, key) {
			t.Errorf("%q", text)
		}
	})
}
