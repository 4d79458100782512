package control

import (
	"errors"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/source/kube"
)

// TestAuthoritySecret: a Secret without Kubernetes is refused.
func TestAuthoritySecret(t *testing.T) {
	dir := t.TempDir()
	_, err := New(Config{Dir: dir, State: dir, Listen: "127.0.0.1:0", API: dir + "/api", CASecret: "s"})
	if err == nil || !strings.Contains(err.Error(), "--kube") {
		t.Error(err)
	}
}

// TestRefusedKeys: what is unsafe can be had all the same, and the message says how.
func TestRefusedKeys(t *testing.T) {
	for err, want := range map[error]bool{ca.ErrUnsafe: true, errors.New("x"): false} {
		got := refusedKeys(kube.Keys{Secret: "a/cacerts"}, err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), "Secret a/cacerts: ") || strings.Contains(got.Error(), kube.AnnotationForce+"=true") != want {
			t.Error(got)
		}
	}
}
