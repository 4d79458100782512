package control

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"

	"github.com/lateen-mesh/lateen/compile"
	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/native"
	"github.com/lateen-mesh/lateen/xds/server"
)

// encodedMax bounds the encoded resources that are kept beyond those in use.
const encodedMax = 1 << 16

// planSource serves compiled plans to the xDS server, each encoded once.
type planSource struct {
	c *Control

	mu      sync.Mutex
	encoded map[plan.Resource]server.Resource
}

func newPlanSource(c *Control) *planSource {
	return &planSource{c: c, encoded: map[plan.Resource]server.Resource{}}
}

// Scope says who a client is to the compiler, from what it says of itself and what it has proven.
func (s *planSource) Scope(client *server.Client) (string, error) {
	n, err := readNode(client)
	if err != nil {
		return "", err
	}
	if n.asker.Role == compile.Sidecar && n.workload != nil {
		s.c.registry.join(n.workload)
	}
	return s.c.cache.ScopeOf(n.asker), nil
}

// Resource returns one compiled resource.
func (s *planSource) Resource(k server.Key) (server.Resource, bool) {
	kind, ok := native.KindOf(k.Type)
	if !ok {
		return server.Resource{}, false
	}
	res := s.c.cache.Get(compile.Key{Scope: k.Scope, Kind: kind, Name: k.Name})
	if res == nil {
		return server.Resource{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if out, ok := s.encoded[res]; ok {
		return out, true
	}
	if len(s.encoded) > encodedMax {
		clear(s.encoded)
	}
	body := native.Encode(res)
	h := fnv.New64a()
	_, _ = h.Write(body) // never fails
	out := server.Resource{Name: res.ResourceName(), Version: strconv.FormatUint(h.Sum64(), 36), Body: body}
	s.encoded[res] = out
	return out, true
}

// Names lists what a wildcard subscription covers.
func (s *planSource) Names(scope, typeURL string) []string {
	kind, ok := native.KindOf(typeURL)
	if !ok {
		return nil
	}
	return s.c.cache.Names(scope, kind)
}

// changed turns the compiler's keys into those of the wire.
func (s *planSource) changed(keys []compile.Key) []server.Key {
	out := make([]server.Key, 0, len(keys))
	for _, k := range keys {
		out = append(out, server.Key{Scope: k.Scope, Type: native.TypeURL(k.Kind), Name: k.Name})
	}
	return out
}

// forget lets go of answers that no client subscribes to any more.
func (s *planSource) forget(xds *server.Server) {
	xds.Release(s.changed(s.c.cache.Keys()), func(k server.Key) {
		kind, _ := native.KindOf(k.Type)
		s.c.cache.Forget(compile.Key{Scope: k.Scope, Kind: kind, Name: k.Name})
	})
	held := len(s.c.cache.Keys())
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.encoded) > 4*held+1024 {
		clear(s.encoded)
	}
}

// node is what a client says of itself.
type node struct {
	asker    compile.Asker
	name     string
	workload *mesh.Workload // nil: it has no address of its own
}

var errIdentity = errors.New("the client has proven no identity: a proxy shows the certificate that it got for its join token")

// readNode reads a node's description (Istio's node id and metadata) and holds it against the proven identity.
func readNode(client *server.Client) (node, error) {
	if client.Identity == "" {
		return node{}, errIdentity
	}
	id, err := identity.ParseID(client.Identity)
	if err != nil {
		return node{}, err
	}
	m := client.Node.Metadata
	text := func(key string) string { s, _ := m[key].(string); return s }
	n := node{name: text("NAME")}
	kind, _, _ := strings.Cut(client.Node.ID, "~")
	switch {
	case text("GENERATOR") == "grpc":
		n.asker.Role = compile.GRPC
	case kind == "router":
		n.asker.Role = compile.Gateway
	case kind == "sidecar":
		n.asker.Role = compile.Sidecar
	default:
		return n, fmt.Errorf("node id %q: want sidecar~ or router~ at its beginning", client.Node.ID)
	}
	namespace, account := text("NAMESPACE"), text("SERVICE_ACCOUNT")
	if namespace != id.Namespace || account != "" && account != id.ServiceAccount {
		return n, fmt.Errorf("the node says that it is %s/%s, but its certificate is for %s", namespace, account, id)
	}
	n.asker.Namespace, n.asker.Workload, n.asker.Locality = namespace, n.name, text("LOCALITY")
	n.asker.Labels = mesh.Labels{}
	labels, _ := m["LABELS"].(map[string]any)
	for k, v := range labels {
		if s, ok := v.(string); ok {
			n.asker.Labels[k] = s
		}
	}
	n.workload = workloadOf(m, &n, id)
	return n, nil
}
