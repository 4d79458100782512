package redact

import (
	"bytes"
	"regexp"
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

// everywhere are the rules of New without their places.
var everywhere = func() (out []hiding) {
	begin := regexp.MustCompile(`^(\(\?[a-z]+\))?\\A(\(\[A-Z|eyJ|\(bearer)?`)
	for _, r := range New().rules {
		rule := begin.ReplaceAllStringFunc(r.found.String(), func(s string) string {
			parts := begin.FindStringSubmatch(s)
			if parts[2] == "" {
				return parts[1]
			}
			return parts[1] + `\b` + parts[2]
		})
		out = append(out, hiding{found: regexp.MustCompile(rule), by: r.by})
	}
	return out
}()

// TestEverywhere: what the places are compared with has no places.
func TestEverywhere(t *testing.T) {
	for _, r := range everywhere {
		if strings.Contains(r.found.String(), `\A`) {
			t.Error(r.found)
		}
	}
}

// FuzzPlaces: a secret is found wherever the rules alone would find it, and nothing else is.
func FuzzPlaces(f *testing.F) {
	parts := []string{
		"token", "Password", "key", "api_", "PRIVATE-", "bearer", "Basic ", "a", "B12345678", "-", "_", ":", "=", `"`, `\"`, `\`, "'", "\n", " ", "\t", "|", ">-2",
		"eyJ", "eyJhbGciOiJub25lIn0.", ".", "://", "@", "{", "}", ",", ";", "/", "-----BEGIN ", "PRIVATE KEY-----", "-----END PRIVATE KEY-----", "\x00",
	}
	for i := range parts {
		f.Add([]byte{0, byte(i), 11, 7})
		f.Add([]byte{byte(i), 13, 0, 13, 11, 13, 7, 13})
	}
	s := New()
	f.Fuzz(func(t *testing.T, list []byte) {
		var text []byte
		for _, i := range list[:min(len(list), 100)] {
			text = append(text, parts[int(i)%len(parts)]...)
		}
		want := text
		for _, r := range everywhere {
			want = r.found.ReplaceAll(want, []byte(r.by))
		}
		if got := s.Hide(text); !bytes.Equal(got, want) {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	})
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

// BenchmarkHide: logs with secrets, text without, and what has many places that are none.
func BenchmarkHide(b *testing.B) {
	s := New()
	for name, line := range map[string]string{
		"logs":  "2026-11-22T19:53:13.123456Z\tinfo\txds\tpushed to sidecar~10.244.1.5~reviews-v1-6d8f.default token=abc size=123\n",
		"json":  "      \"name\": \"outbound|9080||reviews.default.svc.cluster.local\",\n",
		"begun": "-eyJaaaaaaaa \"token\":\"a://-----BEGIN ",
	} {
		b.Run(name, func(b *testing.B) {
			text := bytes.Repeat([]byte(line), 1<<20/len(line))
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				s.Hide(text)
			}
		})
	}
}
