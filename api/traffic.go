package api

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func validateTraffic(c *check) {
	d := c.Spec.(*networking.DestinationRule)
	if !isHost(d.Host, true) {
		c.fault("spec.host", "%q is not a host; write a service's name, or *.a.name", d.Host)
	}
	c.exportTo("spec.exportTo", d.ExportTo)
	c.labels("spec.workloadSelector.matchLabels", d.WorkloadSelector.GetMatchLabels())
	c.trafficPolicy("spec.trafficPolicy", d.TrafficPolicy)
	seen := map[string]bool{}
	for i, s := range d.Subsets {
		p := in("spec.subsets", i)
		switch {
		case !dnsName.MatchString(s.Name):
			c.fault(in(p, "name"), "%q is not a name; use lower-case letters, digits and -", s.Name)
		case seen[s.Name]:
			c.fault(in(p, "name"), "there are two subsets named %q; rename one", s.Name)
		}
		seen[s.Name] = true
		c.labels(in(p, "labels"), s.Labels)
		c.trafficPolicy(in(p, "trafficPolicy"), s.TrafficPolicy)
	}
}

func (c *check) trafficPolicy(p string, t *networking.TrafficPolicy) {
	if t == nil {
		return
	}
	c.balance(in(p, "loadBalancer"), t.LoadBalancer)
	c.pool(in(p, "connectionPool"), t.ConnectionPool)
	c.outlier(in(p, "outlierDetection"), t.OutlierDetection)
	c.clientTLS(in(p, "tls"), t.Tls)
	c.percent(in(p, "retryBudget", "percent"), t.RetryBudget.GetPercent().GetValue())
	if tunnel := t.Tunnel; tunnel != nil {
		tp := in(p, "tunnel")
		if !slices.Contains([]string{"", "CONNECT", "POST"}, tunnel.Protocol) {
			c.fault(in(tp, "protocol"), "%q is not CONNECT or POST", tunnel.Protocol)
		}
		if !isHost(tunnel.TargetHost, false) && !isIP(tunnel.TargetHost) {
			c.fault(in(tp, "targetHost"), "%q is neither a host nor an address", tunnel.TargetHost)
		}
		c.port(in(tp, "targetPort"), tunnel.TargetPort)
	}
	seen := map[uint32]bool{}
	for i, s := range t.PortLevelSettings {
		sp := in(p, "portLevelSettings", i)
		number := s.Port.GetNumber()
		c.port(in(sp, "port", "number"), number)
		if seen[number] {
			c.fault(in(sp, "port"), "port %d is set twice; join the two", number)
		}
		seen[number] = true
		c.balance(in(sp, "loadBalancer"), s.LoadBalancer)
		c.pool(in(sp, "connectionPool"), s.ConnectionPool)
		c.outlier(in(sp, "outlierDetection"), s.OutlierDetection)
		c.clientTLS(in(sp, "tls"), s.Tls)
	}
}

func (c *check) balance(p string, b *networking.LoadBalancerSettings) {
	if b == nil {
		return
	}
	if b.GetSimple() == networking.LoadBalancerSettings_LEAST_CONN {
		c.warn(in(p, "simple"), "LEAST_CONN is deprecated; write LEAST_REQUEST, which does the same")
	}
	if h := b.GetConsistentHash(); h != nil {
		if h.HashKey == nil {
			c.fault(in(p, "consistentHash"), "does not say what to hash; add httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName")
		}
		const maxMaglev = 5_000_011
		if size := h.GetMaglev().GetTableSize(); size > maxMaglev || size > 1 && !prime(size) {
			c.fault(in(p, "consistentHash", "maglev", "tableSize"), "%d is not a prime number up to %d", size, maxMaglev)
		}
		const maxRing = 8 << 20
		if size := max(h.GetRingHash().GetMinimumRingSize(), h.MinimumRingSize); size > maxRing {
			c.fault(in(p, "consistentHash"), "the ring has %d entries, more than the %d allowed", size, maxRing)
		}
	}
	if b.WarmupDurationSecs != nil && b.Warmup != nil {
		c.fault(p, "has warmup and warmupDurationSecs; keep warmup")
	}
	c.locality(in(p, "localityLbSetting"), b.LocalityLbSetting)
}

// prime reports whether n, small enough for trial division, is a prime number.
func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func (c *check) locality(p string, l *networking.LocalityLoadBalancerSetting) {
	if l == nil {
		return
	}
	set := 0
	for _, n := range []int{len(l.Distribute), len(l.Failover), len(l.FailoverPriority)} {
		if n > 0 {
			set++
		}
	}
	if len(l.Distribute) > 0 && set > 1 || len(l.Failover) > 0 && len(l.Distribute) > 0 {
		c.fault(p, "has distribute beside failover or failoverPriority; keep one of them")
	}
	from := map[string]bool{}
	for i, d := range l.Distribute {
		dp := in(p, "distribute", i)
		sum := uint64(0)
		for to, w := range d.To {
			if w == 0 {
				c.fault(in(dp, "to", to), "is 0; leave the locality out instead")
			}
			sum += uint64(w)
		}
		if sum != 100 {
			c.fault(in(dp, "to"), "the weights sum to %d; they must sum to 100", sum)
		}
		if from[d.From] {
			c.fault(in(dp, "from"), "%q is listed twice; join the two", d.From)
		}
		from[d.From] = true
	}
	for i, f := range l.Failover {
		fp := in(p, "failover", i)
		switch {
		case f.From == f.To:
			c.fault(fp, "from and to are both %q; a failover leads to another region", f.From)
		case strings.ContainsAny(f.From+f.To, "/*"):
			c.fault(fp, "from and to are regions, without zone and without *")
		}
	}
}

func (c *check) pool(p string, s *networking.ConnectionPoolSettings) {
	if s == nil {
		return
	}
	if s.Http == nil && s.Tcp == nil {
		c.fault(p, "is empty; add tcp or http")
	}
	if t := s.Tcp; t != nil {
		c.notNegative(in(p, "tcp"), map[string]int32{"maxConnections": t.MaxConnections})
	}
	if h := s.Http; h != nil {
		c.notNegative(in(p, "http"), map[string]int32{
			"http1MaxPendingRequests": h.Http1MaxPendingRequests, "http2MaxRequests": h.Http2MaxRequests,
			"maxRequestsPerConnection": h.MaxRequestsPerConnection, "maxRetries": h.MaxRetries, "maxConcurrentStreams": h.MaxConcurrentStreams,
		})
		if h.H2UpgradePolicy == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE && h.UseClientProtocol {
			c.fault(in(p, "http", "useClientProtocol"), "contradicts h2UpgradePolicy UPGRADE; keep one of them")
		}
	}
}

func (c *check) outlier(p string, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	c.percent(in(p, "maxEjectionPercent"), float64(o.MaxEjectionPercent))
	c.percent(in(p, "minHealthPercent"), float64(o.MinHealthPercent))
	if o.ConsecutiveLocalOriginFailures != nil && !o.SplitExternalLocalOriginErrors {
		c.fault(in(p, "consecutiveLocalOriginFailures"), "counts only with splitExternalLocalOriginErrors: true; add it")
	}
	for i, s := range o.OutlierDetectionHttpErrorCodes {
		if s < 100 || s > 599 {
			c.fault(in(p, "outlierDetectionHttpErrorCodes", i), "%d is not a status; write 100 to 599", s)
		}
	}
}

func (c *check) clientTLS(p string, t *networking.ClientTLSSettings) {
	if t == nil {
		return
	}
	if t.InsecureSkipVerify.GetValue() && (t.CaCertificates != "" || len(t.SubjectAltNames) > 0) {
		c.fault(in(p, "insecureSkipVerify"), "contradicts caCertificates and subjectAltNames; remove them or it")
	}
	files := t.ClientCertificate != "" || t.PrivateKey != ""
	if t.CredentialName != "" && (files || t.CaCertificates != "") {
		c.fault(in(p, "credentialName"), "stands beside files; keep the Secret or the files")
	}
	switch t.Mode {
	case networking.ClientTLSSettings_MUTUAL:
		if t.CredentialName == "" && (t.ClientCertificate == "" || t.PrivateKey == "") {
			c.fault(p, "mode MUTUAL needs a certificate of the client; add clientCertificate and privateKey, or credentialName")
		}
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		if files || t.CaCertificates != "" || t.CredentialName != "" {
			c.fault(p, "mode ISTIO_MUTUAL uses the mesh's own certificates; remove the files and credentialName, or write MUTUAL")
		}
	}
}
