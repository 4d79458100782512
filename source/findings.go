package source

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// Level is how grave a finding is.
type Level string

// The levels, gravest first.
const (
	LevelError   Level = "error"   // something will not work
	LevelWarning Level = "warning" // something probably does not do what was meant
	LevelInfo    Level = "info"
)

// Codes of findings: Istio's analyzer codes where it has one, ours (LTN) where it has none.
const (
	CodeDeprecated       = "IST0002"
	CodeNotFound         = "IST0101"
	CodeSameHost         = "IST0109"
	CodePortNeeded       = "IST0112"
	CodePortName         = "IST0118"
	CodeUnreachable      = "IST0130"
	CodeHostNotInGateway = "IST0132"
	CodeSchemaWarning    = "IST0133"
	CodeGatewayConflict  = "IST0145"
	CodeManyTelemetries  = "IST0160"
	CodeUnknownRuleHost  = "IST0174"
	CodeSameObject       = "LTN0001" // two objects define one thing of the mesh
	CodeReservedAddress  = "LTN0002" // an address from the range of allocated ones
	CodeNoAddress        = "LTN0003" // no address is left to allocate
	CodeNotAttached      = "LTN0005" // a Gateway or route of the Gateway API is not in force as written (LTN0004 is control's)
)

// Finding is something about valid objects that does not fit together.
type Finding struct {
	Code  string
	Level Level
	api.Fault
}

// String is the fault's text with level and code.
func (f Finding) String() string {
	return fmt.Sprintf("%s [%s %s]", f.Fault.String(), f.Level, f.Code)
}

// Warnings makes findings of what Decode warned of.
func Warnings(list []api.Fault) []Finding {
	var out []Finding
	for _, w := range list {
		code := CodeSchemaWarning
		if strings.Contains(w.Message, "is deprecated") {
			code = CodeDeprecated
		}
		out = append(out, Finding{code, LevelWarning, w})
	}
	return out
}

// analysis is one look at the whole set.
type analysis struct {
	*Set
	services map[string][]*mesh.Service
	traffic  map[string][]*mesh.Traffic
	gateways map[string]*mesh.Gateway
	routes   []*mesh.Route
	delegate map[string]bool
	only     api.Ref // the one object that is judged; zero: all are
	found    []Finding
}

// Findings looks at the whole set; it is ordered by file and line.
func (s *Set) Findings() []Finding { return s.findings(api.Ref{}) }

func (s *Set) findings(only api.Ref) []Finding {
	a := &analysis{
		Set: s, only: only, services: map[string][]*mesh.Service{}, traffic: map[string][]*mesh.Traffic{},
		gateways: map[string]*mesh.Gateway{}, delegate: map[string]bool{},
	}
	telemetries := map[string][]*api.Object{}
	for ref, list := range s.claims {
		for _, late := range list[1:] {
			a.add(late.by, CodeSameObject, LevelWarning, nil,
				"defines %s, as does the older %s, which is used; remove one of the two", ref.Name, place(list[0].by))
		}
		switch o := list[0].object.(type) {
		case *mesh.Service:
			a.services[o.Host] = append(a.services[o.Host], o)
		case *mesh.Traffic:
			a.traffic[o.Host] = append(a.traffic[o.Host], o)
		case *mesh.Gateway:
			a.gateways[ref.Namespace+"/"+ref.Name] = o
		case *mesh.Route:
			a.routes = append(a.routes, o)
			a.delegate[ref.Namespace+"/"+ref.Name] = len(o.Hosts) == 0
		case *mesh.Telemetry:
			if o.Selector == nil {
				telemetries[o.Namespace] = append(telemetries[o.Namespace], list[0].by)
			}
		}
	}
	slices.SortFunc(a.routes, func(x, y *mesh.Route) int {
		return cmp.Or(cmp.Compare(x.Created, y.Created), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name))
	})
	a.judgeServices()
	a.judgeTraffic()
	a.judgeGateways()
	a.judgeRoutes()
	for _, p := range s.attached.Problems() {
		a.add(p.Object, CodeNotAttached, LevelError, p.Field, "%s: %s", p.Reason, p.Message)
	}
	for _, list := range telemetries {
		slices.SortFunc(list, func(x, y *api.Object) int { return compareRefs(x.Ref, y.Ref) })
		for _, o := range list[1:] {
			a.add(o, CodeManyTelemetries, LevelError, nil, "is for the whole namespace, as is %s; join the two, or add a selector", place(list[0]))
		}
	}
	slices.SortFunc(a.found, func(x, y Finding) int {
		return cmp.Or(strings.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Column, y.Column),
			strings.Compare(x.Object, y.Object), strings.Compare(x.Code, y.Code), strings.Compare(x.Message, y.Message))
	})
	return a.found
}

// judges reports whether what became m is judged.
func (a *analysis) judges(m mesh.Object) bool {
	from := m.From()
	return a.only == api.Ref{} || a.only == api.Ref{Kind: from.Kind, Namespace: from.Namespace, Name: from.Name}
}

func (a *analysis) add(o *api.Object, code string, level Level, path []any, format string, args ...any) {
	if a.only != (api.Ref{}) && a.only != o.Ref {
		return
	}
	a.found = append(a.found, Finding{code, level, o.Fault(fmt.Sprintf(format, args...), path...)})
}

// object is what the user wrote that became m.
func (a *analysis) object(m mesh.Object) *api.Object {
	from := m.From()
	return a.objects[api.Ref{Kind: from.Kind, Namespace: from.Namespace, Name: from.Name}]
}

// place names an object with its file and line.
func place(o *api.Object) string {
	if o.File == "" {
		return o.Ref.String()
	}
	return fmt.Sprintf("%s (%s:%d)", o.Ref, o.File, o.Line)
}

func (a *analysis) judgeServices() {
	for _, list := range a.services {
		for _, s := range list {
			if !a.judges(s) {
				continue
			}
			o := a.object(s)
			for i, p := range s.Ports {
				if s.Kind == api.KindService && p.Protocol == mesh.Auto && p.Name != "" {
					a.add(o, CodePortName, LevelInfo, []any{"spec", "ports", i, "name"},
						"the name %q does not begin with a protocol, so that it is found out connection by connection; "+
							"write http-%s, tcp-%s …, or set appProtocol", p.Name, p.Name, p.Name)
				}
			}
			for i, p := range s.Addresses {
				if !s.Allocated && (rangeV4.Overlaps(p) || rangeV6.Overlaps(p)) && p.Bits() > 0 {
					a.add(o, CodeReservedAddress, LevelWarning, []any{"spec", "addresses", i},
						"%s is in the range that services without an address are given from; choose another, or leave it out", p.Addr())
				}
			}
			if len(s.Addresses) == 0 && s.Resolution != mesh.None && !s.Headless && !strings.HasPrefix(s.Host, "*") && o.Labels[labelNoAddress] != "false" {
				a.add(o, CodeNoAddress, LevelError, nil, "has no address and none is left to give; write addresses")
			}
		}
	}
}

// visible returns the service of that host which namespace sees, its own first.
func (a *analysis) visible(namespace, host string) *mesh.Service {
	var best *mesh.Service
	for _, s := range a.services[host] {
		if !s.Visibility.Sees(namespace) {
			continue
		}
		if s.Namespace == namespace {
			return s
		}
		if best == nil || cmp.Or(cmp.Compare(s.Created, best.Created), strings.Compare(s.Namespace, best.Namespace)) < 0 {
			best = s
		}
	}
	return best
}

// known finds the service for a host, by the wildcard that covers it if need be.
func (a *analysis) known(namespace, host string) *mesh.Service {
	for _, p := range mesh.Patterns(host) {
		if s := a.visible(namespace, p); s != nil {
			return s
		}
	}
	return nil
}

func (a *analysis) judgeTraffic() {
	for host, list := range a.traffic {
		for _, t := range list {
			if !a.judges(t) || strings.HasPrefix(host, "*") || a.known(t.Namespace, host) != nil {
				continue
			}
			a.add(a.object(t), CodeUnknownRuleHost, LevelWarning, []any{"spec", "host"},
				"no service has the host %s; the rule applies to nothing%s", host, a.nearby(t.Namespace, host))
		}
	}
}

// nearby guesses at a service of another namespace that was meant.
func (a *analysis) nearby(namespace, host string) string {
	short, _, _ := strings.Cut(host, ".")
	var hosts []string
	for h, list := range a.services {
		if name, _, _ := strings.Cut(h, "."); name == short && h != host && list[0].Visibility.Sees(namespace) {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return ""
	}
	return "; did you mean " + slices.Min(hosts) + "?"
}

func (a *analysis) judgeGateways() {
	type binding struct{ selector, bind, host string }
	names := make([]string, 0, len(a.gateways))
	for n := range a.gateways {
		names = append(names, n)
	}
	slices.Sort(names)
	first := map[binding]string{}
	for _, n := range names {
		g := a.gateways[n]
		for i, s := range g.Servers {
			if s.TLS != nil && s.TLS.Credential != "" {
				a.credential(g, i, s.TLS.Credential)
			}
			for _, h := range s.Hosts {
				b := binding{fmt.Sprint(g.Selector), fmt.Sprintf("%s:%d", s.Bind, s.Port), h.Namespace + "/" + h.Host}
				if other, taken := first[b]; taken && other != n {
					a.add(a.object(g), CodeGatewayConflict, LevelError, []any{"spec", "servers", i},
						"opens port %d for %s on the same workloads as Gateway %s; remove one", s.Port, h.Host, other)
				} else {
					first[b] = n
				}
			}
		}
	}
}

func (a *analysis) credential(g *mesh.Gateway, i int, name string) {
	if strings.Contains(name, "/") || strings.Contains(name, ":") {
		return
	}
	if a.winner(mesh.Ref{Kind: mesh.KindSecret, Namespace: g.Namespace, Name: name}) == nil {
		a.add(a.object(g), CodeNotFound, LevelError, []any{"spec", "servers", i, "tls", "credentialName"},
			"there is no Secret %s/%s with a certificate; apply it, or connections to this port fail", g.Namespace, name)
	}
}
