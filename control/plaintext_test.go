package control

import (
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/xds/server"
)

// TestPlaintext: who comes without TLS is refused unless that is allowed, and is never a gateway.
func TestPlaintext(t *testing.T) {
	client := func(node, namespace, account string) *server.Client {
		m := map[string]any{"NAMESPACE": namespace}
		if account != "" {
			m["SERVICE_ACCOUNT"] = account
		}
		return &server.Client{Node: server.Node{ID: node, Metadata: m}}
	}
	off, on := newBench(t, Config{}), newBench(t, Config{Plaintext: "127.0.0.1:0"})
	if _, err := off.identityOf(client("sidecar~1.1.1.1~a.shop~x", "shop", "")); err == nil {
		t.Error("somebody who proves nothing is believed")
	}
	for _, tt := range []struct {
		client *server.Client
		want   string // of the identity, or of the error
	}{
		{client("sidecar~1.1.1.1~a.shop~x", "shop", "web"), "spiffe://cluster.local/ns/shop/sa/web"},
		{client("sidecar~1.1.1.1~a.shop~x", "shop", ""), "spiffe://cluster.local/ns/shop/sa/default"},
		{client("router~1.1.1.1~a.shop~x", "shop", "web"), "a gateway gets keys"},
		{client("sidecar~1.1.1.1~a.shop~x", "", "web"), "namespace"},
	} {
		id, err := on.identityOf(tt.client)
		got := id.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.client.Node.ID, got, tt.want)
		}
	}
}
