package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/xds/server"
)

// servePlaintext serves xDS, and no certificates, on the TCP address Config.Plaintext until ctx ends.
func (c *Control) servePlaintext(ctx context.Context) error {
	select {
	case <-c.read:
	case <-ctx.Done():
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.cfg.Plaintext)
	if err != nil {
		return fmt.Errorf("listen for xDS without TLS: %w; name another address with --plaintext", err)
	}
	g := grpc.NewServer(c.xds.Options()...)
	c.xds.Register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	c.plaintext.Store(new(l.Addr().String()))
	c.log.Warn("xDS is served without TLS: whoever reaches it may read the configuration of any namespace", "listen", l.Addr())
	return g.Serve(c.xds.Listener(l))
}

// believed is who a client without TLS says it is.
func (c *Control) believed(client *server.Client) (identity.ID, error) {
	text := func(key string) string { s, _ := client.Node.Metadata[key].(string); return s }
	if role, _, _ := strings.Cut(client.Node.ID, "~"); role == "router" {
		return identity.ID{}, errors.New("a gateway gets keys, and nothing of that without TLS; have it call the other port")
	}
	id := identity.ID{TrustDomain: c.cfg.TrustDomain, Namespace: text("NAMESPACE"), ServiceAccount: cmp.Or(text("SERVICE_ACCOUNT"), "default")}
	return id, id.Validate()
}
