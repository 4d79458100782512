package plan

import "net/netip"

// Name is the answer to a DNS question: what a host name of the mesh, as a
// workload of the asking namespace may write it ("reviews", "reviews.default",
// "reviews.default.svc.cluster.local"), resolves to.
type Name struct {
	Name      string // lower case, without the final dot
	Addresses []netip.Addr
}

// ResourceName is the host name as asked.
func (n *Name) ResourceName() string { return n.Name }

// ResourceKind is KindName.
func (n *Name) ResourceKind() Kind { return KindName }

// Secret is key material for a gateway or an external TLS connection. It is
// held in memory only and its String never shows the key.
type Secret struct {
	Name  string // "kubernetes://namespace/name"
	Chain []byte // PEM, leaf first
	Key   []byte // PEM
	Roots []byte // PEM of the certificates that clients must chain to
}

// ResourceName is the secret's name.
func (s *Secret) ResourceName() string { return s.Name }

// ResourceKind is KindSecret.
func (s *Secret) ResourceKind() Kind { return KindSecret }
