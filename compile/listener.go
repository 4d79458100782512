package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

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
	for _, w := range a.WorkloadsAt(addr) {
		for _, s := range a.ServicesOf(w.Namespace, w.Labels) {
			if p, ok := s.Port(port); ok && s.Headless && s.Visibility.Sees(a.namespace) {
				return a.outboundService(name, s, p)
			}
		}
	}
	http := a.HTTPPort(a.namespace, port)
	rest := plan.ClusterPassthrough
	if a.config.RegistryOnly {
		rest = plan.ClusterBlackHole
	}
	if !http && !a.config.RegistryOnly {
		return nil // the proxy passes it through by itself
	}
	c := plan.Chain{Name: "other", Protocol: plan.ProtocolTCP, TCP: tcp(rest, 0), Service: plan.ServiceName{Name: rest}}
	if http {
		// Some service speaks HTTP on this port: requests go by their host, whatever address the client chose.
		c.Protocol = plan.ProtocolAuto
		c.HTTP = a.outboundHTTP()
	}
	return &plan.Listener{Name: name, Chains: []plan.Chain{c}, Telemetry: a.telemetry(mesh.ClientSide)}
}

// tcp sends bytes to one cluster.
func tcp(cluster string, idle time.Duration) *plan.TCP {
	return &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: cluster}}, IdleTimeout: idle}
}

// outboundService is the treatment of connections to a service's port.
func (a *asking) outboundService(name string, s *mesh.Service, p mesh.Port) *plan.Listener {
	if p.Protocol == mesh.UDP {
		return nil
	}
	c := plan.Chain{
		Name: s.Host, Protocol: protocol(p.Protocol), Service: serviceName(s), Origin: origin(s.Origin, 0),
		TCP: tcp(clusterName(p.Number, "", s.Host), a.tcpIdle(s, "", p.Number)),
	}
	c.TCP.Tunnel = a.tunnel(c.TCP.Clusters)
	if p.Protocol.IsHTTP() || p.Protocol == mesh.Auto {
		c.HTTP = a.outboundHTTP()
		if !strings.HasPrefix(s.Host, "*") {
			c.HTTP.Route = s.Host + ":" + strconv.Itoa(int(p.Number))
		}
	}
	l := &plan.Listener{Name: name, Telemetry: a.telemetry(mesh.ClientSide), Chains: a.l4Chains(s, p)}
	last := len(l.Chains) - 1
	switch {
	case last < 0 || anything(l.Chains[last].Match) && c.HTTP == nil:
	case anything(l.Chains[last].Match): // bytes go as the rules say, requests by their host
		c.Name, c.TCP, c.Origin = l.Chains[last].Name, l.Chains[last].TCP, l.Chains[last].Origin
		l.Chains = l.Chains[:last]
	}
	if last < 0 || c.HTTP != nil {
		l.Chains = append(l.Chains, c)
	}
	return l
}

// tcpIdle is how long a connection to a service may be silent; 0: the default.
func (a *asking) tcpIdle(s *mesh.Service, subset string, port uint16) time.Duration {
	if c := a.traffic(s).merged(subset, port).Connections; c != nil {
		return c.IdleTimeout
	}
	return 0
}

// tunnel is the HTTP proxy's task where the traffic policy of a destination makes it one. Among several destinations the
// first one's service decides, and subsets have no say (Istio's rule, since Envoy knows one tunnel for all).
func (a *asking) tunnel(to []plan.WeightedCluster) *plan.Tunnel {
	if len(to) == 0 {
		return nil
	}
	port, subset, host, ok := splitCluster(to[0].Cluster)
	if !ok {
		return nil
	}
	if len(to) > 1 {
		subset = ""
	}
	s := a.Service(a.namespace, host)
	if s == nil {
		return nil
	}
	n := a.traffic(s).merged(subset, port).Tunnel
	if n == nil {
		return nil
	}
	target := n.Host
	if strings.Contains(target, ":") {
		target = "[" + target + "]"
	}
	return &plan.Tunnel{Target: target + ":" + strconv.Itoa(int(n.Port)), Post: n.Post}
}

// anything reports whether a chain is for every connection.
func anything(m plan.ChainMatch) bool {
	return len(m.Ports)+len(m.SNI)+len(m.Destinations)+len(m.Sources) == 0
}

// l4Chains are the chains that the oldest route with rules for it orders for a service's port: TLS rules where TLS is
// spoken, TCP rules where it is neither TLS nor HTTP. What comes after a rule for everything is left out.
func (a *asking) l4Chains(s *mesh.Service, p mesh.Port) []plan.Chain {
	if p.Protocol.IsHTTP() {
		return nil
	}
	secure := p.Protocol == mesh.TLS || p.Protocol == mesh.HTTPS
	for _, r := range a.Routes(a.namespace, mesh.GatewayMesh, s.Host) {
		var out []plan.Chain
		for i := range r.TLS {
			if rule := &r.TLS[i]; secure || p.Protocol == mesh.Auto {
				out = append(out, a.l4Chain(r, mesh.GatewayMesh, rule.Line, rule.Matches, rule.Routes, p.Number)...)
			}
		}
		for i := range r.TCP {
			if rule := &r.TCP[i]; !secure {
				out = append(out, a.l4Chain(r, mesh.GatewayMesh, rule.Line, rule.Matches, rule.Routes, p.Number)...)
			}
		}
		for i := range out {
			out[i].Service = serviceName(s)
			out[i].TCP.IdleTimeout = a.tcpIdle(s, "", p.Number)
			if anything(out[i].Match) {
				return out[:i+1]
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
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

// l4Chain makes a chain of each match of a TLS or TCP rule that is for this asker, gateway and port.
func (a *asking) l4Chain(r *mesh.Route, gateway string, line int, matches []mesh.L4Match, to []mesh.Destination, port uint16) []plan.Chain {
	var out []plan.Chain
	for _, m := range a.l4Matches(matches, r, gateway, port) {
		c := plan.Chain{
			Name: r.Namespace + "/" + r.Name, Protocol: plan.ProtocolTCP, Origin: origin(r.Origin, line),
			Match: plan.ChainMatch{SNI: m.SNI, Destinations: m.Destinations}, TCP: &plan.TCP{Clusters: a.destinations(to, port)},
		}
		c.TCP.Tunnel = a.tunnel(c.TCP.Clusters)
		if len(m.SNI) > 0 {
			c.Protocol, c.TLS.Mode = plan.ProtocolTLS, plan.TLSPassthrough
		}
		out = append(out, c)
	}
	return out
}

// inboundPort is a port of the asker's workload that some service leads to.
type inboundPort struct {
	port    uint16
	service *mesh.Service
	spec    mesh.Port
}

// protocol is what the workload speaks there; its own TLS is bytes.
func (p inboundPort) protocol() plan.Protocol {
	if out := protocol(p.spec.Protocol); out != plan.ProtocolTLS {
		return out
	}
	return plan.ProtocolTCP
}

// inboundPorts lists them by number; the oldest service decides what a port speaks.
func (a *asking) inboundPorts() []inboundPort {
	var out []inboundPort
	w := a.Workload(a.namespace, a.workload())
	if w == nil {
		w = &mesh.Workload{Namespace: a.namespace, Labels: a.labels()}
	}
	for _, s := range a.ServicesOf(a.namespace, w.Labels) {
		for _, p := range s.Ports {
			port, ok := targetPort(p, w)
			if ok && p.Protocol != mesh.UDP && !slices.ContainsFunc(out, func(x inboundPort) bool { return x.port == port }) {
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
	policy, modes := a.authz(), a.peerModes()
	for _, p := range a.inboundPorts() {
		m, own := modes[p.port]
		if !own {
			m = modes[0]
		}
		c := plan.Chain{
			Name: strconv.Itoa(int(p.port)), Match: plan.ChainMatch{Ports: []uint16{p.port}}, TLS: plan.ServerTLS{Mode: m.mode},
			Protocol: p.protocol(), Authz: policy, Service: serviceName(p.service), Origin: m.origin,
			TCP: tcp(inboundCluster(p.port), 0),
		}
		if p.spec.Protocol.IsHTTP() || p.spec.Protocol == mesh.Auto {
			c.HTTP = a.inboundHTTP(p)
		}
		l.Chains = append(l.Chains, c)
		delete(modes, p.port)
	}
	for port, m := range modes { // ports that no service leads to, and all the rest
		c := plan.Chain{
			Name: "other", TLS: plan.ServerTLS{Mode: m.mode}, Authz: policy, Origin: m.origin, HTTP: a.inboundHTTP(inboundPort{}),
			TCP: tcp(plan.ClusterInboundPassthrough, 0), Service: plan.ServiceName{Name: plan.ClusterInboundPassthrough},
		}
		if port != 0 {
			c.Name, c.Match.Ports = strconv.Itoa(int(port)), []uint16{port}
		}
		l.Chains = append(l.Chains, c)
	}
	slices.SortFunc(l.Chains, func(x, y plan.Chain) int { return cmp.Compare(firstPort(x), firstPort(y)) })
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
		ServerName: serverName, ForwardClientCert: plan.ClientCertAppendForward, Peers: true, HTTP10: isTrue(a.proxy().HTTP10),
		PathNormalization: pathNormalization(a.config.PathNormalization),
		Inline: &plan.Route{Name: cluster, Hosts: []plan.VirtualHost{{
			Name: cluster, Domains: []string{"*"}, Service: service,
			Rules: []plan.Rule{{Name: "default", Clusters: []plan.WeightedCluster{{Cluster: cluster}}, Operation: operation}},
		}}},
	}
}

// outboundHTTP asks for the mesh's settings only, not for the workload's own: what all workloads of a namespace share
// must not become each one's.
func (a *asking) outboundHTTP() *plan.HTTP {
	return &plan.HTTP{ByHost: true, Peers: true, HTTP10: isTrue(a.config.Proxy.HTTP10)}
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
