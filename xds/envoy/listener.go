package envoy

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

// The names of listener and network filters.
const (
	filterOriginalDst   = "envoy.filters.listener.original_dst"
	filterTLSInspector  = "envoy.filters.listener.tls_inspector"
	filterHTTPInspector = "envoy.filters.listener.http_inspector"
	filterTCPProxy      = "envoy.filters.network.tcp_proxy"
)

// detectionTimeout is how long a client may stay silent before its connection counts as neither TLS nor HTTP, so that
// protocols in which the server speaks first work, if late.
const detectionTimeout = 5e9 // nanoseconds

// listener writes what to do with the connections of one place.
func (e *encoder) listener(p *plan.Listener) ([]Resource, error) {
	if e.flavour == GRPC {
		return e.apiListener(p)
	}
	var made []*listener.Listener
	switch p.Direction {
	case plan.Inbound:
		m, err := e.virtualInbound(p)
		if err != nil {
			return nil, err
		}
		made = []*listener.Listener{m, e.virtualOutbound(p)}
	case plan.Gateway:
		m, err := e.gateway(p)
		if err != nil {
			return nil, err
		}
		made = []*listener.Listener{m}
	default:
		at, err := netip.ParseAddrPort(p.Name)
		if err != nil {
			return nil, nil // named by a host, for clients that do without capture
		}
		m, err := e.outbound(p, at)
		if err != nil {
			return nil, err
		}
		made = []*listener.Listener{m}
	}
	out := make([]Resource, len(made))
	for i, m := range made {
		out[i] = Resource{TypeURL: TypeURL(plan.KindListener), Name: m.Name, Message: m}
	}
	return out, nil
}

// start is a listener without chains.
func start(p *plan.Listener, name string, address *core.Address, way core.TrafficDirection) *listener.Listener {
	return &listener.Listener{
		Name: name, Address: address, TrafficDirection: way,
		ListenerFiltersTimeout: duration(detectionTimeout), ContinueOnListenerFiltersTimeout: true,
		AccessLog: connectionLogs(p.Telemetry.AccessLogs),
	}
}

// connectionLogs tell of connections for which there is no chain, and which therefore no filter logs.
func connectionLogs(list []plan.AccessLog) []*accesslog.AccessLog {
	var out []*accesslog.AccessLog
	for i := range list {
		l := accessLog(&list[i])
		l.Filter = &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslog.ResponseFlagFilter{Flags: []string{"NR"}},
		}}
		out = append(out, l)
	}
	return out
}

// outbound treats connections to one address, which virtualOutbound hands over; it opens no port.
func (e *encoder) outbound(p *plan.Listener, at netip.AddrPort) (*listener.Listener, error) {
	m := start(p, listenerNames(p.Name)[0], socket(at.Addr(), at.Port()), core.TrafficDirection_OUTBOUND)
	m.BindToPort = wrapperspb.Bool(false)
	return m, e.chains(m, p)
}

// virtualOutbound takes what is redirected on its way out. What no other listener treats goes where it was bound for.
func (e *encoder) virtualOutbound(p *plan.Listener) *listener.Listener {
	m := start(p, virtualOutbound, socket(netip.IPv4Unspecified(), e.OutboundPort), core.TrafficDirection_OUTBOUND)
	m.AccessLog, m.ListenerFiltersTimeout, m.ContinueOnListenerFiltersTimeout = nil, nil, false
	m.UseOriginalDst = wrapperspb.Bool(true)
	m.ListenerFilters = []*listener.ListenerFilter{listenerFilter(filterOriginalDst, &originaldst.OriginalDst{})}
	rest := plan.ClusterPassthrough
	if e.RegistryOnly {
		rest = plan.ClusterBlackHole
	}
	m.FilterChains = []*listener.FilterChain{e.loopGuard(virtualOutbound, e.OutboundPort)}
	m.DefaultFilterChain = &listener.FilterChain{
		Name: virtualOutbound + "-catchall-tcp", Filters: []*listener.Filter{e.relay(p, rest, oneCluster(rest))},
	}
	return m
}

// virtualInbound takes what is redirected on its way in.
func (e *encoder) virtualInbound(p *plan.Listener) (*listener.Listener, error) {
	m := start(p, virtualInbound, socket(netip.IPv4Unspecified(), e.InboundPort), core.TrafficDirection_INBOUND)
	if err := e.chains(m, p); err != nil {
		return nil, err
	}
	m.ListenerFilters = append([]*listener.ListenerFilter{listenerFilter(filterOriginalDst, &originaldst.OriginalDst{})}, m.ListenerFilters...)
	m.FilterChains = append([]*listener.FilterChain{e.loopGuard(virtualInbound, e.InboundPort)}, m.FilterChains...)
	return m, nil
}

// loopGuard refuses connections that were made to the port of redirected traffic itself: they would loop.
func (e *encoder) loopGuard(name string, port uint16) *listener.FilterChain {
	return &listener.FilterChain{
		Name:             name + "-blackhole",
		FilterChainMatch: &listener.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(port))},
		Filters:          []*listener.Filter{e.relay(&plan.Listener{}, plan.ClusterBlackHole, oneCluster(plan.ClusterBlackHole))},
	}
}

// gateway opens a port.
func (e *encoder) gateway(p *plan.Listener) (*listener.Listener, error) {
	if !p.Bind.IsValid() {
		return nil, errors.New("a gateway's listener needs an address to open")
	}
	m := start(p, listenerNames(p.Name)[0], socket(p.Bind.Addr(), p.Bind.Port()), core.TrafficDirection_OUTBOUND)
	if p.Bind.Addr() == netip.IPv6Unspecified() {
		m.Address.GetSocketAddress().Ipv4Compat = true
	}
	return m, e.chains(m, p)
}

func listenerFilter(name string, config proto.Message) *listener.ListenerFilter {
	return &listener.ListenerFilter{Name: name, ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: pack(config)}}
}

// chains writes the chains of a plan's listener and the inspectors that they need. Envoy has no order of chains: the
// most specific match wins, and two chains of one match are refused. The first one stays, as in the plan.
func (e *encoder) chains(m *listener.Listener, p *plan.Listener) error {
	seen := map[string]bool{}
	var needTLS, needHTTP bool
	var noTLS, noHTTP []uint16
	for i := range p.Chains {
		c := &p.Chains[i]
		list := variants(c)
		wantTLS, wantHTTP := len(c.Match.SNI) > 0, false
		for _, v := range list {
			wantTLS = wantTLS || v.transport != ""
			wantHTTP = wantHTTP || v.transport != transportTLS && len(v.alpn) > 0
			for _, match := range matches(&c.Match, v) {
				key, err := proto.MarshalOptions{Deterministic: true}.Marshal(match)
				if err != nil {
					return err
				}
				if seen[string(key)] {
					continue
				}
				seen[string(key)] = true
				f, err := e.chain(p, c, v)
				if err != nil {
					return err
				}
				f.FilterChainMatch = match
				m.FilterChains = append(m.FilterChains, f)
			}
		}
		needTLS, needHTTP = needTLS || wantTLS, needHTTP || wantHTTP
		if !wantTLS {
			noTLS = append(noTLS, c.Match.Ports...)
		}
		if !wantHTTP {
			noHTTP = append(noHTTP, c.Match.Ports...)
		}
	}
	if needTLS {
		f := listenerFilter(filterTLSInspector, &tlsinspector.TlsInspector{})
		f.FilterDisabled = onPorts(noTLS)
		m.ListenerFilters = append(m.ListenerFilters, f)
	}
	if needHTTP {
		f := listenerFilter(filterHTTPInspector, &httpinspector.HttpInspector{})
		f.FilterDisabled = onPorts(noHTTP)
		m.ListenerFilters = append(m.ListenerFilters, f)
	}
	return nil
}

// onPorts matches connections to certain ports; nil for none.
func onPorts(ports []uint16) *listener.ListenerFilterChainMatchPredicate {
	var rules []*listener.ListenerFilterChainMatchPredicate
	for _, p := range slices.Compact(slices.Sorted(slices.Values(ports))) {
		rules = append(rules, &listener.ListenerFilterChainMatchPredicate{
			Rule: &listener.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &envoytype.Int32Range{Start: int32(p), End: int32(p) + 1},
			},
		})
	}
	switch len(rules) {
	case 0:
		return nil
	case 1:
		return rules[0]
	default:
		return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_OrMatch{
			OrMatch: &listener.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
		}}
	}
}

// variant is one of the ways in which a chain's connections can look, told apart by their first bytes.
type variant struct {
	transport string   // "tls", "raw_buffer", or empty: either
	alpn      []string // empty: any
	http      bool
	terminate bool // end the TLS
}

const (
	transportTLS = "tls"
	transportRaw = "raw_buffer"
)

// variants lists them, as Istio does: with PERMISSIVE and a protocol to be detected there are five.
func variants(c *plan.Chain) []variant {
	declared := c.HTTP != nil && c.Protocol.IsHTTP()
	detect := c.HTTP != nil && !declared
	meshHTTP := []string{alpnHTTP10, alpnHTTP11, alpnHTTP2}
	meshTCP := []string{alpnPeer, alpnTCP}
	plain := []string{"http/1.1", "h2c"}
	switch c.TLS.Mode {
	case plan.TLSStrict:
		if detect {
			return []variant{{transportTLS, meshHTTP, true, true}, {transportTLS, nil, false, true}}
		}
		return []variant{{transportTLS, nil, declared, true}}
	case plan.TLSPermissive:
		switch {
		case detect:
			return []variant{
				{transportTLS, meshHTTP, true, true},
				{transportRaw, plain, true, false},
				{transportTLS, meshTCP, false, true},
				{transportRaw, nil, false, false},
				{transportTLS, nil, false, false},
			}
		case declared:
			return []variant{{transportTLS, nil, true, true}, {transportRaw, nil, true, false}}
		default:
			return []variant{{transportTLS, meshTCP, false, true}, {transportTLS, nil, false, false}, {transportRaw, nil, false, false}}
		}
	case plan.TLSSimple, plan.TLSMutual, plan.TLSOptional, plan.TLSMesh:
		return []variant{{transportTLS, nil, c.HTTP != nil, true}}
	case plan.TLSPassthrough:
		return []variant{{transportTLS, nil, false, false}}
	default: // plaintext
	}
	if detect {
		return []variant{{transportRaw, plain, true, false}, {"", nil, false, false}}
	}
	return []variant{{"", nil, declared, false}}
}

// matches writes a chain's match, once for each port, as Envoy's has one.
func matches(p *plan.ChainMatch, v variant) []*listener.FilterChainMatch {
	m := &listener.FilterChainMatch{
		PrefixRanges: cidrs(p.Destinations), SourcePrefixRanges: cidrs(p.Sources), TransportProtocol: v.transport, ApplicationProtocols: v.alpn,
	}
	if !slices.Contains(p.SNI, "*") {
		m.ServerNames = p.SNI
	}
	if len(p.Ports) == 0 {
		return []*listener.FilterChainMatch{m}
	}
	var out []*listener.FilterChainMatch
	for _, port := range p.Ports {
		one := proto.Clone(m).(*listener.FilterChainMatch)
		one.DestinationPort = wrapperspb.UInt32(uint32(port))
		out = append(out, one)
	}
	return out
}

var errRoots = errors.New("mutual TLS needs roots to hold clients against: name a secret or a CA file")

// chain writes one variant of a chain, without its match.
func (e *encoder) chain(p *plan.Listener, c *plan.Chain, v variant) (*listener.FilterChain, error) {
	f := &listener.FilterChain{Name: c.Name}
	if v.terminate {
		switch c.TLS.Mode {
		case plan.TLSStrict, plan.TLSPermissive:
			f.TransportSocket = tlsSocket(e.meshServer(meshALPN(c, v), c.TLS.SubjectAltNames))
		default:
			needsRoots := c.TLS.Mode == plan.TLSMutual || c.TLS.Mode == plan.TLSOptional
			if needsRoots && c.TLS.Secret == "" && c.TLS.CAFile == "" {
				return nil, errRoots
			}
			f.TransportSocket = tlsSocket(e.terminate(c))
		}
	}
	if v.http {
		filter, err := e.manager(p, c)
		if err != nil {
			return nil, err
		}
		f.Filters = []*listener.Filter{filter}
		return f, nil
	}
	filters, err := rbacNetwork(c.Authz)
	if err != nil {
		return nil, err
	}
	to := oneCluster(plan.ClusterBlackHole)
	if c.TCP != nil && len(c.TCP.Clusters) > 0 {
		to = *c.TCP
	}
	f.Filters = append(filters, e.relay(p, to.Clusters[0].Cluster, to))
	return f, nil
}

// meshALPN is what is offered to a mesh peer. istio-peer-exchange is taken, but never chosen: see meshClient. Neither is
// istio-h2, beside which every peer offers h2: Envoy knows HTTP/2 by that name only, and would speak HTTP/1.
func meshALPN(c *plan.Chain, v variant) []string {
	if !v.http {
		return []string{alpnTCP}
	}
	if c.Protocol == plan.ProtocolHTTP {
		return []string{alpnHTTP11, alpnHTTP10, "h2", "http/1.1", alpnTCP}
	}
	return []string{"h2", alpnHTTP11, alpnHTTP10, "http/1.1", alpnTCP}
}

func oneCluster(name string) plan.TCP {
	return plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: name}}}
}

// relay passes bytes on.
func (e *encoder) relay(p *plan.Listener, prefix string, to plan.TCP) *listener.Filter {
	out := &tcpproxy.TcpProxy{
		StatPrefix: prefix, AccessLog: accessLogs(p.Telemetry.AccessLogs), IdleTimeout: orDuration(to.IdleTimeout, idleTimeout),
	}
	if len(to.Clusters) == 1 {
		out.ClusterSpecifier = &tcpproxy.TcpProxy_Cluster{Cluster: to.Clusters[0].Cluster}
	} else {
		w := &tcpproxy.TcpProxy_WeightedCluster{}
		for _, c := range to.Clusters {
			if c.Weight > 0 {
				w.Clusters = append(w.Clusters, &tcpproxy.TcpProxy_WeightedCluster_ClusterWeight{Name: c.Cluster, Weight: c.Weight})
			}
		}
		out.ClusterSpecifier = &tcpproxy.TcpProxy_WeightedClusters{WeightedClusters: w}
	}
	if n := to.Tunnel; n != nil {
		out.TunnelingConfig = &tcpproxy.TcpProxy_TunnelingConfig{Hostname: n.Target, UsePost: n.Post}
	}
	return networkFilter(filterTCPProxy, out)
}

func networkFilter(name string, config proto.Message) *listener.Filter {
	return &listener.Filter{Name: name, ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack(config)}}
}

// statPrefix names a listener in Envoy's own statistics.
func statPrefix(p *plan.Listener, c *plan.Chain) string {
	name := p.Name
	switch {
	case p.Direction == plan.Inbound:
		port := 0
		if len(c.Match.Ports) > 0 {
			port = int(c.Match.Ports[0])
		}
		return "inbound_0.0.0.0_" + strconv.Itoa(port)
	case len(listenerNames(name)) == 1:
		name = listenerNames(name)[0]
	}
	return "outbound_" + name
}
