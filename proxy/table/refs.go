package table

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/lateen-mesh/lateen/plan"
)

// refs lists what a resource refers to, each once.
func refs(res plan.Resource) []ref {
	seen := map[ref]bool{}
	var out []ref
	add := func(kind plan.Kind, name string) {
		r := ref{kind, name}
		if name != "" && !seen[r] && !isBuiltin(r) {
			seen[r] = true
			out = append(out, r)
		}
	}
	switch res := res.(type) {
	case *plan.Listener:
		for i := range res.Chains {
			c := &res.Chains[i]
			add(plan.KindSecret, c.TLS.Secret)
			if c.HTTP != nil {
				add(plan.KindRoute, c.HTTP.Route)
				if c.HTTP.Inline != nil {
					routeRefs(c.HTTP.Inline, add)
				}
			}
			if c.TCP != nil {
				for _, w := range c.TCP.Clusters {
					add(plan.KindCluster, w.Cluster)
				}
			}
		}
	case *plan.Route:
		routeRefs(res, add)
	case *plan.Cluster:
		if res.Discovery == plan.DiscoverEndpoints {
			add(plan.KindEndpoints, res.Name)
		}
		add(plan.KindSecret, res.TLS.Secret)
	}
	return out
}

func routeRefs(r *plan.Route, add func(plan.Kind, string)) {
	for i := range r.Hosts {
		for j := range r.Hosts[i].Rules {
			rule := &r.Hosts[i].Rules[j]
			for _, w := range rule.Clusters {
				add(plan.KindCluster, w.Cluster)
			}
			for _, m := range rule.Mirrors {
				add(plan.KindCluster, m.Cluster)
			}
		}
	}
}

func isBuiltin(r ref) bool {
	return r.kind == plan.KindCluster &&
		(r.name == plan.ClusterPassthrough || r.name == plan.ClusterInboundPassthrough || r.name == plan.ClusterBlackHole)
}

// check refuses, before anything is taken, a resource that could not be compiled.
func check(res plan.Resource) error {
	switch res := res.(type) {
	case *plan.Listener:
		for i := range res.Chains {
			c := &res.Chains[i]
			if _, err := newAuthz(c.Authz, "", nil); err != nil {
				return fmt.Errorf("chain %q: %w", c.Name, err)
			}
			if c.HTTP != nil && c.HTTP.Inline != nil {
				if err := checkRoute(c.HTTP.Inline); err != nil {
					return fmt.Errorf("chain %q: %w", c.Name, err)
				}
			}
		}
	case *plan.Route:
		return checkRoute(res)
	case *plan.Cluster:
		if res.Name == "" {
			return errors.New("the cluster has no name")
		}
	}
	return nil
}

func checkRoute(r *plan.Route) error {
	for i := range r.Hosts {
		h := &r.Hosts[i]
		for j := range h.Rules {
			if err := checkRule(&h.Rules[j]); err != nil {
				return fmt.Errorf("host %q, rule %d (%s): %w", h.Name, j+1, h.Rules[j].Origin, err)
			}
		}
	}
	return nil
}

func checkRule(r *plan.Rule) error {
	acts := 0
	for _, is := range []bool{len(r.Clusters) > 0, r.Redirect != nil, r.Direct != nil} {
		if is {
			acts++
		}
	}
	if acts != 1 {
		return fmt.Errorf("%d of cluster, redirect and direct response are set, want one", acts)
	}
	all := []plan.StringMatch{r.Match.Path, r.Match.Method, r.Match.Scheme, r.Match.Authority}
	for _, h := range append(append([]plan.HeaderMatch{}, r.Match.Headers...), r.Match.Query...) {
		all = append(all, h.Value)
	}
	for _, m := range all {
		if m.Kind == plan.MatchRegex {
			if _, err := compileRegex(m.Value); err != nil {
				return err
			}
		}
	}
	if w := r.Rewrite; w != nil && w.Regex != "" {
		if _, err := regexp.Compile(w.Regex); err != nil {
			return fmt.Errorf("rewrite expression: %w", err)
		}
	}
	return nil
}

// compileRegex compiles an expression that must match a whole text.
func compileRegex(expr string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", expr, err)
	}
	return re, nil
}
