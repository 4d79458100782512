package plan

import "crypto/tls"

// String prints the listener with its chains.
func (l *Listener) String() string {
	t := &text{}
	bind := ""
	if l.Bind.IsValid() {
		bind = " on " + l.Bind.String()
	}
	t.line("listener %s (%s%s)", l.Name, l.Direction, bind)
	t.in(func() {
		for i := range l.Chains {
			l.Chains[i].print(t)
		}
		l.Telemetry.print(t)
	})
	return t.b.String()
}

func (c *Chain) print(t *text) {
	var w words
	w.add("", c.Match)
	w = append(w, c.Protocol.String())
	t.line("chain %s: %s%s", c.Name, w, from(c.Origin))
	t.in(func() {
		t.optional("tls", c.TLS.words())
		if c.HTTP != nil {
			c.HTTP.print(t)
		}
		if c.TCP != nil {
			var w words
			w.add("", c.TCP.Clusters)
			w.add("idle", c.TCP.IdleTimeout)
			if n := c.TCP.Tunnel; n != nil {
				w.add("tunnel to", n.Target)
				w.when(n.Post, "by POST")
			}
			t.line("bytes to %s", w)
		}
		if c.Authz != nil {
			c.Authz.print(t)
		}
		if c.Service != (ServiceName{}) {
			t.line("service %s", c.Service)
		}
	})
}

// String is the conjunction as words; empty if everything matches.
func (m ChainMatch) String() string {
	var w words
	w.add("port", m.Ports)
	w.add("server name", m.SNI)
	w.add("to", m.Destinations)
	w.add("from", m.Sources)
	return w.and()
}

func (s ServerTLS) words() words {
	var w words
	w.add("", s.Mode)
	w.add("with", s.Secret)
	w.add("certificate", s.CertFile)
	w.add("key", s.KeyFile)
	w.add("roots", s.CAFile)
	w.add("for", s.SubjectAltNames)
	w.when(s.MinVersion != 0, "from "+tls.VersionName(s.MinVersion))
	w.when(s.MaxVersion != 0, "to "+tls.VersionName(s.MaxVersion))
	for _, c := range s.CipherSuites {
		w = append(w, tls.CipherSuiteName(c))
	}
	w.add("offers", s.ALPN)
	w.when(s.RedirectHTTPS, "plaintext redirected to https")
	if s.Mode == TLSNone && len(w) > 0 {
		w = append(words{s.Mode.String()}, w...)
	}
	return w
}

func (h *HTTP) print(t *text) {
	var w words
	w.add("by route", h.Route)
	w.when(h.ByHost, "by the route of the request's host")
	w.add("server name", h.ServerName)
	w.add("client certificate", h.ForwardClientCert)
	w.when(h.AppendForwardedFor, "append x-forwarded-for")
	w.add("trusted hops", h.TrustedHops)
	w.add("path normalization", h.PathNormalization)
	w.add("idle", h.IdleTimeout)
	w.when(h.Peers, "exchange metadata with peers")
	w.when(h.HTTP10, "accept HTTP/1.0")
	t.line("requests %s", w)
	if h.Inline != nil {
		t.in(func() { h.Inline.print(t) })
	}
}

func (s *Telemetry) print(t *text) {
	for _, a := range s.AccessLogs {
		w := words{a.Path}
		w.when(a.JSON, "json")
		w.add("labels", a.Labels)
		w.add("format", a.Format)
		w.add("status at least", a.MinStatus)
		w.when(a.ErrorsOnly, "errors only")
		t.line("access log to %s", w)
	}
	if r := s.Tracing; r != nil {
		var w words
		w.add("percent", r.Sampling)
		w.add("tags", r.Tags)
		w.add("tags from headers", r.HeaderTag)
		t.line("spans to %s by %s: %s", r.Endpoint, r.Provider, w)
	}
	if s.NoMetrics {
		t.line("no metrics")
	}
}

func (a *Authz) print(t *text) {
	for i := range a.Policies {
		p := &a.Policies[i]
		dry := ""
		if p.DryRun {
			dry = " (dry run)"
		}
		t.line("%s%s by %s%s", p.Action, dry, p.Name, from(p.Origin))
		t.in(func() {
			if len(p.Rules) == 0 {
				t.line("nothing")
			}
			for j := range p.Rules {
				t.line("%s", p.Rules[j])
			}
		})
	}
}

// String is the rule as words.
func (r PolicyRule) String() string {
	var w words
	for i, s := range r.From {
		w = append(w, []string{"from", "or from"}[min(i, 1)]+" "+s.String())
	}
	for i, o := range r.To {
		w = append(w, []string{"to", "or to"}[min(i, 1)]+" "+o.String())
	}
	for _, c := range r.When {
		w = append(w, "when "+c.String())
	}
	if len(w) == 0 {
		return "everything"
	}
	return w.String()
}

// String is the source as words.
func (s Source) String() string {
	var w words
	w.add("principal", s.Principals)
	w.add("not principal", s.NotPrincipals)
	w.add("request principal", s.RequestPrincipals)
	w.add("not request principal", s.NotRequestPrincipals)
	w.add("namespace", s.Namespaces)
	w.add("not namespace", s.NotNamespaces)
	w.add("trust domain", s.TrustDomains)
	w.add("not trust domain", s.NotTrustDomains)
	w.add("service account", s.ServiceAccounts)
	w.add("not service account", s.NotServiceAccounts)
	w.add("ip", s.IPs)
	w.add("not ip", s.NotIPs)
	w.add("remote ip", s.RemoteIPs)
	w.add("not remote ip", s.NotRemoteIPs)
	return w.and()
}

// String is the operation as words.
func (o Operation) String() string {
	var w words
	w.add("host", o.Hosts)
	w.add("not host", o.NotHosts)
	w.add("port", o.Ports)
	w.add("not port", o.NotPorts)
	w.add("method", o.Methods)
	w.add("not method", o.NotMethods)
	w.add("path", o.Paths)
	w.add("not path", o.NotPaths)
	return w.and()
}

// String is the condition as words.
func (c Condition) String() string {
	var w words
	w.add("is", c.Values)
	w.add("is", c.Prefixes)
	w.add("is", c.Ports)
	w.add("is not", c.NotValues)
	w.add("is not", c.NotPrefixes)
	w.add("is not", c.NotPorts)
	return c.Key + " " + w.and()
}
