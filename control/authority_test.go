package control

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/identity/ca"
)

// TestSharedAuthority: all servers of a mesh have the key of the first, also one that had another before.
func TestSharedAuthority(t *testing.T) {
	var secret map[string][]byte
	common := func(files map[string][]byte) (map[string][]byte, error) {
		if secret == nil {
			secret = maps.Clone(files)
		}
		return secret, nil
	}
	roots := func(dir string) string {
		a, err := sharedAuthority(ca.Config{Dir: dir}, common)
		if err != nil {
			t.Fatal(err)
		}
		return string(a.Bundle().PEM(a.TrustDomain()))
	}
	first, second := t.TempDir()+"/ca", t.TempDir()+"/ca"
	if _, err := ca.New(ca.Config{Dir: second}); err != nil { // a key of its own
		t.Fatal(err)
	}
	want := roots(first)
	for _, dir := range []string{second, first, second} {
		if got := roots(dir); got != want {
			t.Errorf("other roots:\n%s\nwant\n%s", got, want)
		}
	}
	delete(secret, "root-key.pem")
	if _, err := sharedAuthority(ca.Config{Dir: first}, common); err == nil || !strings.Contains(err.Error(), "no root-key.pem") {
		t.Error(err)
	}
	away := errors.New("away")
	if _, err := sharedAuthority(ca.Config{Dir: first}, func(map[string][]byte) (map[string][]byte, error) { return nil, away }); !errors.Is(err, away) {
		t.Error(err)
	}
}

// TestAuthoritySecret: a Secret without Kubernetes is refused.
func TestAuthoritySecret(t *testing.T) {
	dir := t.TempDir()
	_, err := New(Config{Dir: dir, State: dir, Listen: "127.0.0.1:0", API: dir + "/api", CASecret: "s"})
	if err == nil || !strings.Contains(err.Error(), "--kube") {
		t.Error(err)
	}
}
