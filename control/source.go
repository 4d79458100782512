package control

import (
	"context"
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
	"github.com/lateen-mesh/lateen/xds/envoy"
	"github.com/lateen-mesh/lateen/xds/native"
	"github.com/lateen-mesh/lateen/xds/server"
)

// encodedMax bounds the encoded resources that are kept beyond those in use.
const encodedMax = 1 << 16

// planSource serves compiled plans to the xDS server, each encoded once.
type planSource struct {
	c *Control

	mu      sync.Mutex
	options envoy.Options // for what is encoded
	encoded map[form]server.Resource
	lists   map[server.Key]listed // of Envoy's names, by scope and type
}

// form is one encoding of a resource: several types can carry the same one, in Envoy's under several names.
type form struct {
	resource      plan.Resource
	typeURL, name string
}

func newPlanSource(c *Control) *planSource {
	return &planSource{c: c, options: optionsOf(c, mesh.DefaultConfig()), encoded: map[form]server.Resource{}, lists: map[server.Key]listed{}}
}

// Scope says who a client is to the compiler, from what it says of itself and what it has proven.
func (s *planSource) Scope(client *server.Client) (string, error) {
	id, err := s.c.identityOf(client)
	if err != nil {
		return "", err
	}
	n, err := readNode(client, id)
	if err != nil {
		return "", err
	}
	if err := s.c.admitNode(context.Background(), &n); err != nil {
		return "", err
	}
	return s.c.cache.ScopeOf(n.asker), nil
}

// Resource returns one compiled resource, in our own encoding or in Envoy's.
func (s *planSource) Resource(k server.Key) (server.Resource, bool) {
	if kind, ok := native.KindOf(k.Type); ok {
		res := s.c.cache.Get(compile.Key{Scope: k.Scope, Kind: kind, Name: k.Name})
		return s.once(k, res, func(envoy.Options) ([]byte, bool) { return native.Encode(res), true })
	}
	if kind, ok := envoy.KindOf(k.Type); ok {
		f := flavourOf(k.Scope)
		res := s.c.cache.Get(compile.Key{Scope: k.Scope, Kind: kind, Name: envoy.PlanName(f, kind, k.Name)})
		return s.once(k, res, func(o envoy.Options) ([]byte, bool) { return s.envoyBody(f, o, res, k.Name) })
	}
	return server.Resource{}, false
}

// once encodes a resource the first time that it is asked for.
func (s *planSource) once(k server.Key, res plan.Resource, encode func(envoy.Options) ([]byte, bool)) (server.Resource, bool) {
	if res == nil {
		return server.Resource{}, false
	}
	at := form{res, k.Type, k.Name}
	s.mu.Lock()
	defer s.mu.Unlock()
	if out, ok := s.encoded[at]; ok {
		return out, out.Name != ""
	}
	if len(s.encoded) > encodedMax {
		clear(s.encoded)
	}
	out := server.Resource{}
	if body, ok := encode(s.options); ok {
		h := fnv.New64a()
		_, _ = h.Write(body) // never fails
		out = server.Resource{Name: k.Name, Version: strconv.FormatUint(h.Sum64(), 36), Body: body}
	}
	s.encoded[at] = out // one without a name says that there is none
	return out, out.Name != ""
}

// Names lists what a wildcard subscription covers.
func (s *planSource) Names(scope, typeURL string) []string {
	if kind, ok := native.KindOf(typeURL); ok {
		return s.c.cache.Names(scope, kind)
	}
	if kind, ok := envoy.KindOf(typeURL); ok {
		return s.envoyNames(server.Key{Scope: scope, Type: typeURL}, kind)
	}
	return nil
}

// keysOf turns one of the compiler's keys into those of the wire.
func keysOf(out []server.Key, k compile.Key) []server.Key {
	out = append(out, server.Key{Scope: k.Scope, Type: native.TypeURL(k.Kind), Name: k.Name})
	typeURL := envoy.TypeURL(k.Kind)
	if typeURL == "" {
		return out
	}
	if k.Name == "" {
		return append(out, server.Key{Scope: k.Scope, Type: typeURL})
	}
	for _, name := range envoy.Names(flavourOf(k.Scope), k.Kind, k.Name) {
		out = append(out, server.Key{Scope: k.Scope, Type: typeURL, Name: name})
	}
	return out
}

// changed turns the compiler's keys into those of the wire, and takes over what the mesh's configuration says to Envoy
// alone.
func (s *planSource) changed(snap *mesh.Snapshot, keys []compile.Key) []server.Key {
	if s.reconfigure(mesh.NewView(snap).Config()) {
		keys = s.c.cache.Keys() // any of them may be encoded in another way
	}
	out := make([]server.Key, 0, 2*len(keys))
	for _, k := range keys {
		out = keysOf(out, k)
	}
	return out
}

// forget lets go of answers that no client subscribes to any more, in whatever form.
func (s *planSource) forget(xds *server.Server) {
	var keys []server.Key
	owner, wanted := map[server.Key]compile.Key{}, map[compile.Key]int{}
	for _, k := range s.c.cache.Keys() {
		n := len(keys)
		keys = keysOf(keys, k)
		for _, form := range keys[n:] {
			owner[form] = k
		}
		wanted[k] = len(keys) - n
	}
	xds.Release(keys, func(k server.Key) {
		o := owner[k]
		if wanted[o]--; wanted[o] == 0 {
			s.c.cache.Forget(o)
		}
	})
	held := len(s.c.cache.Keys())
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.encoded) > 4*held+1024 {
		clear(s.encoded)
		clear(s.lists)
	}
}

// node is what a client says of itself.
type node struct {
	id       identity.ID // proven
	asker    compile.Asker
	name     string
	workload *mesh.Workload // nil: it has no address of its own
}

var errIdentity = errors.New("the client has proven no identity: a proxy shows the certificate that it got for its join token")

// identityOf is what a client has proven, or says where nothing need be proven.
func (c *Control) identityOf(client *server.Client) (identity.ID, error) {
	if client.Identity != "" {
		return identity.ParseID(client.Identity)
	}
	if c.cfg.Plaintext == "" {
		return identity.ID{}, errIdentity
	}
	return c.believed(client)
}

// readNode reads a node's description (Istio's node id and metadata) and holds it against the proven identity.
func readNode(client *server.Client, id identity.ID) (node, error) {
	m := client.Node.Metadata
	text := func(key string) string { s, _ := m[key].(string); return s }
	n := node{id: id, name: text("NAME")}
	if !nameValid(n.name) {
		return n, fmt.Errorf("node name %q: want lower-case letters, digits, - and ., at most %d", n.name, nameMax)
	}
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
