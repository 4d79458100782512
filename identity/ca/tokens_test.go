package ca_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

func TestTokens(t *testing.T) {
	c := newClock()
	tokens := ca.NewTokens(newAuthority(t, c))
	issue := func(ttl time.Duration) ca.Token {
		t.Helper()
		token, err := tokens.Issue("n", "alice", ttl)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	// expect redeems and checks the answer; want is part of the error, empty:
	// accepted.
	expect := func(what, text, key, from, want string) {
		t.Helper()
		id, err := tokens.Redeem(text, []byte(key), from)
		if want == "" {
			if err != nil || id != alice {
				t.Errorf("%s: %v, %v", what, id, err)
			}
			return
		}
		if err == nil || !strings.Contains(err.Error(), want) || id != (identity.ID{}) {
			t.Errorf("%s: %v, %v; want %q", what, id, err, want)
		}
		if err != nil && strings.Contains(err.Error(), text[strings.LastIndex(text, ".")+1:]) {
			t.Errorf("%s: the error tells the secret: %v", what, err)
		}
	}

	token := issue(0)
	if token.ID != alice || token.Expires.Sub(c.Now()) != 10*time.Minute || !strings.HasPrefix(token.Text, "lateen-join-v1.") {
		t.Errorf("issued %v until %v", token.ID, token.Expires)
	}
	usedAt := c.Now().UTC().Format(time.RFC3339)
	expect("first use", token.Text, "key", "10.0.0.1:5", "")
	expect("same key again", token.Text, "key", "10.0.0.1:6", "")
	c.turn(time.Minute)
	expect("another key", token.Text, "thief", "10.6.6.6:6", "used twice: the token for "+alice.String()+" was used at "+usedAt+" from 10.0.0.1:5; issue a new one with `lateen token create`; if you did not use it, it was stolen")
	expect("the thief does not shut its owner out", token.Text, "key", "10.0.0.1:7", "")
	c.turn(9 * time.Minute)
	expect("used and expired", token.Text, "key", "x", "expired at "+token.Expires.UTC().Format(time.RFC3339))

	token = issue(time.Hour)
	wrongSecret := token.Text[:len(token.Text)-4] + "AAAA"
	expect("wrong secret", wrongSecret, "key", "x", "unknown")
	expect("wrong secret did not use it up", token.Text, "key", "x", "")

	token = issue(time.Minute)
	c.turn(time.Minute - time.Second)
	last := issue(time.Minute)
	expect("in its last second", token.Text, "key", "x", "")
	c.turn(time.Second)
	expect("expired", token.Text, "key", "x", "expired")
	expect("another not expired", last.Text, "key", "x", "")

	elsewhere, err := ca.NewTokens(newAuthority(t, c)).Issue("n", "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	expect("of another control plane", elsewhere.Text, "key", "x", "unknown")
	for _, text := range []string{"", "lateen-join-v1.", "lateen-join-v1.a.b", "lateen-join-v2." + token.Text[15:], token.Text + "A", token.Text + ".", " " + token.Text, token.Text[:40], "lateen-join-v1." + strings.Repeat("A", 1<<16)} {
		if _, err := tokens.Redeem(text, nil, "x"); err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%.50q: %v", text, err)
		}
	}
}

func TestTokenIssueRefusals(t *testing.T) {
	tokens := ca.NewTokens(newAuthority(t, newClock()))
	for _, tt := range []struct {
		namespace, account string
		ttl                time.Duration
	}{{"", "a", 0}, {"n", "", 0}, {"n/x", "a", 0}, {"n", "a", -1}, {"n", "a", time.Hour + 1}} {
		if token, err := tokens.Issue(tt.namespace, tt.account, tt.ttl); err == nil || token.Text != "" {
			t.Errorf("%+v: issued", tt)
		}
	}
}

// The store is bounded, and what has expired makes room, used or not.
func TestTokensAreBounded(t *testing.T) {
	c := newClock()
	tokens := ca.NewTokens(newAuthority(t, c))
	var first ca.Token
	for i := range 16384 {
		token, err := tokens.Issue("n", fmt.Sprintf("a%d", i), 10*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = token
		}
	}
	if _, err := tokens.Issue("n", "more", 0); err == nil || !strings.Contains(err.Error(), "wait until some expire") {
		t.Fatalf("one too many: %v", err)
	}
	if _, err := tokens.Redeem(first.Text, []byte("key"), "x"); err != nil {
		t.Error(err)
	}
	if _, err := tokens.Issue("n", "more", 0); err == nil {
		t.Error("a used token is forgotten before it expires")
	}
	c.turn(10 * time.Minute)
	if _, err := tokens.Issue("n", "more", 0); err != nil {
		t.Errorf("expired tokens are not swept: %v", err)
	}
}

// Whoever comes at the same time, one key wins.
func TestTokenRedeemedByOne(t *testing.T) {
	tokens := ca.NewTokens(newAuthority(t, newClock()))
	token, err := tokens.Issue("n", "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	won := make(chan string, 16)
	for i := range 16 {
		all.Go(func() {
			key := fmt.Sprint(i)
			if _, err := tokens.Redeem(token.Text, []byte(key), "x"); err == nil {
				won <- key
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Errorf("%d keys redeemed one token", len(won))
	}
}

func FuzzRedeem(f *testing.F) {
	f.Add("lateen-join-v1.AAAAAGkhAAABAgMEBQYHCA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("lateen-join-v1..")
	a, err := ca.New(ca.Config{Dir: filepath.Join(f.TempDir(), "state")})
	if err != nil {
		f.Fatal(err)
	}
	tokens := ca.NewTokens(a)
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := tokens.Redeem(text, nil, "x"); err == nil {
			t.Fatalf("%q redeemed for %v", text, id)
		}
	})
}
