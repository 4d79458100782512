package attach

import (
	"fmt"
	"strconv"
	"strings"

	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// Parent is what became of a route at one of its parents.
type Parent struct {
	Ref                gateway.ParentReference
	accepted, resolved Verdict
}

// route attaches one route to all of its parents.
func (j *job) route(o *api.Object, spec gateway.CommonRouteSpec, hostnames []gateway.Hostname, fill func(*rules)) {
	// A workload may call any Service, with or without a route, so that routes within the mesh need no ReferenceGrant.
	inMesh, atGateway := &rules{job: j, object: o, free: true}, &rules{job: j, object: o}
	fill(inMesh)
	fill(atGateway)
	var names []string // of listeners
	for i, ref := range spec.ParentRefs {
		p := Parent{Ref: ref, accepted: atGateway.accepted, resolved: atGateway.resolved}
		field := []any{"spec", "parentRefs", i}
		namespace := or(ref.Namespace, o.Namespace)
		group := or(ref.Group, api.GroupGateway)
		switch kind := or(ref.Kind, api.KindGateway); {
		case group == api.GroupGateway && kind == api.KindGateway:
			g := j.gateways[namespace+"/"+string(ref.Name)]
			if g == nil {
				continue // another controller's, or nobody's
			}
			names = append(names, j.listeners(g, o, &p, hostnames, field)...)
		case group == "" && kind == api.KindService:
			p.resolved = inMesh.resolved
			if made := j.service(o, inMesh, &p, namespace, i); made != nil {
				j.result.Made[o.Ref] = append(j.result.Made[o.Ref], made)
			}
		default:
			continue
		}
		j.result.Parents[o.Ref] = append(j.result.Parents[o.Ref], p)
	}
	if len(names) == 0 {
		return
	}
	m := &mesh.Route{
		Origin: origin(o), Namespace: o.Namespace, Name: strings.ToLower(o.Kind) + "/" + o.Name, Ranked: true,
		Gateways: names, HTTP: atGateway.list,
	}
	for _, h := range hostnames {
		m.Hosts = append(m.Hosts, string(h))
	}
	if len(hostnames) == 0 {
		m.Hosts = []string{"*"}
	}
	j.result.Made[o.Ref] = append(j.result.Made[o.Ref], m)
}

// listeners attaches a route to those of a Gateway and returns the names of the ones that are open.
func (j *job) listeners(g *Gateway, o *api.Object, p *Parent, hostnames []gateway.Hostname, field []any) (names []string) {
	section := or(p.Ref.SectionName, "")
	candidates, taken, attached := 0, 0, 0
	for _, l := range g.Listeners {
		if section != "" && string(l.Name) != section || p.Ref.Port != nil && *p.Ref.Port != l.Port {
			continue
		}
		candidates++
		if !j.takes(g, l, o.Kind, o.Namespace) {
			continue
		}
		taken++
		if !shares(api.ListenerHost(l.Listener), hostnames) {
			continue
		}
		attached++
		l.Attached++
		if !l.accepted.bad() && !l.conflicted.bad() {
			names = append(names, l.name)
		}
	}
	gw := g.Object.Namespace + "/" + g.Object.Name
	switch {
	case candidates == 0:
		p.accepted.worse(string(gateway.RouteReasonNoMatchingParent),
			fmt.Sprintf("Gateway %s has no listener of that name and port", gw), field...)
	case taken == 0:
		p.accepted.worse(string(gateway.RouteReasonNotAllowedByListeners),
			fmt.Sprintf("no listener of Gateway %s takes a %s of the namespace %s; see its allowedRoutes", gw, o.Kind, o.Namespace), field...)
	case attached == 0:
		p.accepted.worse(string(gateway.RouteReasonNoMatchingListenerHostname),
			fmt.Sprintf("no listener of Gateway %s has one of the route's hostnames", gw), "spec", "hostnames")
	}
	return names
}

// shares reports whether a listener's host and some of a route's have requests in common.
func shares(host string, hostnames []gateway.Hostname) bool {
	if len(hostnames) == 0 || host == "*" {
		return true
	}
	suffix, wild := strings.CutPrefix(host, "*")
	for _, h := range hostnames {
		name := string(h)
		end, any := strings.CutPrefix(name, "*")
		if name == host || wild && strings.HasSuffix(end, suffix) || any && strings.HasSuffix(suffix, end) {
			return true
		}
	}
	return false
}

// service attaches a route to a Service, for calls within the mesh: of everybody if the route is in the Service's own
// namespace, else of its own namespace alone.
func (j *job) service(o *api.Object, r *rules, p *Parent, namespace string, i int) mesh.Object {
	s := j.Service(namespace, string(p.Ref.Name))
	field := []any{"spec", "parentRefs", i}
	none := string(gateway.RouteReasonNoMatchingParent)
	if s == nil {
		p.accepted.worse(none, fmt.Sprintf("there is no Service %s/%s", namespace, p.Ref.Name), field...)
		return nil
	}
	m := &mesh.Route{
		Origin: origin(o), Namespace: o.Namespace, Name: strings.ToLower(o.Kind) + "/" + o.Name + "/" + strconv.Itoa(i), Ranked: true,
		Gateways: []string{mesh.GatewayMesh}, Hosts: []string{s.Host}, HTTP: r.list,
	}
	if n := or(p.Ref.SectionName, ""); n != "" {
		for _, port := range s.Ports {
			if port.Name == n {
				m.Port = port.Number
			}
		}
		if m.Port == 0 {
			p.accepted.worse(none, fmt.Sprintf("Service %s/%s has no port named %s", namespace, p.Ref.Name, n), append(field, "sectionName")...)
			return nil
		}
	}
	if p.Ref.Port != nil {
		number := uint16(*p.Ref.Port)
		if _, ok := s.Port(number); !ok || m.Port != 0 && m.Port != number {
			p.accepted.worse(none, fmt.Sprintf("Service %s/%s has no such port %d", namespace, p.Ref.Name, number), append(field, "port")...)
			return nil
		}
		m.Port = number
	}
	if s.Namespace != o.Namespace {
		m.Visibility = mesh.Visibility{Namespaces: []string{o.Namespace}}
	}
	return m
}
