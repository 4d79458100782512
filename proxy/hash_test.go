package proxy

import (
	"math/bits"
	"testing"

	"github.com/lateen-mesh/lateen/proxy/stream"
)

// TestHashIsEnvoys holds the hash of a request to xxHash's own vectors and to the way in which Envoy mixes inputs.
func TestHashIsEnvoys(t *testing.T) {
	const a, abc uint64 = 0xd24ec4f1a98c6e5b, 0x44bc2cf5ad770999 // of "a" and "abc", from the specification's reference code
	x := &exchange{}
	if x.addHash([]byte("a")); x.hash != a || !x.hasHash {
		t.Errorf("one input: %x, want %x", x.hash, a)
	}
	if x.addHash([]byte("abc")); x.hash != bits.RotateLeft64(a, 1)^abc {
		t.Errorf("two inputs: %x, want %x", x.hash, bits.RotateLeft64(a, 1)^abc)
	}
}

// TestCookieQuotes: a cookie's value is the same with quotes around it.
func TestCookieQuotes(t *testing.T) {
	for text, want := range map[string]string{`a=b; c="d"`: "d", "c=d": "d", `c="`: `"`, `c=""`: ""} {
		h := &stream.Head{}
		h.Add([]byte("cookie"), []byte(text))
		if got, ok := cookie(h, "c"); !ok || string(got) != want {
			t.Errorf("%s: %q (%t), want %q", text, got, ok, want)
		}
	}
}
