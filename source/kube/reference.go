package kube

import (
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// parametersRead takes over the ConfigMap that a Gateway names.
func parametersRead(k key) func(*turn, map[key]any, bool) {
	return func(t *turn, items map[key]any, whole bool) {
		text, there := items[k].(map[string]string)
		if there {
			t.parameters[k] = text
		} else if _, told := items[k]; told || whole {
			delete(t.parameters, k)
		}
		t.configured, t.reattach = true, true
	}
}

// configure begins to watch the ConfigMaps that Gateways name, and ends it for those that none does. The caller holds mu.
func (s *Store) configure(start func(*feed)) {
	r := &s.picture.references
	for k, f := range r.configs {
		if !r.parameters[k] {
			f.end()
			delete(r.configs, k)
		}
	}
	for k := range r.parameters {
		if r.configs[k] != nil || len(r.configs) >= referencesMax {
			continue
		}
		f := s.single(s.api.core, "configmaps", k, &core.ConfigMapList{}, func(o runtime.Object) any { return o.(*core.ConfigMap).Data }, parametersRead(k))
		f.optional = true
		r.configs[k] = f
		s.feeds = append(s.feeds, f)
		start(f)
	}
}

// referencesMax bounds the Secrets that are watched one by one.
const referencesMax = 2000

// rootsSuffix ends the name of the Secret that holds client roots, where they are kept apart from the certificate.
const rootsSuffix = "-cacert"

// references are the Secrets that the configuration names. Only these are ever read, each by itself: lateend needs no
// right to list all Secrets, and holds no key that is of no use to it.
//
// A Gateway's are in the namespaces of the workloads that it selects, as proxies only get Secrets of their own
// namespace; a DestinationRule's are those of all gateways.
type references struct {
	gateways map[mesh.Ref]*gateway
	rules    map[mesh.Ref][]string
	changed  bool
	feeds    map[key]*feed
	// parameters are the ConfigMaps that Gateways name, which are watched one by one, too.
	parameters map[key]bool
	configs    map[key]*feed
}

type gateway struct {
	selector   mesh.Labels
	names      []string
	namespaces map[string]bool
	// granted are Secrets of whatever namespace that a Gateway of the Gateway API names, and may.
	granted []key
}

func newReferences() references {
	return references{gateways: map[mesh.Ref]*gateway{}, rules: map[mesh.Ref][]string{}, feeds: map[key]*feed{}, configs: map[key]*feed{}}
}

// configured takes over what a changed object refers to.
func (r *references) configured(c mesh.Change, pods map[mesh.Ref]*pod) {
	switch c.Ref.Kind {
	case mesh.KindGateway:
		delete(r.gateways, c.Ref)
		r.changed = true
		g, _ := c.Object.(*mesh.Gateway)
		if g == nil {
			return
		}
		x := &gateway{selector: g.Selector, names: credentials(g), namespaces: map[string]bool{g.Namespace: true}, granted: granted(g)}
		for _, p := range pods {
			if p.workload.Labels.Match(g.Selector) {
				x.namespaces[p.workload.Namespace] = true
			}
		}
		r.gateways[c.Ref] = x
	case mesh.KindTraffic:
		list := rulesOf(c.Object)
		if len(list)+len(r.rules[c.Ref]) == 0 {
			return
		}
		r.changed = true
		delete(r.rules, c.Ref)
		if len(list) > 0 {
			r.rules[c.Ref] = list
		}
	}
}

// running takes over that a workload runs, which may be a gateway of a new namespace.
func (r *references) running(w *mesh.Workload) {
	for _, g := range r.gateways {
		if !g.namespaces[w.Namespace] && w.Labels.Match(g.selector) {
			g.namespaces[w.Namespace] = true
			r.changed = true
		}
	}
}

// credentials are the names of the Secrets that a Gateway's servers use.
func credentials(g *mesh.Gateway) []string {
	var out []string
	for _, s := range g.Servers {
		if s.TLS == nil || s.TLS.Credential == "" {
			continue
		}
		name := strings.TrimPrefix(s.TLS.Credential, "kubernetes://")
		if strings.ContainsAny(name, "/:") {
			continue
		}
		out = append(out, name)
		if strings.HasSuffix(s.TLS.Mode, "MUTUAL") {
			out = append(out, name+rootsSuffix)
		}
	}
	return out
}

// granted are the Secrets that a Gateway's servers name with their namespace.
func granted(g *mesh.Gateway) []key {
	var out []key
	for _, s := range g.Servers {
		if s.TLS == nil {
			continue
		}
		if rest, ok := strings.CutPrefix(s.TLS.Credential, mesh.SecretAnywhere); ok {
			namespace, name, _ := strings.Cut(rest, "/")
			out = append(out, key{Namespace: namespace, Name: name})
		}
	}
	return out
}

// rulesOf are the names of the Secrets that a DestinationRule uses.
func rulesOf(o mesh.Object) []string {
	t, _ := o.(*mesh.Traffic)
	if t == nil {
		return nil
	}
	var out []string
	var visit func(*mesh.TrafficPolicy)
	visit = func(p *mesh.TrafficPolicy) {
		if p.TLS != nil && p.TLS.Credential != "" {
			out = append(out, p.TLS.Credential, p.TLS.Credential+rootsSuffix)
		}
		for _, port := range p.Ports {
			visit(&port)
		}
	}
	visit(&t.Policy)
	for i := range t.Subsets {
		visit(&t.Subsets[i].Policy)
	}
	return out
}

// wanted are the Secrets to watch.
func (r *references) wanted() map[key]bool {
	out := map[key]bool{}
	for _, g := range r.gateways {
		for _, k := range g.granted {
			out[k] = true
		}
		for namespace := range g.namespaces {
			for _, name := range g.names {
				out[key{Namespace: namespace, Name: name}] = true
			}
			for _, names := range r.rules {
				for _, name := range names {
					out[key{Namespace: namespace, Name: name}] = true
				}
			}
		}
	}
	return out
}

// refer begins to watch the Secrets that are referred to now, and ends it for those that are not any more. The caller
// holds mu.
func (s *Store) refer(start func(*feed)) {
	r := &s.picture.references
	if !r.changed {
		return
	}
	r.changed = false
	s.configure(start)
	wanted := r.wanted()
	for _, name := range []string{PluggedSecret, s.config.Keys} {
		// Who may write a Gateway could have any proxy of this namespace given the authority's key otherwise.
		if k := (key{Namespace: ownNamespace(), Name: name}); s.config.Keys != "" && wanted[k] {
			s.log.Error("a Gateway or DestinationRule names the Secret of the authority's keys, which no proxy gets; name another", "secret", k.String())
			delete(wanted, k)
		}
	}
	for k, f := range r.feeds {
		if !wanted[k] {
			f.end()
			delete(r.feeds, k)
		}
	}
	for k := range wanted {
		if r.feeds[k] != nil {
			continue
		}
		if len(r.feeds) >= referencesMax {
			s.log.Error("not all Secrets that Gateways and DestinationRules name are watched", "limit", referencesMax, "left_out", k.String())
			return
		}
		f := s.single(s.api.core, "secrets", k, &core.SecretList{}, secretObject, objectsRead(api.KindSecret))
		f.optional = true
		r.feeds[k] = f
		s.feeds = append(s.feeds, f)
		start(f)
	}
}
