// Package claims judges tokens of service accounts by what they say of themselves (JWT, RFC 7519).
//
// In comes a token that nobody has verified; out goes why it cannot be good. It spares the API server, who verifies tokens,
// what is none for us. The package must not know a cluster. All functions may be called concurrently.
package claims

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// clocksApart is how far the API server's clock and ours may differ, the leeway that it has itself for tokens.
const clocksApart = time.Minute

// Check returns why an API server would refuse a token for an audience for sure: it is none, is meant for others, or has
// expired by more than a minute, as clocks differ. That it returns nil proves nothing.
func Check(token, audience string, now time.Time) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("it is no token of a service account, a JWT of three parts")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return fmt.Errorf("it is no token of a service account: %w", err)
	}
	var claims struct {
		Audience audiences `json:"aud"`
		Expires  float64   `json:"exp"` // seconds since 1970
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		return fmt.Errorf("it is no token of a service account: %w", err)
	}
	if !slices.Contains(claims.Audience, audience) {
		return fmt.Errorf("the token is not meant for us; mount a projected token with the audience %s", audience)
	}
	if late := float64(now.Add(-clocksApart).Unix()) - claims.Expires; claims.Expires != 0 && late > 0 {
		return errors.New("the token has expired; if it is mounted, the kubelet has not renewed it")
	}
	return nil
}

// audiences are for whom a token is meant: a text or a list of them (RFC 7519, section 4.1.3).
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		*a = audiences{""}
		return json.Unmarshal(text, &(*a)[0])
	}
	return json.Unmarshal(text, (*[]string)(a))
}
