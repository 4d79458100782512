package control

import (
	"context"
	"fmt"

	"google.golang.org/grpc/peer"

	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/fair"
	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source/attach"
)

// authenticators prove who asks for a certificate. A token counts before a certificate: who brings one is joining anew.
func (c *Control) authenticators() ca.Authenticators {
	out := ca.Authenticators{c.tokens}
	if c.cluster != nil {
		out = append(out, ca.Bearer{Name: "service account token", Judge: c.judgeToken})
	}
	return append(out, ca.MeshCertificate{Authority: c.authority})
}

// judgeToken proves a workload by the token of its service account.
func (c *Control) judgeToken(ctx context.Context, token string) (identity.ID, error) {
	from := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = fair.Address(p.Addr.String())
	}
	namespace, account, err := c.cluster.Account(ctx, from, token)
	if err != nil {
		return identity.ID{}, err
	}
	id := identity.ID{TrustDomain: c.authority.TrustDomain(), Namespace: namespace, ServiceAccount: account}
	return id, id.Validate()
}

// admitNode decides whether a proven node may be what it says, and brings a workload that is none of the cluster's into
// the mesh.
//
// Outside of a cluster, and in one for those who joined by a token of ours, that is what the token was made for. In a
// cluster a service account's proof is the API server's: its proxies may be any pod of that account, also one that we
// do not know of yet, and a gateway if they might read the namespace's Secrets themselves.
func (c *Control) admitNode(ctx context.Context, n *node) error {
	if c.cluster == nil || c.grants.knows(n) {
		if err := c.grants.check(n, n.id); err != nil {
			return err
		}
		if n.asker.Role == compile.Sidecar && n.workload != nil {
			return c.registry.join(n.workload)
		}
		return nil
	}
	ref := mesh.Ref{Kind: mesh.KindWorkload, Namespace: n.id.Namespace, Name: n.name}
	if w, _ := c.cache.Snapshot().Object(ref).(*mesh.Workload); w != nil && w.ServiceAccount != n.id.ServiceAccount {
		return fmt.Errorf("%s is of service account %s, not of %s", ref, w.ServiceAccount, n.id.ServiceAccount)
	}
	if n.asker.Role == compile.Gateway {
		if c.cluster.Serves(n.id.Namespace, n.id.ServiceAccount, n.asker.Labels[attach.LabelGateway]) {
			return nil // we have deployed it, and it gets no keys but those that its Gateway names
		}
		if err := c.cluster.MayReadSecrets(ctx, n.id.Namespace, n.id.ServiceAccount); err != nil {
			return fmt.Errorf("%s may not be a gateway: %w", n.id, err)
		}
	}
	return nil
}
