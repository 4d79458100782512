package claims

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// tokenOf is a token as a service account's looks.
func tokenOf(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".signature"
}

// TestCheck: the clocks may differ.
func TestCheck(t *testing.T) {
	token := tokenOf(`{"aud":"istio-ca","exp":1800000000}`)
	for after, good := range map[time.Duration]bool{-time.Hour: true, clocksApart: true, clocksApart + time.Second: false} {
		if err := Check(token, "istio-ca", time.Unix(1800000000, 0).Add(after)); (err == nil) != good {
			t.Errorf("%s after its end: %v", after, err)
		}
	}
}

// FuzzCheck: whatever is shown as a token, what is let through is meant for us.
func FuzzCheck(f *testing.F) {
	for _, claims := range []string{`{"aud":"istio-ca"}`, `{"aud":["istio-ca"],"exp":1}`, `{"aud":"\u0069stio-ca","exp":-1}`, `{"aud":`} {
		f.Add(tokenOf(claims))
	}
	f.Fuzz(func(t *testing.T, token string) {
		if Check(token, "istio-ca", time.Unix(0, 0)) != nil {
			return
		}
		text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err != nil || !json.Valid(text) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
