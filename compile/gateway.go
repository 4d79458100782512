package compile

import (
	"maps"
	"net/netip"
	"reflect"
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

// name names the gateway as routes do.
func (g gatewayServer) name() string { return g.gateway.Namespace + "/" + g.gateway.Name }

// route names the server itself.
func (g gatewayServer) route() string { return g.name() + "/" + strconv.Itoa(g.index) }

// redirects reports whether the server sends plaintext requests to https.
func (g gatewayServer) redirects() bool { return g.server.TLS != nil && g.server.TLS.Redirect }

// servers lists the servers on a port, of the oldest gateway first.
func (a *asking) servers(port uint16) []gatewayServer {
	var out []gatewayServer
	for _, g := range a.Gateways(a.namespace, a.labels()) {
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
	for _, g := range a.Gateways(a.namespace, a.labels()) {
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
		case s.server.Protocol.IsHTTP():
			if !plain {
				l.Chains = append(l.Chains, plan.Chain{
					Name: name, Protocol: protocol(s.server.Protocol), HTTP: a.gatewayHTTP(name), Authz: policy,
					Origin: origin(s.gateway.Origin, s.server.Line),
				})
			}
			plain = true
		case s.server.TLS != nil:
			l.Chains = append(l.Chains, a.tlsChains(s, policy)...)
		default:
			l.Chains = append(l.Chains, a.gatewayTCP(s, policy)...)
		}
	}
	return l
}

func (a *asking) gatewayHTTP(route string) *plan.HTTP {
	p := a.proxy()
	return &plan.HTTP{
		Route: route, ServerName: serverName, ForwardClientCert: gatewayClientCert(p.ClientCert), AppendForwardedFor: true,
		TrustedHops: p.TrustedProxies, PathNormalization: pathNormalization(a.config.PathNormalization), Peers: true,
		HTTP10: isTrue(p.HTTP10),
	}
}

// proxy are the settings of the asker's proxy: its workload's, and for what they leave out the mesh's.
func (a *asking) proxy() mesh.ProxySettings {
	out := a.config.Proxy
	w := a.Workload(a.namespace, a.workload())
	if w == nil {
		return out
	}
	if w.Proxy.TrustedProxies != 0 {
		out.TrustedProxies = w.Proxy.TrustedProxies
	}
	if w.Proxy.ClientCert != "" {
		out.ClientCert = w.Proxy.ClientCert
	}
	if w.Proxy.HTTP10 != nil {
		out.HTTP10 = w.Proxy.HTTP10
	}
	return out
}

func isTrue(b *bool) bool { return b != nil && *b }

// gatewayClientCert reads forwardClientCertDetails; Istio's gateways replace what the client says unless told otherwise.
func gatewayClientCert(text string) plan.ClientCert {
	switch text {
	case "SANITIZE":
		return plan.ClientCertSanitize
	case "FORWARD_ONLY":
		return plan.ClientCertForward
	case "APPEND_FORWARD":
		return plan.ClientCertAppendForward
	case "ALWAYS_FORWARD_ONLY":
		return plan.ClientCertLeave
	default:
		return plan.ClientCertSanitizeSet
	}
}

// tlsChains ends, or passes on, the TLS of one server's hosts.
func (a *asking) tlsChains(s gatewayServer, policy *plan.Authz) []plan.Chain {
	var sni []string
	for _, h := range s.server.Hosts {
		sni = append(sni, h.Host)
	}
	t := s.server.TLS
	c := plan.Chain{
		Name: s.route(), Match: plan.ChainMatch{SNI: sni}, Authz: policy,
		Origin: origin(s.gateway.Origin, s.server.Line),
		TLS: plan.ServerTLS{
			SubjectAltNames: t.SubjectAltNames, MinVersion: t.MinVersion, MaxVersion: t.MaxVersion, CipherSuites: t.CipherSuites,
			CertFile: t.CertFile, KeyFile: t.KeyFile, CAFile: t.CAFile,
		},
	}
	if t.Credential != "" && t.Mode != "ISTIO_MUTUAL" {
		c.TLS.Secret = secretPrefix + a.namespace + "/" + t.Credential
		if strings.HasPrefix(t.Credential, mesh.SecretAnywhere) {
			c.TLS.Secret = t.Credential
		}
	}
	switch t.Mode {
	case "PASSTHROUGH", "":
		return a.passthrough(s, policy)
	case "AUTO_PASSTHROUGH":
		return nil // routing by the mesh's own server names joins networks, of which there is one so far
	case "MUTUAL":
		c.TLS.Mode = plan.TLSMutual
	case "OPTIONAL_MUTUAL":
		c.TLS.Mode = plan.TLSOptional
	case "ISTIO_MUTUAL":
		c.TLS.Mode = plan.TLSMesh
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
			for _, c := range a.l4Chain(r, s.name(), rule.Line, rule.Matches, rule.Routes, s.server.Port) {
				var names []string
				for _, h := range c.Match.SNI {
					names = append(names, a.bound(s, r, h)...)
				}
				if len(names) > 0 {
					c.Match.SNI, c.Authz = names, policy
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
		if !slices.ContainsFunc(r.Hosts, func(h string) bool { return len(a.bound(s, r, h)) > 0 }) {
			continue
		}
		for i := range r.TCP {
			rule := &r.TCP[i]
			for _, c := range a.l4Chain(r, s.name(), rule.Line, rule.Matches, rule.Routes, s.server.Port) {
				c.Authz = policy
				out = append(out, c)
			}
		}
	}
	return out
}

// bound lists what a route gets of a host on a server: the narrower of the host and each of the server's hosts that
// are open to the route's namespace. The gateway's workload has to see the route.
func (a *asking) bound(s gatewayServer, r *mesh.Route, host string) []string {
	if !r.Visibility.Sees(a.namespace) {
		return nil
	}
	var out []string
	for _, h := range s.server.Hosts {
		if h.Namespace != "*" && h.Namespace != r.Namespace {
			continue
		}
		if both := overlap(h.Host, host); both != "" && !slices.Contains(out, both) {
			out = append(out, both)
		}
	}
	return out
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
	hosts := gatewayHosts{port: uint16(n), byName: map[string]*gatewayHost{}}
	found := false
	all := a.servers(hosts.port)
	for _, s := range all {
		if plain := s.server.Protocol.IsHTTP(); one == plain || one && server != s.route() {
			continue
		}
		found = true
		for _, r := range a.GatewayRoutes(s.name()) {
			if len(r.HTTP) == 0 {
				continue
			}
			rules := a.rules(r, s.name(), hosts.port)
			for _, h := range r.Hosts {
				for _, both := range a.bound(s, r, h) {
					if !s.yields(all, both) {
						hosts.add(both, rules, s.redirects())
					}
				}
			}
		}
		if s.redirects() || s.gateway.Isolated {
			for _, h := range s.server.Hosts {
				hosts.add(h.Host, nil, s.redirects()) // also where no route leads
			}
		}
	}
	if !found {
		return nil
	}
	return &plan.Route{Name: name, Hosts: hosts.list()}
}

// yields reports whether requests for a host, which one of the server's routes has, belong to another server of the port
// whose own host is more specific.
func (g gatewayServer) yields(all []gatewayServer, host string) bool {
	if !g.gateway.Isolated {
		return false
	}
	for _, own := range g.server.Hosts {
		for _, other := range all {
			for _, h := range other.server.Hosts {
				if h.Host != own.Host && inside(h.Host, own.Host) && (h.Host == host || inside(host, h.Host)) {
					return true
				}
			}
		}
	}
	return false
}

// gatewayHosts gathers the virtual hosts of a port.
type gatewayHosts struct {
	port   uint16
	byName map[string]*gatewayHost
}

type gatewayHost struct {
	plan.VirtualHost
	rules []ranked
}

// add gives a host more rules; those that it has already, through another server, count once. Where one server sends
// plaintext to https, the host does.
func (g *gatewayHosts) add(host string, rules []ranked, redirect bool) {
	v := g.byName[host]
	if v == nil {
		v = &gatewayHost{VirtualHost: plan.VirtualHost{Name: host + ":" + strconv.Itoa(int(g.port)), Domains: []string{host}}}
		if !strings.HasPrefix(host, "*") {
			v.Domains = append(v.Domains, v.Name)
		}
		g.byName[host] = v
	}
	v.RequireTLS = v.RequireTLS || redirect
	for _, rule := range rules {
		if !slices.ContainsFunc(v.rules, func(x ranked) bool { return reflect.DeepEqual(x, rule) }) {
			v.rules = append(v.rules, rule)
		}
	}
}

// list orders the hosts by name, and in each the rules for everything, of whatever route, last.
func (g *gatewayHosts) list() []plan.VirtualHost {
	var out []plan.VirtualHost
	for _, h := range slices.Sorted(maps.Keys(g.byName)) {
		v := g.byName[h]
		v.Rules = inOrder(v.rules)
		slices.SortStableFunc(v.Rules, func(x, y plan.Rule) int { return catchAll(&x) - catchAll(&y) })
		out = append(out, v.VirtualHost)
	}
	return out
}

// catchAll is 1 for a rule that matches every request, else 0.
func catchAll(r *plan.Rule) int {
	m := &r.Match
	everywhere := m.Path.Kind == plan.MatchNone || m.Path.Kind == plan.MatchPrefix && m.Path.Value == "/"
	if everywhere && m.Method.Kind+m.Scheme.Kind+m.Authority.Kind == plan.MatchNone && len(m.Headers)+len(m.Query) == 0 {
		return 1
	}
	return 0
}
