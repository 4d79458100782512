package mesh

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// View reads a Snapshot and remembers what was asked, so that the reader's
// result can be thrown away exactly when one of the answers changes. It
// belongs to one goroutine.
type View struct {
	snap *Snapshot
	deps map[Dep]struct{}
}

// NewView starts reading s.
func NewView(s *Snapshot) *View { return &View{snap: s, deps: map[Dep]struct{}{}} }

// Deps lists everything that was asked, in no order.
func (v *View) Deps() []Dep {
	out := make([]Dep, 0, len(v.deps))
	for d := range v.deps {
		out = append(out, d)
	}
	return out
}

func (v *View) read(index Index, key string) []Object {
	v.note(index, key)
	list, _ := v.snap.index.get(Dep{index, key})
	return list
}

func (v *View) note(index Index, key string) { v.deps[Dep{index, key}] = struct{}{} }

func (v *View) object(ref Ref) Object {
	v.note(RefName, ref.String())
	return v.snap.Object(ref)
}

func pick[T Object](list []Object, keep func(T) bool) []T {
	var out []T
	for _, o := range list {
		if t, ok := o.(T); ok && (keep == nil || keep(t)) {
			out = append(out, t)
		}
	}
	return out
}

// Config is the mesh's configuration; never nil.
func (v *View) Config() *Config {
	if list := pick[*Config](v.read(ConfigAll, ""), nil); len(list) > 0 {
		return list[0]
	}
	return DefaultConfig()
}

// DefaultConfig is the configuration of a mesh that gives none: MeshConfig's defaults.
func DefaultConfig() *Config {
	return &Config{TrustDomain: "cluster.local", RootNamespace: "istio-system", Sampling: 1}
}

// Service returns the service of that host as namespace sees it: its own
// namespace's first, then the oldest visible one; nil if there is none.
func (v *View) Service(namespace, host string) *Service {
	list := pick(v.read(ServiceHost, host), func(s *Service) bool { return s.Visibility.Sees(namespace) })
	return preferred(namespace, list)
}

func preferred(namespace string, list []*Service) *Service {
	for _, s := range list {
		if s.Namespace == namespace {
			return s
		}
	}
	if len(list) > 0 {
		return list[0]
	}
	return nil
}

// ServiceAt returns the service that owns a port of a virtual address, as namespace sees it; nil if there is none.
// An exact address beats a range, a longer range a shorter one.
func (v *View) ServiceAt(namespace string, addr netip.Addr, port uint16) *Service {
	visible := func(s *Service) bool {
		_, has := s.Port(port)
		return has && s.Visibility.Sees(namespace)
	}
	if s := preferred(namespace, pick(v.read(ServiceVIP, addr.String()), visible)); s != nil {
		return s
	}
	longest := 0
	ranges := pick(v.read(ServiceVIP, ""), func(s *Service) bool {
		bits := s.rangeBits(addr)
		if bits < 0 || !visible(s) {
			return false
		}
		longest = max(longest, bits)
		return true
	})
	return preferred(namespace, slices.DeleteFunc(ranges, func(s *Service) bool { return s.rangeBits(addr) < longest }))
}

// rangeBits is the length of the longest of the service's ranges that holds an address; -1: none does.
func (s *Service) rangeBits(addr netip.Addr) int {
	longest := -1
	for _, p := range s.Addresses {
		if p.Contains(addr) {
			longest = max(longest, p.Bits())
		}
	}
	return longest
}

// HTTPPort reports whether any service that namespace sees speaks HTTP on a port of that number.
func (v *View) HTTPPort(namespace string, port uint16) bool {
	return slices.ContainsFunc(v.read(ServicePort, strconv.Itoa(int(port))), func(o Object) bool {
		s := o.(*Service)
		p, _ := s.Port(port)
		return p.Protocol.IsHTTP() && s.Visibility.Sees(namespace)
	})
}

// Services lists every service that namespace sees, oldest first. Whoever asks depends on all of them.
func (v *View) Services(namespace string) []*Service {
	return pick(v.read(ServiceAll, ""), func(s *Service) bool { return s.Visibility.Sees(namespace) })
}

// ServicesOf lists the services that select a workload of that namespace and those labels, oldest first.
func (v *View) ServicesOf(namespace string, labels Labels) []*Service {
	var out []*Service
	for k, val := range labels {
		out = append(out, pick(v.read(ServiceSelector, namespace+"|"+k+"="+val), func(s *Service) bool { return labels.Match(s.Selector) })...)
	}
	slices.SortFunc(out, func(a, b *Service) int { return byAge(a, b) })
	return out
}

// Workloads lists the workloads that a service lists itself, selects, or that are listed for it, in a stable order.
func (v *View) Workloads(s *Service) []*Workload {
	out := slices.Clone(s.Endpoints)
	for _, j := range joins(s) {
		out = append(out, pick(v.read(WorkloadLabel, j.pair), j.picks)...)
	}
	return out
}

// Accounts lists the workloads' service accounts behind a service as "namespace/name", sorted. Whoever asks does not
// depend on how many workloads there are, nor on where they are.
func (v *View) Accounts(s *Service) []string {
	list := s.Endpoints
	for _, j := range joins(s) {
		v.note(WorkloadAccount, j.pair)
		members, _ := v.snap.index.get(Dep{WorkloadLabel, j.pair})
		list = slices.Concat(list, pick(members, j.picks))
	}
	var out []string
	for _, w := range list {
		if w.ServiceAccount != "" {
			out = append(out, w.Namespace+"/"+w.ServiceAccount)
		}
	}
	return unique(out)
}

// Workload returns the workload with that ID; nil if there is none.
func (v *View) Workload(namespace, id string) *Workload {
	w, _ := v.object(Ref{KindWorkload, namespace, id}).(*Workload)
	return w
}

// WorkloadsAt lists the workloads that have an address.
func (v *View) WorkloadsAt(addr netip.Addr) []*Workload {
	return pick[*Workload](v.read(WorkloadAddress, addr.String()), nil)
}

// Patterns lists the keys under which something that applies to host can be
// written, most specific first: "a.b.c", "*.b.c", "*.c", "*".
func Patterns(host string) []string {
	out := []string{host}
	rest := strings.TrimPrefix(host, "*.")
	if rest == host {
		_, rest, _ = strings.Cut(host, ".")
	} else {
		_, rest, _ = strings.Cut(rest, ".")
	}
	for rest != "" {
		out = append(out, "*."+rest)
		_, rest, _ = strings.Cut(rest, ".")
	}
	if host != "*" {
		out = append(out, "*")
	}
	return out
}

// Routes lists the routes for a host that namespace sees and that gateway (GatewayMesh or "namespace/name")
// carries: those of the most specific pattern that has any, oldest first.
func (v *View) Routes(namespace, gateway, host string) []*Route {
	for _, p := range Patterns(host) {
		list := pick(v.read(RouteHost, p), func(r *Route) bool {
			return slices.Contains(r.Gateways, gateway) && r.Visibility.Sees(namespace)
		})
		if len(list) > 0 {
			return list
		}
	}
	return nil
}

// GatewayRoutes lists the routes that name a gateway ("namespace/name"), oldest first.
func (v *View) GatewayRoutes(gateway string) []*Route {
	return pick[*Route](v.read(RouteGateway, gateway), nil)
}

// Route returns a route by name, for delegation; nil if there is none.
func (v *View) Route(namespace, name string) *Route {
	r, _ := v.object(Ref{KindRoute, namespace, name}).(*Route)
	return r
}

// Traffic lists the traffic policies for a host written in one namespace that viewer sees: those of the most
// specific pattern that has any, oldest first.
func (v *View) Traffic(namespace, viewer, host string) []*Traffic {
	for _, p := range Patterns(host) {
		list := pick(v.read(TrafficHost, p), func(t *Traffic) bool {
			return t.Namespace == namespace && t.Visibility.Sees(viewer)
		})
		if len(list) > 0 {
			return list
		}
	}
	return nil
}

// Gateways lists the gateways whose selector picks a workload of a namespace, oldest first. As in Istio's default, a
// gateway may select workloads of any namespace.
func (v *View) Gateways(namespace string, labels Labels) []*Gateway {
	return pick(v.read(GatewayAll, ""), func(g *Gateway) bool {
		return labels.Match(g.Selector) && (g.Workloads == "" || g.Workloads == namespace)
	})
}

// Secret returns a TLS secret; nil if there is none.
func (v *View) Secret(namespace, name string) *Secret {
	s, _ := v.object(Ref{KindSecret, namespace, name}).(*Secret)
	return s
}

// Authn lists the peer authentications of a namespace, oldest first.
func (v *View) Authn(namespace string) []*Authn {
	return pick[*Authn](v.read(AuthnNamespace, namespace), nil)
}

// Authz lists the authorization policies of a namespace, oldest first.
func (v *View) Authz(namespace string) []*Authz {
	return pick[*Authz](v.read(AuthzNamespace, namespace), nil)
}

// Telemetry lists the telemetry settings of a namespace, oldest first.
func (v *View) Telemetry(namespace string) []*Telemetry {
	return pick[*Telemetry](v.read(TelemetryNamespace, namespace), nil)
}
