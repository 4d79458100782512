package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// gatewayServer is one server of a Gateway resource that selects the asker.
type gatewayServer struct {
	gateway *mesh.Gateway
	server  *mesh.Server
	index   int
}

func (g gatewayServer) name() string { return g.gateway.Namespace + "/" + g.gateway.Name }

// servers lists the servers on a port, of the oldest gateway first.
func (a *asking) servers(port uint16) []gatewayServer {
	var out []gatewayServer
	for _, g := range a.Gateways(a.labels()) {
		for i := range g.Servers {
			if g.Servers[i].Port == port {
				out = append(out, gatewayServer{g, &g.Servers[i], i})
			}
		}
	}
	return out
}

// gatewayListeners lists the ports that the asker has to open.
func (a *asking) gatewayListeners() []string {
	var names []string
	for _, g := range a.Gateways(a.labels()) {
		for i := range g.Servers {
			names = append(names, plan.ListenerGateway+strconv.Itoa(int(g.Servers[i].Port)))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// gatewayListener opens a port: plaintext HTTP servers share one chain, servers with TLS have one each.
func (a *asking) gatewayListener(name, portText string) *plan.Listener {
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil
	}
	port := uint16(n)
	servers := a.servers(port)
	if len(servers) == 0 {
		return nil
	}
	bind := netip.IPv6Unspecified()
	if b, err := netip.ParseAddr(servers[0].server.Bind); err == nil {
		bind = b
	}
	l := &plan.Listener{
		Name: name, Direction: plan.Gateway, Bind: netip.AddrPortFrom(bind, port), Telemetry: a.telemetry(mesh.ClientSide),
	}
	policy := a.authz()
	plain := false
	for _, s := range servers {
		switch {
		case s.server.TLS != nil && s.server.Protocol != mesh.HTTP:
			l.Chains = append(l.Chains, a.tlsChains(s, policy)...)
		case s.server.Protocol.IsHTTP():
			if !plain {
				l.Chains = append(l.Chains, a.plainChain(name, s, policy, servers))
			}
			plain = true
		default:
			l.Chains = append(l.Chains, a.gatewayTCP(s, policy)...)
		}
	}
	return l
}

func (a *asking) gatewayHTTP(route string) *plan.HTTP {
	return &plan.HTTP{
		Route: route, ServerName: serverName, ForwardClientCert: plan.ClientCertSanitizeSet, AppendForwardedFor: true,
		PathNormalization: pathNormalization(a.config.PathNormalization), Peers: true,
	}
}

func (a *asking) plainChain(name string, s gatewayServer, policy *plan.Authz, all []gatewayServer) plan.Chain {
	c := plan.Chain{Name: name, Protocol: protocol(s.server.Protocol), HTTP: a.gatewayHTTP(name), Authz: policy, Origin: origin(s.gateway.Origin, s.server.Line)}
	for _, x := range all {
		if x.server.TLS != nil && x.server.TLS.Redirect && x.server.Protocol.IsHTTP() {
			c.TLS.RedirectHTTPS = true
		}
	}
	return c
}

// tlsChains ends, or passes on, the TLS of one server's hosts.
func (a *asking) tlsChains(s gatewayServer, policy *plan.Authz) []plan.Chain {
	var sni []string
	for _, h := range s.server.Hosts {
		sni = append(sni, h.Host)
	}
	t := s.server.TLS
	c := plan.Chain{
		Name: s.name() + "/" + strconv.Itoa(s.index), Match: plan.ChainMatch{SNI: sni}, Authz: policy,
		Origin: origin(s.gateway.Origin, s.server.Line),
		TLS: plan.ServerTLS{
			SubjectAltNames: t.SubjectAltNames, MinVersion: t.MinVersion, MaxVersion: t.MaxVersion, CipherSuites: t.CipherSuites,
			CertFile: t.CertFile, KeyFile: t.KeyFile, CAFile: t.CAFile,
		},
	}
	if t.Credential != "" {
		c.TLS.Secret = secretPrefix + s.gateway.Namespace + "/" + t.Credential
	}
	switch t.Mode {
	case "PASSTHROUGH", "AUTO_PASSTHROUGH", "":
		return a.passthrough(s, policy)
	case "MUTUAL":
		c.TLS.Mode = plan.TLSMutual
	case "OPTIONAL_MUTUAL":
		c.TLS.Mode = plan.TLSOptional
	case "ISTIO_MUTUAL":
		c.TLS.Mode, c.TLS.Secret = plan.TLSMesh, ""
	default:
		c.TLS.Mode = plan.TLSSimple
	}
	if s.server.Protocol == mesh.TLS || s.server.Protocol == mesh.TCP {
		c.Protocol = plan.ProtocolTCP
		if chains := a.gatewayTCP(s, policy); len(chains) > 0 {
			c.TCP = chains[0].TCP
		}
		return []plan.Chain{c}
	}
	c.Protocol = plan.ProtocolHTTP
	c.HTTP = a.gatewayHTTP(plan.ListenerGateway + strconv.Itoa(int(s.server.Port)) + "|" + c.Name)
	return []plan.Chain{c}
}

// passthrough routes undecrypted TLS by server name, as the routes' TLS rules say.
func (a *asking) passthrough(s gatewayServer, policy *plan.Authz) []plan.Chain {
	var out []plan.Chain
	for _, r := range a.GatewayRoutes(s.name()) {
		for i := range r.TLS {
			rule := &r.TLS[i]
			for _, m := range a.l4Matches(rule.Matches, r, s.name(), s.server.Port) {
				m.SNI = slices.DeleteFunc(slices.Clone(m.SNI), func(h string) bool { return !s.carries(r, h) })
				if len(m.SNI) > 0 {
					c := a.l4Chain(r, rule.Line, rule.Routes, m, nil, mesh.Port{Number: s.server.Port})
					c.Authz = policy
					out = append(out, c)
				}
			}
		}
	}
	return out
}

// gatewayTCP relays bytes as the routes' TCP rules say.
func (a *asking) gatewayTCP(s gatewayServer, policy *plan.Authz) []plan.Chain {
	var out []plan.Chain
	for _, r := range a.GatewayRoutes(s.name()) {
		for i := range r.TCP {
			rule := &r.TCP[i]
			for _, m := range a.l4Matches(rule.Matches, r, s.name(), s.server.Port) {
				c := a.l4Chain(r, rule.Line, rule.Routes, m, nil, mesh.Port{Number: s.server.Port})
				c.Authz = policy
				out = append(out, c)
			}
		}
	}
	return out
}

// carries reports whether the server's hosts let a route of that namespace have a host.
func (s gatewayServer) carries(r *mesh.Route, host string) bool {
	if !r.Visibility.Sees(s.gateway.Namespace) {
		return false
	}
	return slices.ContainsFunc(s.server.Hosts, func(h mesh.GatewayHost) bool {
		return (h.Namespace == "" || h.Namespace == "*" || h.Namespace == r.Namespace) && overlap(h.Host, host) != ""
	})
}

// overlap is the narrower of two host patterns if one holds the other, else empty.
func overlap(x, y string) string {
	switch {
	case x == y:
		return x
	case inside(x, y):
		return x
	case inside(y, x):
		return y
	}
	return ""
}

// inside reports whether every host that narrow stands for is one that wide stands for.
func inside(narrow, wide string) bool {
	if wide == "*" {
		return true
	}
	suffix, wild := strings.CutPrefix(wide, "*")
	return wild && strings.HasSuffix(strings.TrimPrefix(narrow, "*"), suffix) && len(narrow) > len(suffix)
}

// gatewayRoute decides about the requests of a gateway's port: "8080" for its plaintext servers together,
// "443|namespace/gateway/index" for one server with TLS.
func (a *asking) gatewayRoute(name, rest string) *plan.Route {
	portText, server, one := strings.Cut(rest, "|")
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil
	}
	port := uint16(n)
	out := &plan.Route{Name: name}
	hosts := map[string]*plan.VirtualHost{}
	var order []string
	found := false
	for _, s := range a.servers(port) {
		plain := s.server.TLS == nil || s.server.Protocol.IsHTTP()
		if one && server != s.name()+"/"+strconv.Itoa(s.index) || !one && !(plain && s.server.Protocol.IsHTTP()) {
			continue
		}
		found = true
		for _, r := range a.GatewayRoutes(s.name()) {
			for _, h := range a.gatewayHosts(s, r) {
				v := hosts[h]
				if v == nil {
					v = &plan.VirtualHost{Name: h + ":" + portText, Domains: gatewayDomains(h, port)}
					hosts[h] = v
					order = append(order, h)
				}
				for _, rule := range a.rules(r, s.name(), port) {
					// A server can select a route twice, through two of its hosts.
					if !slices.ContainsFunc(v.Rules, func(x plan.Rule) bool { return x.Origin == rule.Origin && x.Match.String() == rule.Match.String() }) {
						v.Rules = append(v.Rules, rule)
					}
				}
			}
		}
	}
	if !found {
		return nil
	}
	slices.Sort(order)
	for _, h := range order {
		out.Hosts = append(out.Hosts, *hosts[h])
	}
	return out
}

// gatewayHosts are the hosts that a route gets on a server.
func (a *asking) gatewayHosts(s gatewayServer, r *mesh.Route) []string {
	if !r.Visibility.Sees(s.gateway.Namespace) {
		return nil
	}
	var out []string
	for _, h := range s.server.Hosts {
		if h.Namespace != "" && h.Namespace != "*" && h.Namespace != r.Namespace {
			continue
		}
		for _, want := range r.Hosts {
			if both := overlap(h.Host, want); both != "" && !slices.Contains(out, both) {
				out = append(out, both)
			}
		}
	}
	return out
}

func gatewayDomains(host string, port uint16) []string {
	if strings.HasPrefix(host, "*") {
		return []string{host}
	}
	return []string{host, host + ":" + strconv.Itoa(int(port))}
}
