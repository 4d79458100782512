package table

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// rig is a table with a record of what it subscribes to, and a clock.
type rig struct {
	*Table
	t    *testing.T
	mu   sync.Mutex
	subs map[ref]bool
	now  time.Time
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, subs: map[ref]bool{}, now: time.Unix(1e9, 0)}
	r.Table = New(Config{
		Subscribe:   func(kind plan.Kind, names ...string) { r.note(true, kind, names) },
		Unsubscribe: func(kind plan.Kind, names ...string) { r.note(false, kind, names) },
		TrustDomain: "cluster.local",
		Now: func() time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.now
		},
	})
	return r
}

func (r *rig) note(wanted bool, kind plan.Kind, names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		if r.subs[ref{kind, n}] == wanted {
			r.t.Errorf("%s %s: subscribed %t twice", kind, n, wanted)
		}
		r.subs[ref{kind, n}] = wanted
	}
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

// wanted lists what is subscribed, as "kind name".
func (r *rig) wanted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for s, on := range r.subs {
		if on {
			out = append(out, s.kind.String()+" "+s.name)
		}
	}
	slices.Sort(out)
	return out
}

func (r *rig) wants(want ...string) {
	r.t.Helper()
	if d := cmp.Diff(want, r.wanted()); d != "" {
		r.t.Errorf("subscriptions (-want +got):\n%s", d)
	}
}

// send delivers resources, each in a response of its own.
func (r *rig) send(list ...plan.Resource) {
	r.t.Helper()
	for _, res := range list {
		if refused := r.Update(res.ResourceKind(), []plan.Resource{res}, nil); refused != nil {
			r.t.Fatal(refused)
		}
	}
}

func (r *rig) remove(kind plan.Kind, name string) {
	r.t.Helper()
	if refused := r.Update(kind, nil, []string{name}); refused != nil {
		r.t.Fatal(refused)
	}
}

func listener(name, route string) *plan.Listener {
	return &plan.Listener{Name: name, Chains: []plan.Chain{{Name: "web", HTTP: &plan.HTTP{Route: route}}}}
}

func route(name string, clusters ...string) *plan.Route {
	r := &plan.Route{Name: name, Hosts: []plan.VirtualHost{{Name: "all", Domains: []string{"*"}}}}
	for _, c := range clusters {
		r.Hosts[0].Rules = append(r.Hosts[0].Rules, plan.Rule{Name: c, Clusters: []plan.WeightedCluster{{Cluster: c}}})
	}
	return r
}

func cluster(name string) *plan.Cluster { return &plan.Cluster{Name: name} }

func endpoints(name string, addrs ...string) *plan.Endpoints {
	e := &plan.Endpoints{Name: name}
	for _, a := range addrs {
		e.Endpoints = append(e.Endpoints, plan.Endpoint{Address: netip.MustParseAddrPort(a)})
	}
	return e
}

// target is where a listener's first chain sends a request: the cluster's name and its first endpoint.
func (r *rig) target(name string) string {
	l, state := r.Listener(name)
	if state != Ready {
		return state.String()
	}
	if l.Chains[0].Route == nil {
		return "no route"
	}
	_, rule := l.Chains[0].Route.Match(&Request{Head: head("GET", "a", "/")})
	if rule == nil {
		return "no rule"
	}
	c := rule.Choices.Choose(0)
	if c.Cluster == nil {
		return c.Name + " absent"
	}
	eps := c.Cluster.Endpoints()
	if len(eps) == 0 {
		return c.Name + " empty"
	}
	return c.Name + " " + eps[0].Plan().Address.String()
}

func head(method, authority, path string, fields ...string) *stream.Head {
	h := &stream.Head{}
	h.SetMethodString(method)
	h.SetAuthorityString(authority)
	h.SetPathString(path)
	for i := 0; i+1 < len(fields); i += 2 {
		h.AddString(fields[i], fields[i+1])
	}
	return h
}

// permutations calls f with every order of the numbers below n.
func permutations(n int, f func(order []int)) {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	var rec func(k int)
	rec = func(k int) {
		if k == n {
			f(slices.Clone(order))
			return
		}
		for i := k; i < n; i++ {
			order[k], order[i] = order[i], order[k]
			rec(k + 1)
			order[k], order[i] = order[i], order[k]
		}
	}
	rec(0)
}

// TestArrival delivers a tree of resources in every order in which answers can come: each as often as it takes, as
// soon as it has been asked for.
func TestArrival(t *testing.T) {
	tree := []plan.Resource{
		listener("10.0.0.1:80", "web"), route("web", "v1", "v2"),
		cluster("v1"), endpoints("v1", "1.1.1.1:1"), cluster("v2"), endpoints("v2", "2.2.2.2:2"),
	}
	permutations(len(tree), func(order []int) {
		r := newRig(t)
		if got := r.target("10.0.0.1:80"); got != "pending" {
			t.Fatal(got)
		}
		calls := 0
		r.Await(plan.KindListener, "10.0.0.1:80", func() { calls++ })
		sent := map[int]bool{}
		for len(sent) < len(tree) {
			for _, i := range order {
				res := tree[i]
				if sent[i] || !r.subs[ref{res.ResourceKind(), res.ResourceName()}] {
					continue
				}
				sent[i] = true
				r.send(res)
				if got, whole := r.target("10.0.0.1:80"), len(sent) == len(tree); whole != (got == "v1 1.1.1.1:1") || !whole && got != "pending" || whole != (calls == 1) {
					t.Fatalf("order %v, after %d: %s, %d calls", order, len(sent), got, calls)
				}
			}
		}
		if calls != 1 {
			t.Fatalf("order %v: %d calls", order, calls)
		}
	})
}

// TestNotAskedFor: what nobody has asked for is not taken.
func TestNotAskedFor(t *testing.T) {
	r := newRig(t)
	r.send(cluster("v1"), route("web", "v1"), &plan.Name{Name: "a"})
	if got := r.Dump(); len(got) != 0 {
		t.Errorf("%d resources were taken", len(got))
	}
	r.wants([]string(nil)...)
}

// ready brings a whole listener into force.
func (r *rig) ready() {
	r.t.Helper()
	r.target("l")
	r.send(listener("l", "web"), route("web", "v1"), cluster("v1"), endpoints("v1", "1.1.1.1:1"))
	if got := r.target("l"); got != "v1 1.1.1.1:1" {
		r.t.Fatal(got)
	}
}

func TestMakeBeforeBreak(t *testing.T) {
	t.Run("route", func(t *testing.T) {
		r := newRig(t)
		r.ready()
		r.send(route("web", "v2"))
		if got := r.target("l"); got != "v1 1.1.1.1:1" {
			t.Errorf("before v2 is known: %s", got)
		}
		r.send(cluster("v2"))
		if got := r.target("l"); got != "v1 1.1.1.1:1" {
			t.Errorf("before v2's endpoints are known: %s", got)
		}
		r.wants("cluster v1", "cluster v2", "endpoints v1", "endpoints v2", "listener l", "route web")
		r.send(endpoints("v2", "2.2.2.2:2"))
		if got := r.target("l"); got != "v2 2.2.2.2:2" {
			t.Errorf("then: %s", got)
		}
		r.wants("cluster v2", "endpoints v2", "listener l", "route web")
	})
	t.Run("superseded", func(t *testing.T) {
		r := newRig(t)
		r.ready()
		r.send(route("web", "v2"), route("web", "v3"))
		r.wants("cluster v1", "cluster v3", "endpoints v1", "listener l", "route web")
		r.send(cluster("v3"), endpoints("v3"))
		if got := r.target("l"); got != "v3 empty" {
			t.Error(got)
		}
	})
	t.Run("listener", func(t *testing.T) {
		r := newRig(t)
		r.ready()
		r.send(listener("l", "other"))
		if got := r.target("l"); got != "v1 1.1.1.1:1" {
			t.Error(got)
		}
		r.send(route("other", "v1"))
		if got := r.target("l"); got != "v1 1.1.1.1:1" {
			t.Error(got)
		}
		r.wants("cluster v1", "endpoints v1", "listener l", "route other")
	})
	t.Run("absence is an answer", func(t *testing.T) {
		r := newRig(t)
		r.ready()
		r.send(route("web", "v2"))
		r.remove(plan.KindCluster, "v2")
		if got := r.target("l"); got != "v2 absent" {
			t.Error(got)
		}
		r.send(cluster("v2"), endpoints("v2", "2.2.2.2:2"))
		if got := r.target("l"); got != "v2 2.2.2.2:2" {
			t.Errorf("when it appears: %s", got)
		}
	})
}

func TestRemoval(t *testing.T) {
	r := newRig(t)
	r.ready()
	r.remove(plan.KindListener, "l")
	if got := r.target("l"); got != "absent" {
		t.Error(got)
	}
	r.wants("listener l") // still asked for, should it come back
	r.ready()
}

func TestUpdateOfEndpointsIsCheap(t *testing.T) {
	r := newRig(t)
	r.ready()
	l, _ := r.Listener("l")
	view, serial := r.view.Load(), r.Serial()
	c := r.Cluster("v1")
	r.send(endpoints("v1", "3.3.3.3:3", "1.1.1.1:1"))
	if got := r.target("l"); got != "v1 3.3.3.3:3" {
		t.Error(got)
	}
	if again, _ := r.Listener("l"); again != l || r.view.Load() != view || r.Serial() != serial || r.Cluster("v1") != c {
		t.Error("an update of endpoints alone made a new view")
	}
	r.remove(plan.KindEndpoints, "v1")
	if got := r.target("l"); got != "v1 empty" {
		t.Error(got)
	}
}

// TestOnlyTheChangedIsCompiled checks that an update recompiles what refers to the change and nothing else.
func TestOnlyTheChangedIsCompiled(t *testing.T) {
	r := newRig(t)
	r.ready()
	r.Listener("m")
	r.send(listener("m", "other"), route("other", "v9"), cluster("v9"), endpoints("v9"))
	l, _ := r.Listener("l")
	m, _ := r.Listener("m")
	before := r.Cluster("v1").Endpoints()[0]
	serial := r.Serial()
	r.send(&plan.Cluster{Name: "v1", ConnectTimeout: time.Second})
	l2, _ := r.Listener("l")
	m2, _ := r.Listener("m")
	if l2 == l || m2 != m {
		t.Errorf("listener of the changed cluster compiled %t, another %t", l2 != l, m2 != m)
	}
	if r.Serial() == serial {
		t.Error("the serial has not changed")
	}
	if c := r.Cluster("v1"); c.Plan().ConnectTimeout != time.Second || c.Endpoints()[0] != before {
		t.Error("the cluster has not been updated, or has lost its endpoints")
	}
	// Once a name is known to be absent, that alone does not make referrers be compiled again and again.
	r.remove(plan.KindCluster, "v9")
	m3, _ := r.Listener("m")
	r.Name("x")
	r.send(&plan.Name{Name: "x"})
	if m4, _ := r.Listener("m"); m4 != m3 || m3 == m2 {
		t.Error("a listener of an absent cluster is compiled when something else changes")
	}
}

func TestDiscoveryChanges(t *testing.T) {
	r := newRig(t)
	r.ready()
	r.send(&plan.Cluster{Name: "v1", Discovery: plan.DiscoverDNS})
	if got := r.target("l"); got != "v1 empty" {
		t.Errorf("endpoints of another discovery stay: %s", got)
	}
	r.wants("cluster v1", "listener l", "route web")
	r.send(cluster("v1"), endpoints("v1", "1.1.1.1:1"))
	if got := r.target("l"); got != "v1 1.1.1.1:1" {
		t.Error(got)
	}
}

func TestSecrets(t *testing.T) {
	r := newRig(t)
	r.Listener("gw")
	l := &plan.Listener{Name: "gw", Chains: []plan.Chain{{Name: "tls", TLS: plan.ServerTLS{Mode: plan.TLSSimple, Secret: "s"}}}}
	r.send(l)
	r.wants("listener gw", "secret s")
	if got := r.target("gw"); got != "pending" {
		t.Error(got)
	}
	r.send(&plan.Secret{Name: "s", Key: []byte("1")})
	if s := r.Secret("s"); s == nil || string(s.Key) != "1" || r.target("gw") != "no route" {
		t.Errorf("%v", s)
	}
	r.send(&plan.Secret{Name: "s", Key: []byte("2")})
	if s := r.Secret("s"); string(s.Key) != "2" {
		t.Errorf("%v", s)
	}
	r.remove(plan.KindSecret, "s")
	if r.Secret("s") != nil {
		t.Error("a secret that is gone is still there")
	}
}

func TestRefused(t *testing.T) {
	rule := func(f func(*plan.Rule)) plan.Resource {
		res := route("web", "v1")
		f(&res.Hosts[0].Rules[0])
		return res
	}
	tests := []struct {
		what string
		kind plan.Kind
		res  plan.Resource
		want string
	}{
		{"wrong kind", plan.KindRoute, cluster("v1"), `route "v1": is a cluster`},
		{"no name", plan.KindCluster, cluster(""), "has no name"},
		{"two actions", plan.KindRoute, rule(func(r *plan.Rule) { r.Redirect = &plan.Redirect{} }), "2 of cluster, redirect"},
		{"no action", plan.KindRoute, rule(func(r *plan.Rule) { r.Clusters = nil }), `route "web": host "all", rule 1 (): 0 of cluster`},
		{"path", plan.KindRoute, rule(func(r *plan.Rule) { r.Match.Path = plan.StringMatch{Kind: plan.MatchRegex, Value: "a)(b"} }), "expression"},
		{"header", plan.KindRoute, rule(func(r *plan.Rule) {
			r.Match.Headers = []plan.HeaderMatch{{Value: plan.StringMatch{Kind: plan.MatchRegex, Value: "["}}}
		}), "expression"},
		{"origin", plan.KindRoute, rule(func(r *plan.Rule) {
			r.CORS = &plan.CORS{AllowOrigins: []plan.StringMatch{{Kind: plan.MatchRegex, Value: "["}}}
		}), "expression"},
		{"template", plan.KindRoute, rule(func(r *plan.Rule) { r.Match.Path = plan.StringMatch{Kind: plan.MatchPath, Value: "/{**}/{*}"} }), "template"},
		{"rewrite", plan.KindRoute, rule(func(r *plan.Rule) { r.Rewrite = &plan.Rewrite{Regex: "("} }), "rewrite expression"},
		{"group", plan.KindRoute, rule(func(r *plan.Rule) { r.Rewrite = &plan.Rewrite{Regex: "(a)", Substitution: `\2`} }), "has 1 groups"},
		{"backslash", plan.KindRoute, rule(func(r *plan.Rule) { r.Rewrite = &plan.Rewrite{Regex: "a", Substitution: `x\`} }), "after"},
		{"weights", plan.KindRoute, rule(func(r *plan.Rule) {
			r.Clusters = []plan.WeightedCluster{{Weight: 1 << 31}, {Weight: 1 << 31}}
		}), "add up"},
		{"policy", plan.KindListener, &plan.Listener{Name: "l", Chains: []plan.Chain{{Name: "c", Authz: &plan.Authz{Policies: []plan.Policy{{
			Name: "p", Rules: []plan.PolicyRule{{When: []plan.Condition{{Key: "what", Values: []plan.StringMatch{{Kind: plan.MatchExact, Value: "x"}}}}}},
		}}}}}}, `listener "l": chain "c": authorization policy p`},
		{"inline", plan.KindListener, &plan.Listener{Name: "l", Chains: []plan.Chain{{HTTP: &plan.HTTP{Inline: rule(func(r *plan.Rule) { r.Clusters = nil }).(*plan.Route)}}}}, "want one"},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			r := newRig(t)
			r.ready()
			before := r.view.Load()
			err := r.Update(tt.kind, []plan.Resource{tt.res}, nil)[tt.res.ResourceName()]
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if r.view.Load() != before || len(r.wanted()) != 4 {
				t.Error("something of what was refused was taken")
			}
			r.send(endpoints("v1", "9.9.9.9:9"))
			if got := r.target("l"); got != "v1 9.9.9.9:9" {
				t.Errorf("afterwards: %s", got)
			}
		})
	}
}

// TestRefusedAlone: what else comes in a response with something refused counts, and the refusal is told until
// something of that name is taken.
func TestRefusedAlone(t *testing.T) {
	r := newRig(t)
	r.ready()
	r.Route("other")
	refusals := func() (out []string) {
		for _, e := range r.Dump() {
			if e.Refused != nil {
				out = append(out, e.Refused.Error())
			}
		}
		return out
	}
	broken := route("web", "v1")
	broken.Hosts[0].Rules[0].Clusters = nil
	refused := r.Update(plan.KindRoute, []plan.Resource{broken, route("other", "v1"), route("nobody asked")}, []string{"gone"})
	if len(refused) != 1 || refused["web"] == nil {
		t.Errorf("refused: %v", refused)
	}
	if _, state := r.Route("other"); state != Ready {
		t.Errorf("the good one is %s", state)
	}
	if got := r.target("l"); got != "v1 1.1.1.1:1" {
		t.Errorf("the refused one: %s", got)
	}
	if d := cmp.Diff([]string{refused["web"].Error()}, refusals()); d != "" {
		t.Errorf("refusals (-want +got):\n%s", d)
	}
	r.Refuse(plan.KindCluster, "v1", errors.New("nonsense"))
	r.Refuse(plan.KindCluster, "nobody asked", errors.New("nonsense"))
	if got := refusals(); len(got) != 2 || r.target("l") != "v1 1.1.1.1:1" {
		t.Errorf("%q", got)
	}
	r.send(route("web", "v1"), cluster("v1"))
	if got := refusals(); got != nil {
		t.Errorf("what was mended is refused still: %q", got)
	}
}

func TestAwait(t *testing.T) {
	r := newRig(t)
	calls := 0
	count := func() { calls++ }
	r.Await(plan.KindName, "nobody asked", count)
	if calls != 1 {
		t.Error("a name that is not pending is waited for")
	}
	r.Name("a")
	cancel := r.Await(plan.KindName, "a", count)
	r.Await(plan.KindName, "a", count)
	r.Await(plan.KindName, "a", count)
	cancel()
	cancel()
	r.remove(plan.KindName, "a")
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
	if _, state := r.Name("a"); state != Absent {
		t.Error(state)
	}
	r.send(&plan.Name{Name: "a"})
	if n, state := r.Name("a"); calls != 3 || state != Ready || n.Name != "a" {
		t.Errorf("%d calls, %s", calls, state)
	}
	cancel()
}

// TestRootOfAnother: what is in force as a part can be looked up at once.
func TestRootOfAnother(t *testing.T) {
	r := newRig(t)
	r.ready()
	if web, state := r.Route("web"); state != Ready || web == nil {
		t.Error(state)
	}
	r.remove(plan.KindListener, "l")
	r.wants("cluster v1", "endpoints v1", "listener l", "route web")
}

func TestIdleRoots(t *testing.T) {
	r := newRig(t)
	r.Listener(plan.ListenerInbound)
	r.send(&plan.Listener{Name: plan.ListenerInbound})
	r.ready()
	r.Name("waited for")
	r.Await(plan.KindName, "waited for", func() {})
	r.pass(rootIdle - time.Minute)
	r.target("l") // a use
	r.Name("other")
	r.pass(2 * time.Minute)
	r.send(&plan.Name{Name: "other"})
	r.wants("cluster v1", "endpoints v1", "listener inbound", "listener l", "name other", "name waited for", "route web")
	r.pass(rootIdle)
	r.send(&plan.Name{Name: "other"})
	r.wants("listener inbound", "name waited for")
	if got := r.target("l"); got != "pending" {
		t.Errorf("a name that was dropped is asked for again, but is %s", got)
	}
}

func TestRootsAreBounded(t *testing.T) {
	r := newRig(t)
	r.Listener(plan.ListenerInbound)
	for i := range rootsMax + 1000 {
		r.pass(time.Millisecond)
		r.Name(fmt.Sprintf("n%d", i))
	}
	if n := len(r.wanted()); n > rootsMax || n < rootsMax-evictStep {
		t.Errorf("%d names are subscribed, at most %d may be", n, rootsMax)
	}
	if !r.subs[ref{plan.KindListener, plan.ListenerInbound}] || r.subs[ref{plan.KindName, "n0"}] || !r.subs[ref{plan.KindName, "n2000"}] {
		t.Error("not the oldest made way")
	}
}

func TestRootsAndPreload(t *testing.T) {
	r := newRig(t)
	r.ready()
	r.Name("b")
	r.Name("a")
	r.Name("gone")
	r.send(&plan.Name{Name: "b"}, &plan.Name{Name: "a"})
	r.remove(plan.KindName, "gone")
	names := r.Roots()
	if d := cmp.Diff(map[plan.Kind][]string{plan.KindListener: {"l"}, plan.KindName: {"a", "b"}}, names); d != "" {
		t.Error(d)
	}
	names[plan.KindCluster] = []string{"of no use"}
	again := newRig(t)
	again.Preload(names)
	again.wants("listener l", "name a", "name b")
	many := make([]string, rootsMax)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	again.Preload(map[plan.Kind][]string{plan.KindName: many})
	if n := len(again.wanted()); n > rootsMax/2+3 {
		t.Errorf("%d names are preloaded", n)
	}
}

func TestWatchListeners(t *testing.T) {
	r := newRig(t)
	var got [][]string
	r.WatchListeners(func(names []string) { got = append(got, names) })
	r.wants("listener *")
	gw := func(port string) *plan.Listener { return listener("gateway|"+port, "web") }
	r.send(gw("80"))
	r.send(route("web", "v1"), cluster("v1"))
	if len(got) != 0 {
		t.Errorf("called before anything is whole: %v", got)
	}
	r.send(endpoints("v1"))
	r.send(endpoints("v1", "1.1.1.1:1")) // no concern of the watcher
	r.send(gw("443"))
	r.remove(plan.KindListener, "gateway|80")
	want := [][]string{{"gateway|80"}, {"gateway|443", "gateway|80"}, {"gateway|443"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	r.pass(2 * rootIdle)
	r.send(endpoints("v1"))
	if got := r.target("gateway|443"); got != "v1 empty" {
		t.Errorf("a wildcard's listener is dropped for want of use: %s", got)
	}
	r.remove(plan.KindListener, "gateway|443")
	r.wants("listener *")
}

func TestDump(t *testing.T) {
	r := newRig(t)
	r.ready()
	r.Name("gone")
	r.Name("asked")
	r.remove(plan.KindName, "gone")
	var got []string
	for _, e := range r.Dump() {
		got = append(got, fmt.Sprintf("%s %s %s %t %t %t", e.Kind, e.Name, e.State, e.Resource != nil, e.Cluster != nil, e.Updated.IsZero()))
	}
	want := []string{
		"cluster v1 ready true true false", "endpoints v1 ready true false false", "listener l ready true false false",
		"route web ready true false false", "name asked pending false false true", "name gone absent false false false",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestBuiltin(t *testing.T) {
	r := newRig(t)
	u := r.Unknown()
	c := u.Chains[0].TCP.Choose(0)
	if c.Name != plan.ClusterPassthrough || c.Cluster == nil || c.Cluster != r.Cluster(plan.ClusterPassthrough) || !c.Cluster.Plan().External {
		t.Errorf("%+v", c)
	}
	if p := r.Cluster(plan.ClusterBlackHole).Plan(); p.Discovery != plan.DiscoverNothing {
		t.Error(p)
	}
	if p := r.Cluster(plan.ClusterInboundPassthrough).Plan(); p.BindSource != "127.0.0.6" || p.Discovery != plan.DiscoverOriginalDst {
		t.Error(p)
	}
	r.target("l")
	r.send(listener("l", "web"), route("web", plan.ClusterBlackHole))
	if got := r.target("l"); got != "BlackHoleCluster empty" {
		t.Error(got)
	}
	r.wants("listener l", "route web")
}

// TestConcurrentReaders lets readers see only whole plans while versions change.
func TestConcurrentReaders(t *testing.T) {
	r := newRig(t)
	r.ready()
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				if got := r.target("l"); strings.HasSuffix(got, "absent") || strings.HasPrefix(got, "no ") || got == "pending" {
					t.Errorf("a reader saw %q", got)
					return
				}
				name := fmt.Sprint(i % 50)
				if _, state := r.Name(name); state == Pending {
					r.Await(plan.KindName, name, func() {})()
				}
				r.Dump()
			}
		})
	}
	for i := range 300 {
		v := fmt.Sprintf("v%d", i%3)
		r.send(route("web", v), cluster(v), endpoints(v, "1.1.1.1:1"), endpoints(v, "1.1.1.1:2"), &plan.Name{Name: fmt.Sprint(i % 50)})
	}
	close(done)
	group.Wait()
}

func BenchmarkUpdateEndpoints(b *testing.B) {
	t := New(Config{Subscribe: func(plan.Kind, ...string) {}, Unsubscribe: func(plan.Kind, ...string) {}})
	send := func(res plan.Resource) {
		if refused := t.Update(res.ResourceKind(), []plan.Resource{res}, nil); refused != nil {
			b.Fatal(refused)
		}
	}
	for i := range 1000 {
		n := fmt.Sprint(i)
		t.Listener(n)
		for _, res := range []plan.Resource{listener(n, n), route(n, n), cluster(n), endpoints(n, "1.1.1.1:1")} {
			send(res)
		}
	}
	e := endpoints("7", "1.1.1.1:1", "1.1.1.1:2")
	b.ReportAllocs()
	for b.Loop() {
		send(e)
	}
}
