package plan

import (
	"strconv"
	"strings"
)

// String prints the route with its hosts and rules.
func (r *Route) String() string {
	t := &text{}
	r.print(t)
	return t.b.String()
}

func (r *Route) print(t *text) {
	t.line("route %s", r.Name)
	t.in(func() {
		for i := range r.Hosts {
			h := &r.Hosts[i]
			t.line("host %s: %s", h.Name, strings.Join(h.Domains, " "))
			t.in(func() {
				if h.RequireTLS {
					t.line("plaintext redirected to https")
				}
				for j := range h.Rules {
					h.Rules[j].print(t)
				}
				if h.Service != (ServiceName{}) {
					t.line("service %s", h.Service)
				}
			})
		}
	})
}

func (r *Rule) print(t *text) {
	name := ""
	if r.Name != "" {
		name = " " + r.Name
	}
	t.line("rule%s: %s%s", name, r.Match, from(r.Origin))
	t.in(func() {
		switch {
		case r.Redirect != nil:
			t.line("redirect %s", r.Redirect.words())
		case r.Direct != nil:
			t.line("answer %d %q", r.Direct.Code, r.Direct.Body)
		default:
			for _, c := range r.Clusters {
				t.line("to %s", c)
			}
		}
		t.optional("rewrite", r.Rewrite.words())
		t.optional("request headers:", r.Request.words())
		t.optional("response headers:", r.Response.words())
		r.Fault.print(t)
		if r.Timeout > 0 {
			t.line("timeout %s", r.Timeout)
		}
		if r.Retry != nil {
			t.line("retry %s", r.Retry.words())
		}
		for _, m := range r.Mirrors {
			t.line("mirror %g %% to %s", m.Percent, m.Cluster)
		}
		if r.CORS != nil {
			t.line("cors %s", r.CORS.words())
		}
		for _, h := range r.HashOn {
			t.line("hash on %s", h)
		}
		if r.Operation != "" {
			t.line("span %s", r.Operation)
		}
	})
}

func (e HeaderEdits) words() words {
	var w words
	w.add("", e.String())
	return w
}

// String is the conjunction as words; "everything" if it is empty.
func (m RequestMatch) String() string {
	var w words
	w.add("path", m.Path)
	w.add("method", m.Method)
	w.add("scheme", m.Scheme)
	w.add("authority", m.Authority)
	for _, h := range m.Headers {
		w = append(w, "header "+h.String())
	}
	for _, q := range m.Query {
		w = append(w, "query "+q.String())
	}
	if len(w) == 0 {
		return "everything"
	}
	return w.and()
}

func (r *Rewrite) words() words {
	var w words
	if r != nil {
		w.add("prefix", r.Prefix)
		w.add("path to", r.Path)
		w.add("authority to", r.Authority)
		w.add("regex", r.Regex)
		w.add("to", r.Substitution)
	}
	return w
}

func (r *Redirect) words() words {
	var w words
	w.add("", r.Code)
	w.add("scheme", r.Scheme)
	w.add("authority", r.Authority)
	w.add("path", r.Path)
	w.add("prefix", r.MatchedPrefix)
	w.add("to", r.Prefix)
	w.add("port", r.Port)
	w.when(r.PortFromRequest, "port of the request")
	return w
}

func (f *Fault) print(t *text) {
	if f == nil {
		return
	}
	if f.Delay > 0 || f.DelayPercent > 0 {
		t.line("fault: delay %s for %g %%", f.Delay, f.DelayPercent)
	}
	var abort words
	abort.add("http", f.AbortStatus)
	if f.AbortGRPC >= 0 {
		abort = append(abort, "grpc "+strconv.Itoa(f.AbortGRPC))
	}
	if f.AbortPercent > 0 || len(abort) > 0 {
		t.line("fault: abort %s for %g %%", abort, f.AbortPercent)
	}
}

func (r *Retry) words() words {
	var w words
	w.add("times", r.Attempts)
	w.add("on", r.On)
	w.add("codes", r.StatusCodes)
	w.add("each within", r.PerTryTimeout)
	w.add("backoff", r.Backoff)
	w.when(r.AvoidPrevious, "elsewhere")
	return w
}

// String lists the conditions by Envoy's names.
func (r RetryOn) String() string {
	var parts []string
	for i, n := range RetryOnNames {
		if r&(1<<i) != 0 {
			parts = append(parts, n)
		}
	}
	return strings.Join(parts, ",")
}

func (c *CORS) words() words {
	var w words
	w.add("origins", c.AllowOrigins)
	w.add("methods", c.AllowMethods)
	w.add("headers", c.AllowHeaders)
	w.add("expose", c.ExposeHeaders)
	w.add("for", c.MaxAge)
	w.when(c.AllowCredentials, "credentials")
	w.when(c.ForwardUnmatched, "other preflights forwarded")
	return w
}

// String names the inputs.
func (h HashOn) String() string {
	var w words
	w.add("header", h.Header)
	w.add("cookie", h.Cookie)
	w.add("path", h.CookiePath)
	if h.CookieTTL != nil {
		w = append(w, "set for "+h.CookieTTL.String())
	}
	w.add("query", h.Query)
	w.when(h.SourceIP, "source address")
	return w.String()
}
