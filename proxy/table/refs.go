package table

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/authz"
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
			if c.HTTP != nil && c.HTTP.Inline != nil {
				routeRefs(c.HTTP.Inline, add)
			} else if c.HTTP != nil {
				add(plan.KindRoute, c.HTTP.Route)
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
	return r.kind == plan.KindCluster && (r.name == plan.ClusterInvalid || slices.Contains(builtinNames, r.name))
}

// check refuses, before anything is taken, a resource that could not be compiled.
func (t *Table) check(kind plan.Kind, res plan.Resource) error {
	if res.ResourceKind() != kind {
		return fmt.Errorf("is a %s", res.ResourceKind())
	}
	if res.ResourceName() == "" {
		return errors.New("has no name")
	}
	switch res := res.(type) {
	case *plan.Listener:
		for i := range res.Chains {
			if err := t.checkChain(&res.Chains[i]); err != nil {
				return fmt.Errorf("chain %q: %w", res.Chains[i].Name, err)
			}
		}
	case *plan.Route:
		return checkRoute(res)
	}
	return nil
}

func (t *Table) checkChain(c *plan.Chain) error {
	if _, err := authz.New(c.Authz, t.cfg.TrustDomain, t.cfg.Aliases); err != nil {
		return err
	}
	if c.TCP != nil {
		if err := checkWeights(c.TCP.Clusters); err != nil {
			return err
		}
	}
	if c.HTTP != nil && c.HTTP.Inline != nil {
		return checkRoute(c.HTTP.Inline)
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
	if err := checkWeights(r.Clusters); err != nil {
		return err
	}
	all := []plan.StringMatch{r.Match.Path, r.Match.Method, r.Match.Scheme, r.Match.Authority}
	for _, h := range slices.Concat(r.Match.Headers, r.Match.Query) {
		all = append(all, h.Value)
	}
	if r.CORS != nil {
		all = append(all, r.CORS.AllowOrigins...)
	}
	for _, m := range all {
		if err := checkText(m); err != nil {
			return err
		}
	}
	if w := r.Rewrite; w != nil && w.Regex != "" {
		if _, err := newRewrite(w.Regex, w.Substitution); err != nil {
			return err
		}
	}
	return nil
}

func checkWeights(list []plan.WeightedCluster) error {
	total := uint64(0)
	for _, w := range list {
		total += uint64(w.Weight)
	}
	if total > math.MaxUint32 {
		return fmt.Errorf("the weights of the clusters add up to %d, at most %d are taken", total, uint32(math.MaxUint32))
	}
	return nil
}

func checkText(m plan.StringMatch) error {
	switch m.Kind {
	case plan.MatchRegex:
		if _, err := regexp.Compile(m.Value); err != nil {
			return fmt.Errorf("expression %q: %w", m.Value, err)
		}
	case plan.MatchPath:
		if _, err := authz.NewTemplate(m.Value); err != nil {
			return err
		}
	default: // any text will do
	}
	return nil
}

// whole makes an expression match a whole text or not at all.
func whole(expr string) string { return `\A(?:` + expr + `)\z` }
