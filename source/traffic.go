package source

import (
	networking "istio.io/api/networking/v1alpha3"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func (s *Set) traffic(o *api.Object, d *networking.DestinationRule) *mesh.Traffic {
	out := &mesh.Traffic{
		Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Host: s.host(o.Namespace, d.Host), Selector: selector(d.WorkloadSelector.GetMatchLabels()),
		Policy: trafficPolicy(d.TrafficPolicy), Visibility: visibility(o.Namespace, d.ExportTo, s.exports.traffic),
	}
	for i, sub := range d.Subsets {
		out.Subsets = append(out.Subsets, mesh.Subset{
			Name: sub.Name, Labels: sub.Labels, Policy: trafficPolicy(sub.TrafficPolicy), Line: o.LineOf("spec", "subsets", i),
		})
	}
	return out
}

func trafficPolicy(t *networking.TrafficPolicy) mesh.TrafficPolicy {
	if t == nil {
		return mesh.TrafficPolicy{}
	}
	out := mesh.TrafficPolicy{
		Balance: balance(t.LoadBalancer), Connections: connections(t.ConnectionPool), Outlier: outlier(t.OutlierDetection), TLS: clientTLS(t.Tls),
	}
	if n := t.Tunnel; n != nil {
		out.Tunnel = &mesh.Tunnel{Post: n.Protocol == "POST", Host: n.TargetHost, Port: uint16(n.TargetPort)}
	}
	if p := t.ProxyProtocol; p != nil {
		out.ProxyProtocol = 1 + int(p.Version)
	}
	if b := t.RetryBudget; b != nil {
		out.RetryBudget = &mesh.RetryBudget{Percent: 20, Min: b.MinRetryConcurrency}
		if b.Percent != nil {
			out.RetryBudget.Percent = b.Percent.Value
		}
		if b.MinRetryConcurrency == 0 {
			out.RetryBudget.Min = 3
		}
	}
	for _, p := range t.PortLevelSettings {
		if out.Ports == nil {
			out.Ports = map[uint16]mesh.TrafficPolicy{}
		}
		out.Ports[uint16(p.Port.GetNumber())] = mesh.TrafficPolicy{
			Balance: balance(p.LoadBalancer), Connections: connections(p.ConnectionPool), Outlier: outlier(p.OutlierDetection), TLS: clientTLS(p.Tls),
		}
	}
	return out
}

func balance(b *networking.LoadBalancerSettings) *mesh.Balance {
	if b == nil {
		return nil
	}
	out := &mesh.Balance{Warmup: b.WarmupDurationSecs.AsDuration(), Locality: locality(b.LocalityLbSetting)}
	if b.Warmup != nil {
		out.Warmup = b.Warmup.Duration.AsDuration()
	}
	if simple := b.GetSimple(); simple != networking.LoadBalancerSettings_UNSPECIFIED {
		out.Simple = simple.String()
	}
	if h := b.GetConsistentHash(); h != nil {
		c := &mesh.ConsistentHash{
			Header: h.GetHttpHeaderName(), Query: h.GetHttpQueryParameterName(), SourceIP: h.GetUseSourceIp(), Maglev: h.GetMaglev() != nil,
			Size: int(max(h.GetMaglev().GetTableSize(), h.GetRingHash().GetMinimumRingSize(), h.MinimumRingSize)),
		}
		if k := h.GetHttpCookie(); k != nil {
			c.Cookie = &mesh.Cookie{Name: k.Name, Path: k.Path}
			if k.Ttl != nil {
				ttl := k.Ttl.AsDuration()
				c.Cookie.TTL = &ttl
			}
		}
		out.ConsistentHash = c
	}
	return out
}

func locality(l *networking.LocalityLoadBalancerSetting) *mesh.Locality {
	if l == nil {
		return nil
	}
	out := &mesh.Locality{Priority: l.FailoverPriority}
	if l.Enabled != nil {
		enabled := l.Enabled.Value
		out.Enabled = &enabled
	}
	for _, d := range l.Distribute {
		out.Distribute = append(out.Distribute, mesh.LocalityWeights{From: d.From, To: d.To})
	}
	for _, f := range l.Failover {
		if out.Failover == nil {
			out.Failover = map[string]string{}
		}
		out.Failover[f.From] = f.To
	}
	return out
}

func connections(c *networking.ConnectionPoolSettings) *mesh.Connections {
	if c == nil {
		return nil
	}
	out := &mesh.Connections{}
	if t := c.Tcp; t != nil {
		out.MaxConnections, out.ConnectTimeout = uint32(t.MaxConnections), t.ConnectTimeout.AsDuration()
		out.IdleTimeout, out.MaxDuration = t.IdleTimeout.AsDuration(), t.MaxConnectionDuration.AsDuration()
		if k := t.TcpKeepalive; k != nil {
			out.KeepaliveTime, out.KeepaliveInterval, out.KeepaliveProbes = k.Time.AsDuration(), k.Interval.AsDuration(), k.Probes
		}
	}
	if h := c.Http; h != nil {
		out.MaxPending, out.MaxRequests = uint32(h.Http1MaxPendingRequests), uint32(h.Http2MaxRequests)
		out.MaxRequestsPerConnection, out.MaxRetries = uint32(h.MaxRequestsPerConnection), uint32(h.MaxRetries)
		out.MaxConcurrentStreams, out.HTTPIdleTimeout = uint32(h.MaxConcurrentStreams), h.IdleTimeout.AsDuration()
		out.H2Upgrade, out.UseClientProtocol = h.H2UpgradePolicy.String(), h.UseClientProtocol
	}
	return out
}

func outlier(o *networking.OutlierDetection) *mesh.Outlier {
	if o == nil {
		return nil
	}
	out := &mesh.Outlier{
		SplitLocal: o.SplitExternalLocalOriginErrors, Interval: o.Interval.AsDuration(), BaseEjection: o.BaseEjectionTime.AsDuration(),
		MaxEjectionPercent: uint32(o.MaxEjectionPercent), MinHealthPercent: uint32(o.MinHealthPercent),
	}
	if v := o.Consecutive_5XxErrors; v != nil {
		out.Consecutive5xx = &v.Value
	} else if n := uint32(max(o.ConsecutiveErrors, 0)); n > 0 {
		out.Consecutive5xx = &n
	}
	if v := o.ConsecutiveGatewayErrors; v != nil {
		out.ConsecutiveGateway = &v.Value
	}
	if v := o.ConsecutiveLocalOriginFailures; v != nil {
		out.ConsecutiveLocal = &v.Value
	}
	for _, s := range o.OutlierDetectionHttpErrorCodes {
		out.StatusCodes = append(out.StatusCodes, int(s))
	}
	return out
}

func clientTLS(t *networking.ClientTLSSettings) *mesh.ClientTLS {
	if t == nil {
		return nil
	}
	out := &mesh.ClientTLS{
		Mode: t.Mode.String(), SNI: t.Sni, Credential: t.CredentialName, CertFile: t.ClientCertificate, KeyFile: t.PrivateKey,
		CAFile: t.CaCertificates, SubjectAltNames: t.SubjectAltNames,
	}
	if v := t.InsecureSkipVerify; v != nil {
		out.InsecureSkipVerify = &v.Value
	}
	return out
}
