package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/lateen-mesh/lateen/identity"
)

// tokenPrefix begins every join token, so that secret scanners and people
// recognise one.
const tokenPrefix = "lateen-join-v1."

// Bounds of join tokens.
const (
	tokenTTLDefault = 10 * time.Minute
	tokenTTLMax     = time.Hour
	// tokensMax is the most tokens remembered at once, used ones included.
	tokensMax = 16384
	// tokenMaxBytes is more than any token has.
	tokenMaxBytes = 256
	// idBytes is the length of a token's id, eight bytes of Unix time in
	// seconds and eight random ones; secretBytes that of its secret.
	idBytes     = 16
	secretBytes = 32
)

// Token is a join token, fresh from Issue.
type Token struct {
	// Text is what the workload must present. It is a secret, kept nowhere
	// else: hand it over and forget it.
	Text string
	// ID is the identity that the token stands for.
	ID identity.ID
	// Expires is when the token becomes worthless.
	Expires time.Time
}

// Tokens issues and redeems one-time join tokens, with which a workload that
// has no certificate yet proves its ID. Only hashes are kept, and only in
// memory: a restart of the control plane makes outstanding tokens worthless.
type Tokens struct {
	trustDomain string
	clock       func() time.Time

	mu      sync.Mutex
	tokens  map[string]*tokenState // by token id
	sweepAt time.Time              // no token in tokens expires before this
}

// tokenState is what is remembered of a token until it expires.
type tokenState struct {
	hash     [sha256.Size]byte
	identity identity.ID
	expires  time.Time
	usedAt   time.Time         // zero until used
	usedFrom string            // the address that used it
	usedKey  [sha256.Size]byte // the key that was certified for it
}

// NewTokens returns a store of join tokens for the authority's trust domain, on
// the authority's clock.
func NewTokens(a *Authority) *Tokens {
	return &Tokens{trustDomain: a.trustDomain, clock: a.clock, tokens: make(map[string]*tokenState)}
}

// Issue makes a token bound to a namespace and service account. A ttl of zero
// means ten minutes; an hour is the most. Its text is
// lateen-join-v1.<id>.<secret>: the id is an expiry time and random bits, both
// parts are unpadded base64url.
func (t *Tokens) Issue(namespace, serviceAccount string, ttl time.Duration) (Token, error) {
	id := identity.ID{TrustDomain: t.trustDomain, Namespace: namespace, ServiceAccount: serviceAccount}
	if err := id.Validate(); err != nil {
		return Token{}, fmt.Errorf("issue join token: %w", err)
	}
	if ttl == 0 {
		ttl = tokenTTLDefault
	}
	if ttl < 0 || ttl > tokenTTLMax {
		return Token{}, fmt.Errorf("issue join token for %s: lifetime %v is not between 0 and %v", id, ttl, tokenTTLMax)
	}
	expires := t.clock().Add(ttl).Truncate(time.Second)
	var tokenID [idBytes]byte
	binary.BigEndian.PutUint64(tokenID[:8], uint64(expires.Unix()))
	secret := make([]byte, secretBytes)
	rand.Read(tokenID[8:]) // It never returns an error.
	rand.Read(secret)
	name := base64.RawURLEncoding.EncodeToString(tokenID[:])

	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	if len(t.tokens) >= tokensMax {
		return Token{}, fmt.Errorf("issue join token for %s: %d tokens are remembered already, at most that many are; wait until some expire, the next at %s",
			id, len(t.tokens), t.sweepAt.UTC().Format(time.RFC3339))
	}
	t.tokens[name] = &tokenState{hash: sha256.Sum256(secret), identity: id, expires: expires}
	if t.sweepAt.IsZero() || expires.Before(t.sweepAt) {
		t.sweepAt = expires
	}
	return Token{
		Text:    tokenPrefix + name + "." + base64.RawURLEncoding.EncodeToString(secret),
		ID:      id,
		Expires: expires,
	}, nil
}

// Redeem uses a token up and returns the ID that it stands for. key is the
// public key that is to be certified and from the caller's address. The same
// key may redeem a token again until it expires, so that an answer lost on the
// way does not lock the workload out; anybody else is refused, and told when and
// from where the token was used.
func (t *Tokens) Redeem(text string, key []byte, from string) (identity.ID, error) {
	parts, err := splitToken(text)
	if err != nil {
		return identity.ID{}, err
	}
	hash, usedKey := sha256.Sum256(parts.secret), sha256.Sum256(key)

	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	state, ok := t.tokens[parts.name]
	if !ok || subtle.ConstantTimeCompare(state.hash[:], hash[:]) != 1 {
		return identity.ID{}, unknownToken(parts.expires, t.clock())
	}
	if now := t.clock(); state.usedAt.IsZero() {
		state.usedAt, state.usedFrom, state.usedKey = now, from, usedKey
	} else if state.usedKey != usedKey {
		return identity.ID{}, fmt.Errorf("used twice: the token for %s was used at %s from %s; issue a new one with `lateen token create`; if you did not use it, it was stolen",
			state.identity, state.usedAt.UTC().Format(time.RFC3339), state.usedFrom)
	}
	return state.identity, nil
}

// unknownToken says why a token is not remembered. expires is what the token's
// own id claims; somebody who invents one learns nothing.
func unknownToken(expires, now time.Time) error {
	if !now.Before(expires) {
		return fmt.Errorf("the token expired at %s; issue a new one with `lateen token create`", expires.UTC().Format(time.RFC3339))
	}
	return errors.New("the token is unknown: this control plane did not issue it, or has restarted since; issue a new one with `lateen token create`")
}

// tokenParts are the parts of a token's text.
type tokenParts struct {
	name    string
	expires time.Time
	secret  []byte
}

// splitToken takes a token's text apart. The error does not quote it.
func splitToken(text string) (tokenParts, error) {
	malformed := errors.New("the token is malformed; it must read lateen-join-v1.<id>.<secret>, complete and without quotes")
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(text) > tokenMaxBytes {
		return tokenParts{}, malformed
	}
	name, encoded, ok := strings.Cut(rest, ".")
	if !ok {
		return tokenParts{}, malformed
	}
	id, err := base64.RawURLEncoding.Strict().DecodeString(name)
	if err != nil || len(id) != idBytes {
		return tokenParts{}, malformed
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(secret) != secretBytes {
		return tokenParts{}, malformed
	}
	expires := time.Unix(int64(binary.BigEndian.Uint64(id)), 0)
	return tokenParts{name: name, expires: expires, secret: secret}, nil
}

// sweep forgets expired tokens, if there can be any; mu is held.
func (t *Tokens) sweep() {
	now := t.clock()
	if len(t.tokens) == 0 || now.Before(t.sweepAt) {
		return
	}
	t.sweepAt = time.Time{}
	for name, s := range t.tokens {
		if !now.Before(s.expires) {
			delete(t.tokens, name)
		} else if t.sweepAt.IsZero() || s.expires.Before(t.sweepAt) {
			t.sweepAt = s.expires
		}
	}
}

// Kind implements Authenticator.
func (*Tokens) Kind() string { return "join token" }

// Authenticate implements Authenticator: the token is the bearer token of the
// call. Bearer tokens that are no join tokens are left to others.
func (t *Tokens) Authenticate(ctx context.Context, key []byte) (identity.ID, error) {
	text, err := bearer(ctx)
	if err != nil {
		return identity.ID{}, err
	}
	if !strings.HasPrefix(text, tokenPrefix) {
		return identity.ID{}, ErrNoCredential
	}
	if key == nil {
		return identity.ID{}, errors.New("a join token is good for obtaining a certificate, and for nothing else")
	}
	return t.Redeem(text, key, remoteAddress(ctx))
}

// remoteAddress returns the caller's address, for messages.
func remoteAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return "an unknown address"
}
