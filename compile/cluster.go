package compile

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// inboundSource is the address from which an application sees connections that come through its own proxy.
const inboundSource = "127.0.0.6"

// cluster describes a group of endpoints: "outbound|port|subset|host" or "inbound|port||".
func (a *asking) cluster(name string) *plan.Cluster {
	if c := a.fixedCluster(name); c != nil {
		return c
	}
	port, subset, host, ok := splitCluster(name)
	if !ok {
		return nil
	}
	s := a.Service(a.namespace, host)
	if s == nil {
		return nil
	}
	p, ok := s.Port(port)
	if !ok || p.Protocol == mesh.UDP {
		return nil
	}
	if _, known := a.subset(s, subset); !known {
		return nil
	}
	t := a.traffic(s)
	policy := t.merged(subset, port)
	c := &plan.Cluster{
		Name: name, Protocol: protocol(p.Protocol), External: s.External, Subset: subset, Service: serviceName(s),
		Origin: t.origin(subset),
	}
	a.discovery(c, s, p)
	a.balance(c, s, policy)
	a.clientTLS(c, s, p, subset, policy.TLS)
	connections(c, policy.Connections)
	if c.Protocol == plan.ProtocolHTTP && a.upgrade(policy.Connections) {
		c.Protocol = plan.ProtocolHTTP2
	}
	if b := policy.RetryBudget; b != nil {
		c.Limits.RetryBudget, c.Limits.RetryBudgetMin = b.Percent, b.Min
	}
	c.Outlier = outlier(policy.Outlier)
	c.ProxyProtocol = policy.ProxyProtocol
	return c
}

// upgrade reports whether HTTP/1.1 is to be sent on as HTTP/2.
func (a *asking) upgrade(p *mesh.Connections) bool {
	if p == nil || p.H2Upgrade == "" || p.H2Upgrade == "DEFAULT" {
		return a.config.H2Upgrade
	}
	return p.H2Upgrade == "UPGRADE"
}

// fixedCluster is a cluster that leads to no service of the mesh: to where the connection wanted to go, to nowhere, or
// to the asker's own workload.
func (a *asking) fixedCluster(name string) *plan.Cluster {
	switch name {
	case plan.ClusterPassthrough:
		return &plan.Cluster{Name: name, Discovery: plan.DiscoverOriginalDst, External: true, Service: plan.ServiceName{Name: name}}
	case plan.ClusterInboundPassthrough:
		return &plan.Cluster{Name: name, Discovery: plan.DiscoverOriginalDst, BindSource: inboundSource, Service: plan.ServiceName{Name: name}}
	case plan.ClusterBlackHole:
		return &plan.Cluster{Name: name, Discovery: plan.DiscoverNothing, Service: plan.ServiceName{Name: name}}
	}
	text, ok := strings.CutPrefix(name, "inbound|")
	port, err := strconv.ParseUint(strings.TrimSuffix(text, "||"), 10, 16)
	if !ok || err != nil || name != inboundCluster(uint16(port)) || a.role != Sidecar {
		return nil
	}
	c := &plan.Cluster{Name: name, Discovery: plan.DiscoverOriginalDst, BindSource: inboundSource}
	for _, p := range a.inboundPorts() {
		if p.port == uint16(port) {
			c.Protocol, c.Service = p.protocol(), serviceName(p.service)
		}
	}
	return c
}

func (a *asking) discovery(c *plan.Cluster, s *mesh.Service, p mesh.Port) {
	switch s.Resolution {
	case mesh.Static:
	case mesh.None:
		c.Discovery = plan.DiscoverOriginalDst
	case mesh.DNS, mesh.DynamicDNS, mesh.DNSRoundRobin:
		c.Discovery = plan.DiscoverDNS
		if s.Resolution == mesh.DNSRoundRobin {
			c.Discovery = plan.DiscoverDNSFirst
		}
		for _, w := range a.Workloads(s) {
			host := w.Host
			if host == "" && len(w.Addresses) > 0 {
				host = w.Addresses[0].String()
			}
			if port, ok := targetPort(p, w); ok && host != "" {
				c.Addresses = append(c.Addresses, plan.Address{Host: host, Port: port, Weight: w.Weight, Locality: w.Locality})
			}
		}
		if len(c.Addresses) == 0 && s.Selector == nil && !strings.HasPrefix(s.Host, "*") {
			port, _ := targetPort(p, &mesh.Workload{})
			c.Addresses = []plan.Address{{Host: s.Host, Port: port}}
		}
	}
}

func (a *asking) balance(c *plan.Cluster, s *mesh.Service, policy mesh.TrafficPolicy) {
	b := policy.Balance
	if b == nil {
		b = &mesh.Balance{}
	}
	a.localities(c, b.Locality, policy.Outlier != nil)
	if s.Headless && a.role == Sidecar {
		c.Balance.Algorithm = plan.OriginalDestination // the client has chosen a workload by its address
		return
	}
	switch b.Simple {
	case "ROUND_ROBIN":
		c.Balance.Algorithm = plan.RoundRobin
	case "RANDOM":
		c.Balance.Algorithm = plan.Random
	case "PASSTHROUGH":
		c.Balance.Algorithm = plan.OriginalDestination
	}
	c.Balance.Warmup = b.Warmup
	if h := b.ConsistentHash; h != nil {
		c.Balance.Algorithm, c.Balance.RingSize = plan.RingHash, h.Size
		if h.Maglev {
			c.Balance.Algorithm = plan.Maglev
		}
		c.Balance.HashOn = []plan.HashOn{hashOn(h)}
	}
}

// localities makes the asker's own locality count. Without a word about it localities fail over to each other,
// which takes outlier detection to know when.
func (a *asking) localities(c *plan.Cluster, l *mesh.Locality, outliers bool) {
	if l == nil {
		l = &mesh.Locality{}
	}
	if l.Enabled != nil && !*l.Enabled || !outliers && len(l.Distribute) == 0 || a.locality() == "" {
		return
	}
	c.Balance.Locality, c.Balance.From, c.Balance.Failover = outliers, a.locality(), l.Failover
	for _, d := range l.Distribute {
		if localityFits(d.From, c.Balance.From) {
			c.Balance.Distribute = d.To
			break
		}
	}
}

// localityFits reports whether a locality fits a pattern "region/zone/*".
func localityFits(pattern, locality string) bool {
	if pattern == "*" || pattern == locality {
		return true
	}
	prefix, wild := strings.CutSuffix(pattern, "*")
	return wild && strings.HasPrefix(locality+"/", prefix)
}

// clientTLS decides how connections are encrypted: as the policy says, else by auto mTLS.
func (a *asking) clientTLS(c *plan.Cluster, s *mesh.Service, p mesh.Port, subset string, t *mesh.ClientTLS) {
	sni := "outbound_." + strconv.Itoa(int(p.Number)) + "_." + subset + "_." + s.Host
	switch {
	case t == nil || t.Mode == "":
		if s.External || a.config.NoAutoMTLS {
			return
		}
		mode := plan.ClientTLSAuto
		if c.Discovery == plan.DiscoverOriginalDst || c.Balance.Algorithm == plan.OriginalDestination {
			// Who is at the address is not known when the connection is made, so all have to be of the mesh (Istio's rule).
			if mode = plan.ClientTLSMesh; !meshed(a.Workloads(s)) {
				return
			}
		}
		c.TLS = plan.ClientTLS{Mode: mode, SNI: sni, Identities: a.identities(s)}
	case t.Mode == "ISTIO_MUTUAL":
		c.TLS = plan.ClientTLS{Mode: plan.ClientTLSMesh, SNI: sni, Identities: a.identities(s)}
		if t.SNI != "" {
			c.TLS.SNI = t.SNI
		}
		if len(t.SubjectAltNames) > 0 {
			c.TLS.Identities = t.SubjectAltNames
		}
	case t.Mode == "SIMPLE", t.Mode == "MUTUAL":
		c.TLS = plan.ClientTLS{
			Mode: plan.ClientTLSSimple, SNI: t.SNI, Identities: t.SubjectAltNames,
			CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile,
		}
		if len(t.SubjectAltNames) == 0 {
			c.TLS.Identities = s.SubjectAltNames
		}
		if t.Mode == "MUTUAL" {
			c.TLS.Mode = plan.ClientTLSMutual
		}
		if c.TLS.SNI == "" && !strings.HasPrefix(s.Host, "*") {
			c.TLS.SNI = s.Host
		}
		if t.Credential != "" && a.role == Gateway {
			c.TLS.Secret = secretPrefix + a.namespace + "/" + t.Credential
		}
		c.TLS.InsecureSkipVerify = t.InsecureSkipVerify != nil && *t.InsecureSkipVerify
	}
}

// meshed reports whether there are workloads, all of them with a proxy of the mesh.
func meshed(list []*mesh.Workload) bool {
	return len(list) > 0 && !slices.ContainsFunc(list, func(w *mesh.Workload) bool { return !w.MTLS })
}

// identities lists the SPIFFE IDs that may answer for a service: those of its workloads, and what it lists itself.
func (a *asking) identities(s *mesh.Service) []string {
	ids := slices.Concat(s.ServiceAccounts, s.SubjectAltNames)
	for _, account := range a.Accounts(s) {
		namespace, name, _ := strings.Cut(account, "/")
		for _, td := range append([]string{a.config.TrustDomain}, a.config.TrustDomainAliases...) {
			ids = append(ids, spiffe(td, namespace, name))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func connections(c *plan.Cluster, p *mesh.Connections) {
	if p == nil {
		return
	}
	c.ConnectTimeout = p.ConnectTimeout
	c.IdleTimeout = p.HTTPIdleTimeout
	if c.IdleTimeout == 0 {
		c.IdleTimeout = p.IdleTimeout
	}
	c.TCPKeepalive = plan.Keepalive{Time: p.KeepaliveTime, Interval: p.KeepaliveInterval, Probes: p.KeepaliveProbes}
	c.UseClientProtocol = p.UseClientProtocol
	c.Limits = plan.Limits{
		Connections: p.MaxConnections, PendingRequests: p.MaxPending, Requests: p.MaxRequests, Retries: p.MaxRetries,
		RequestsPerConnection: p.MaxRequestsPerConnection, ConcurrentStreams: p.MaxConcurrentStreams,
		ConnectionDuration: p.MaxDuration,
	}
}

// The defaults of Istio's outlierDetection.
const (
	outlierErrors       = 5
	outlierInterval     = 10 * time.Second
	outlierBase         = 30 * time.Second
	outlierEjectedMax   = 10
	outlierLocalDefault = 5
)

func outlier(p *mesh.Outlier) *plan.Outlier {
	if p == nil {
		return nil
	}
	o := &plan.Outlier{
		Consecutive5xx: outlierErrors, SplitLocal: p.SplitLocal, Interval: p.Interval, BaseEjection: p.BaseEjection,
		MaxEjectionPercent: p.MaxEjectionPercent, MinHealthPercent: p.MinHealthPercent, StatusCodes: p.StatusCodes,
	}
	if p.Consecutive5xx != nil {
		o.Consecutive5xx = *p.Consecutive5xx
	}
	if p.ConsecutiveGateway != nil {
		o.ConsecutiveGateway = *p.ConsecutiveGateway
	}
	if p.SplitLocal {
		o.ConsecutiveLocal = outlierLocalDefault
		if p.ConsecutiveLocal != nil {
			o.ConsecutiveLocal = *p.ConsecutiveLocal
		}
	}
	if o.Interval == 0 {
		o.Interval = outlierInterval
	}
	if o.BaseEjection == 0 {
		o.BaseEjection = outlierBase
	}
	if o.MaxEjectionPercent == 0 {
		o.MaxEjectionPercent = outlierEjectedMax
	}
	return o
}

// clusterNames lists every cluster that the asker may use, for those who want all.
func (a *asking) clusterNames() []string {
	names := []string{plan.ClusterBlackHole, plan.ClusterInboundPassthrough, plan.ClusterPassthrough}
	for _, s := range a.Services(a.namespace) {
		if a.Service(a.namespace, s.Host) != s {
			continue
		}
		subsets := append([]string{""}, a.traffic(s).subsetNames()...)
		for _, p := range s.Ports {
			if p.Protocol == mesh.UDP {
				continue
			}
			for _, subset := range subsets {
				names = append(names, clusterName(p.Number, subset, s.Host))
			}
		}
	}
	if a.role == Sidecar {
		for _, p := range a.inboundPorts() {
			names = append(names, inboundCluster(p.port))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
