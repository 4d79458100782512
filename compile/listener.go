package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// serverName is the Server field of responses that leave a workload through its proxy.
const serverName = "istio-envoy"

// listener says what to do with a captured connection, by what the listener is named for.
func (a *asking) listener(name string) *plan.Listener {
	if name == plan.ListenerInbound {
		if a.role != Sidecar {
			return nil
		}
		return a.inbound()
	}
	if port, ok := strings.CutPrefix(name, plan.ListenerGateway); ok {
		if a.role != Gateway {
			return nil
		}
		return a.gatewayListener(name, port)
	}
	host, port, ok := splitPort(name)
	if !ok {
		return nil
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return a.outbound(name, addr.Unmap(), port)
	}
	if s := a.service(host); s != nil {
		if p, ok := s.Port(port); ok {
			return a.outboundService(name, s, p)
		}
	}
	return nil
}

// outbound is the treatment of connections to an address.
func (a *asking) outbound(name string, addr netip.Addr, port uint16) *plan.Listener {
	if s := a.ServiceAt(a.namespace, addr, port); s != nil {
		p, _ := s.Port(port)
		return a.outboundService(name, s, p)
	}
	var http bool
	for _, s := range a.ServicesOnPort(a.namespace, port) {
		p, _ := s.Port(port)
		http = http || p.Protocol.IsHTTP()
		if s.Headless && a.owns(s, addr) {
			return a.outboundService(name, s, p)
		}
	}
	rest := plan.ClusterPassthrough
	if a.config.RegistryOnly {
		rest = plan.ClusterBlackHole
	}
	if !http && !a.config.RegistryOnly {
		return nil // the proxy passes it through by itself
	}
	c := plan.Chain{Name: "other", Protocol: plan.ProtocolTCP, TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: rest}}}}
	if http {
		// Some service speaks HTTP on this port: requests go by their host, whatever address the client chose.
		c.Protocol = plan.ProtocolAuto
		c.HTTP = &plan.HTTP{ByHost: true, Peers: true}
	}
	return &plan.Listener{Name: name, Chains: []plan.Chain{c}, Telemetry: a.telemetry(mesh.ClientSide)}
}

// owns reports whether an address is that of one of a service's workloads.
func (a *asking) owns(s *mesh.Service, addr netip.Addr) bool {
	return slices.ContainsFunc(a.Workloads(s), func(w *mesh.Workload) bool { return slices.Contains(w.Addresses, addr) })
}

// outboundService is the treatment of connections to a service's port.
func (a *asking) outboundService(name string, s *mesh.Service, p mesh.Port) *plan.Listener {
	if p.Protocol == mesh.UDP {
		return nil
	}
	l := &plan.Listener{Name: name, Telemetry: a.telemetry(mesh.ClientSide)}
	l.Chains = a.l4Chains(s, p)
	if len(l.Chains) > 0 && !p.Protocol.IsHTTP() && p.Protocol != mesh.Auto {
		return l
	}
	c := plan.Chain{
		Name: s.Host, Protocol: protocol(p.Protocol), Service: serviceName(s), Origin: origin(s.Origin, 0),
		TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: clusterName(p.Number, "", s.Host)}}},
	}
	if p.Protocol.IsHTTP() || p.Protocol == mesh.Auto {
		host := s.Host
		if strings.HasPrefix(host, "*") {
			host = ""
		}
		c.HTTP = &plan.HTTP{ByHost: true, Peers: true}
		if host != "" {
			c.HTTP.Route = host + ":" + strconv.Itoa(int(p.Number))
		}
	}
	l.Chains = append(l.Chains, c)
	return l
}

// l4Chains are the chains that the routes' TLS and TCP rules order for a service's port.
func (a *asking) l4Chains(s *mesh.Service, p mesh.Port) []plan.Chain {
	if p.Protocol.IsHTTP() {
		return nil
	}
	var out []plan.Chain
	for _, r := range a.Routes(a.namespace, mesh.GatewayMesh, s.Host) {
		for i := range r.TLS {
			rule := &r.TLS[i]
			for _, m := range a.l4Matches(rule.Matches, r, mesh.GatewayMesh, p.Number) {
				out = append(out, a.l4Chain(r, rule.Line, rule.Routes, m, s, p))
			}
		}
		for i := range r.TCP {
			rule := &r.TCP[i]
			for _, m := range a.l4Matches(rule.Matches, r, mesh.GatewayMesh, p.Number) {
				out = append(out, a.l4Chain(r, rule.Line, rule.Routes, m, s, p))
			}
		}
	}
	return out
}

// l4Matches lists the matches of a rule that apply to this asker, gateway and port; one that matches everything
// stands for a rule without any.
func (a *asking) l4Matches(list []mesh.L4Match, r *mesh.Route, gateway string, port uint16) []mesh.L4Match {
	if len(list) == 0 {
		return []mesh.L4Match{{}}
	}
	var out []mesh.L4Match
	for _, m := range list {
		if (m.Port == 0 || m.Port == port) && a.applies(m.Gateways, r.Gateways, gateway, m.SourceLabels, m.SourceNamespace) {
			out = append(out, m)
		}
	}
	return out
}

// applies reports whether a match that names gateways, source labels and a source namespace is for this asker.
func (a *asking) applies(gateways, routeGateways []string, gateway string, labels mesh.Labels, namespace string) bool {
	if len(gateways) == 0 {
		gateways = routeGateways
	}
	if !slices.Contains(gateways, gateway) || namespace != "" && namespace != a.namespace {
		return false
	}
	return len(labels) == 0 || a.labels().Match(labels)
}

func (a *asking) l4Chain(r *mesh.Route, line int, routes []mesh.Destination, m mesh.L4Match, s *mesh.Service, p mesh.Port) plan.Chain {
	c := plan.Chain{
		Name: r.Namespace + "/" + r.Name, Protocol: plan.ProtocolTCP, Origin: origin(r.Origin, line),
		Match: plan.ChainMatch{SNI: m.SNI, Destinations: m.Destinations},
		TCP:   &plan.TCP{Clusters: a.destinations(routes, p.Number)},
	}
	if len(m.SNI) > 0 {
		c.Protocol, c.TLS.Mode = plan.ProtocolTLS, plan.TLSPassthrough
	}
	if s != nil {
		c.Service = serviceName(s)
	}
	return c
}

// inboundPort is a port of the asker's workload that some service leads to.
type inboundPort struct {
	port    uint16
	service *mesh.Service
	spec    mesh.Port
}

// inboundPorts lists them by number; the oldest service decides what a port speaks.
func (a *asking) inboundPorts() []inboundPort {
	var out []inboundPort
	w := a.Workload(a.namespace, a.asker.Workload)
	a.personal = true
	if w == nil {
		w = &mesh.Workload{Namespace: a.namespace, Labels: a.asker.Labels}
	}
	for _, s := range a.ServicesOf(a.namespace, w.Labels) {
		for _, p := range s.Ports {
			port := targetPort(p, w)
			if p.Protocol != mesh.UDP && !slices.ContainsFunc(out, func(x inboundPort) bool { return x.port == port }) {
				out = append(out, inboundPort{port, s, p})
			}
		}
	}
	slices.SortFunc(out, func(x, y inboundPort) int { return cmp.Compare(x.port, y.port) })
	return out
}

func inboundCluster(port uint16) string { return "inbound|" + strconv.Itoa(int(port)) + "||" }

// inbound is the treatment of everything that comes to the asker's workload.
func (a *asking) inbound() *plan.Listener {
	l := &plan.Listener{Name: plan.ListenerInbound, Direction: plan.Inbound, Telemetry: a.telemetry(mesh.ServerSide)}
	policy := a.authz()
	for _, p := range a.inboundPorts() {
		mode, from := a.peerMode(p.port)
		c := plan.Chain{
			Name: strconv.Itoa(int(p.port)), Match: plan.ChainMatch{Ports: []uint16{p.port}}, TLS: plan.ServerTLS{Mode: mode},
			Protocol: protocol(p.spec.Protocol), Authz: policy, Service: serviceName(p.service), Origin: from,
			TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: inboundCluster(p.port)}}},
		}
		if p.spec.Protocol == mesh.TLS || p.spec.Protocol == mesh.HTTPS {
			c.Protocol = plan.ProtocolTCP // the application's own TLS
		}
		if p.spec.Protocol.IsHTTP() || p.spec.Protocol == mesh.Auto {
			c.HTTP = a.inboundHTTP(p)
		}
		l.Chains = append(l.Chains, c)
	}
	mode, from := a.peerMode(0)
	l.Chains = append(l.Chains, plan.Chain{
		Name: "other", TLS: plan.ServerTLS{Mode: mode}, Authz: policy, Origin: from, HTTP: a.inboundHTTP(inboundPort{}),
		TCP:     &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: plan.ClusterInboundPassthrough}}},
		Service: plan.ServiceName{Name: plan.ClusterInboundPassthrough},
	})
	for port, mode := range a.portModes() {
		if !slices.ContainsFunc(l.Chains, func(c plan.Chain) bool { return slices.Contains(c.Match.Ports, port) }) {
			c := l.Chains[len(l.Chains)-1]
			c.Name, c.Match, c.TLS = strconv.Itoa(int(port)), plan.ChainMatch{Ports: []uint16{port}}, plan.ServerTLS{Mode: mode}
			l.Chains = append(l.Chains, c)
		}
	}
	slices.SortStableFunc(l.Chains, func(x, y plan.Chain) int { return cmp.Compare(firstPort(x), firstPort(y)) })
	return l
}

func firstPort(c plan.Chain) int {
	if len(c.Match.Ports) == 0 {
		return 1 << 16
	}
	return int(c.Match.Ports[0])
}

func (a *asking) inboundHTTP(p inboundPort) *plan.HTTP {
	cluster, operation := plan.ClusterInboundPassthrough, ""
	var service plan.ServiceName
	if p.service != nil {
		cluster, service = inboundCluster(p.port), serviceName(p.service)
		operation = p.service.Host + ":" + strconv.Itoa(int(p.spec.Number)) + "/*"
	}
	return &plan.HTTP{
		ServerName: serverName, ForwardClientCert: plan.ClientCertAppendForward, Peers: true,
		PathNormalization: pathNormalization(a.config.PathNormalization),
		Inline: &plan.Route{Name: cluster, Hosts: []plan.VirtualHost{{
			Name: cluster, Domains: []string{"*"}, Service: service,
			Rules: []plan.Rule{{Name: "default", Clusters: []plan.WeightedCluster{{Cluster: cluster}}, Operation: operation}},
		}}},
	}
}

func pathNormalization(s string) plan.PathNormalization {
	switch s {
	case "NONE":
		return plan.PathNone
	case "MERGE_SLASHES":
		return plan.PathMergeSlashes
	case "DECODE_AND_MERGE_SLASHES":
		return plan.PathDecodeAndMergeSlashes
	default:
		return plan.PathBase
	}
}

// sidecarListeners lists the listeners of a data plane that wants all of them.
func (a *asking) sidecarListeners() []string {
	var names []string
	if a.role == Sidecar {
		names = append(names, plan.ListenerInbound)
	}
	for _, s := range a.Services(a.namespace) {
		for _, p := range s.Ports {
			if p.Protocol == mesh.UDP {
				continue
			}
			if a.role == GRPC {
				names = append(names, s.Host+":"+strconv.Itoa(int(p.Number)))
				continue
			}
			for _, prefix := range s.Addresses {
				if prefix.IsSingleIP() {
					names = append(names, netip.AddrPortFrom(prefix.Addr(), p.Number).String())
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
