package control

import (
	"strings"
	"testing"
)

// TestAuthoritySecret: a Secret without Kubernetes is refused.
func TestAuthoritySecret(t *testing.T) {
	dir := t.TempDir()
	_, err := New(Config{Dir: dir, State: dir, Listen: "127.0.0.1:0", API: dir + "/api", CASecret: "s"})
	if err == nil || !strings.Contains(err.Error(), "--kube") {
		t.Error(err)
	}
}
