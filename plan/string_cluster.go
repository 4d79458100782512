package plan

// String prints the cluster.
func (c *Cluster) String() string {
	t := &text{}
	t.line("cluster %s%s", c.Name, from(c.Origin))
	t.in(func() {
		w := words{"by " + c.Discovery.String(), c.Protocol.String()}
		w.when(c.UseClientProtocol, "the client's protocol")
		w.when(c.External, "external")
		w.add("subset", c.Subset)
		w.add("from", c.BindSource)
		w.add("proxy protocol", c.ProxyProtocol)
		t.line("endpoints %s", w)
		for _, a := range c.Addresses {
			t.line("at %s", a)
		}
		t.line("balance %s", c.Balance.words())
		t.line("tls %s", c.TLS.words())
		var pool words
		pool.add("connect within", c.ConnectTimeout)
		pool.add("idle", c.IdleTimeout)
		pool.add("keepalive after", c.TCPKeepalive.Time)
		pool.add("every", c.TCPKeepalive.Interval)
		pool.add("probes", c.TCPKeepalive.Probes)
		t.optional("connections", pool)
		t.optional("limits", c.Limits.words())
		if c.Outlier != nil {
			t.line("eject %s", c.Outlier.words())
		}
		if c.Service != (ServiceName{}) {
			t.line("service %s", c.Service)
		}
	})
	return t.b.String()
}

func (b *Balance) words() words {
	w := words{b.Algorithm.String()}
	w.add("size", b.RingSize)
	for _, h := range b.HashOn {
		w = append(w, "hash on "+h.String())
	}
	w.when(b.Locality, "near first")
	w.add("seen from", b.From)
	w.add("failover", b.Failover)
	w.add("distribute", b.Distribute)
	w.add("warm up", b.Warmup)
	return w
}

func (c *ClientTLS) words() words {
	w := words{c.Mode.String()}
	w.add("as", c.SNI)
	w.add("to", c.Identities)
	w.add("with", c.Secret)
	w.add("roots", c.CAFile)
	w.add("certificate", c.CertFile)
	w.add("key", c.KeyFile)
	w.add("offers", c.ALPN)
	w.when(c.InsecureSkipVerify, "not verified")
	return w
}

func (l *Limits) words() words {
	var w words
	w.add("connections", l.Connections)
	w.add("pending", l.PendingRequests)
	w.add("requests", l.Requests)
	w.add("retries", l.Retries)
	w.add("requests per connection", l.RequestsPerConnection)
	w.add("streams", l.ConcurrentStreams)
	w.add("duration", l.ConnectionDuration)
	w.add("retry budget percent", l.RetryBudget)
	w.add("at least", l.RetryBudgetMin)
	return w
}

func (o *Outlier) words() words {
	var w words
	w.add("after errors", o.Consecutive5xx)
	w.add("gateway errors", o.ConsecutiveGateway)
	w.add("local errors", o.ConsecutiveLocal)
	w.when(o.SplitLocal, "told apart")
	w.add("codes", o.StatusCodes)
	w.add("every", o.Interval)
	w.add("for", o.BaseEjection)
	w.add("at most percent", o.MaxEjectionPercent)
	w.add("unless healthy percent below", o.MinHealthPercent)
	return w
}
