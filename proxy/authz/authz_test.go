package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
)

func exact(list ...string) (out []plan.StringMatch) {
	for _, s := range list {
		out = append(out, plan.StringMatch{Kind: plan.MatchExact, Value: s})
	}
	return out
}

func of(kind plan.MatchKind, value string) []plan.StringMatch {
	return []plan.StringMatch{{Kind: kind, Value: value}}
}

func nets4(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// request is what the tests judge: a GET of /api/v1?x from web in default.
func request() *Input {
	h := &stream.Head{}
	h.SetMethodString("GET")
	h.SetAuthorityString("Reviews:9080")
	h.SetPathString("/api/v1?x")
	h.AddString("X-Role", "admin")
	h.AddString("x-two", "a")
	h.AddString("X-Two", "b")
	h.AddString("x-empty", "")
	in := connection()
	in.Head, in.Path, in.Host = h, []byte("/api/v1"), h.Authority()
	return in
}

func connection() *Input {
	return &Input{
		Principal: "cluster.local/ns/default/sa/web", Namespace: "default", ServiceAccount: "web", TrustDomain: "cluster.local",
		SourceIP: netip.MustParseAddr("10.0.0.1"), RemoteIP: netip.MustParseAddr("::ffff:192.0.2.1"), DestIP: netip.MustParseAddr("10.0.0.2"),
		DestPort: 9080, SNI: "reviews.example.com",
	}
}

func anonymous() *Input {
	in := request()
	in.Principal, in.Namespace, in.ServiceAccount, in.TrustDomain, in.SNI = "", "", "", "", ""
	return in
}

func from(s plan.Source) plan.PolicyRule  { return plan.PolicyRule{From: []plan.Source{s}} }
func to(o plan.Operation) plan.PolicyRule { return plan.PolicyRule{To: []plan.Operation{o}} }

func when(c plan.Condition) plan.PolicyRule {
	return plan.PolicyRule{When: []plan.Condition{c}}
}

func policies(action plan.Action, rules ...plan.PolicyRule) *plan.Authz {
	return &plan.Authz{Policies: []plan.Policy{{Name: "ns/p", Action: action, Rules: rules}}}
}

func compiled(t testing.TB, p *plan.Authz, aliases ...string) *Authz {
	t.Helper()
	a, err := New(p, "cluster.local", aliases)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// field is a field of a rule with a value that the request has, and one that it has not, listed and as exceptions.
type field struct {
	name          string
	http          bool            // it is a request's
	hit, not      plan.PolicyRule // what the request has is listed, is an exception
	miss, missNot plan.PolicyRule // another value is listed, is an exception
}

var fields = []field{
	{
		"principals", false, from(plan.Source{Principals: exact("x", "cluster.local/ns/default/sa/web")}), from(plan.Source{NotPrincipals: exact("cluster.local/ns/default/sa/web")}),
		from(plan.Source{Principals: exact("cluster.local/ns/default/sa/other")}), from(plan.Source{NotPrincipals: exact("x")}),
	},
	{
		"namespaces", false, from(plan.Source{Namespaces: of(plan.MatchPrefix, "def")}), from(plan.Source{NotNamespaces: of(plan.MatchSuffix, "ult")}),
		from(plan.Source{Namespaces: exact("Default")}), from(plan.Source{NotNamespaces: exact("x")}),
	},
	{
		"service accounts", false, from(plan.Source{ServiceAccounts: exact("default/web")}), from(plan.Source{NotServiceAccounts: exact("default/web")}),
		from(plan.Source{ServiceAccounts: exact("web", "other/web")}), from(plan.Source{NotServiceAccounts: exact("web")}),
	},
	{
		"trust domains", false, from(plan.Source{TrustDomains: exact("cluster.local")}), from(plan.Source{NotTrustDomains: of(plan.MatchPresent, "")}),
		from(plan.Source{TrustDomains: exact("x")}), from(plan.Source{NotTrustDomains: exact("x")}),
	},
	{
		"ip blocks", false, from(plan.Source{IPs: nets4("11.0.0.0/8", "10.0.0.0/24")}), from(plan.Source{NotIPs: nets4("10.0.0.1/32")}),
		from(plan.Source{IPs: nets4("10.0.0.2/32", "::/0")}), from(plan.Source{NotIPs: nets4("11.0.0.0/8")}),
	},
	{
		"remote ip blocks", false, from(plan.Source{RemoteIPs: nets4("192.0.2.0/24")}), from(plan.Source{NotRemoteIPs: nets4("0.0.0.0/0")}),
		from(plan.Source{RemoteIPs: nets4("10.0.0.0/8")}), from(plan.Source{NotRemoteIPs: nets4("10.0.0.0/8")}),
	},
	{
		"hosts", true, to(plan.Operation{Hosts: exact("reviews:9080")}), to(plan.Operation{NotHosts: of(plan.MatchPrefix, "REVIEWS")}),
		to(plan.Operation{Hosts: exact("reviews")}), to(plan.Operation{NotHosts: exact("reviews")}),
	},
	{
		"ports", false, to(plan.Operation{Ports: []uint16{80, 9080}}), to(plan.Operation{NotPorts: []uint16{9080}}),
		to(plan.Operation{Ports: []uint16{80}}), to(plan.Operation{NotPorts: []uint16{80}}),
	},
	{
		"methods", true, to(plan.Operation{Methods: exact("GET")}), to(plan.Operation{NotMethods: exact("GET")}),
		to(plan.Operation{Methods: exact("get")}), to(plan.Operation{NotMethods: exact("POST")}),
	},
	{
		"paths", true, to(plan.Operation{Paths: of(plan.MatchPath, "/api/{*}")}), to(plan.Operation{NotPaths: of(plan.MatchPrefix, "/api/")}),
		to(plan.Operation{Paths: exact("/api/v1?x")}), to(plan.Operation{NotPaths: exact("/API/v1")}),
	},
	{
		"source.ip", false, when(plan.Condition{Key: "source.ip", Prefixes: nets4("10.0.0.1/32")}), when(plan.Condition{Key: "source.ip", NotPrefixes: nets4("10.0.0.0/8")}),
		when(plan.Condition{Key: "source.ip", Prefixes: nets4("10.0.0.2/32")}), when(plan.Condition{Key: "source.ip", NotPrefixes: nets4("10.0.0.2/32")}),
	},
	{
		"remote.ip", false, when(plan.Condition{Key: "remote.ip", Prefixes: nets4("192.0.2.1/32")}), when(plan.Condition{Key: "remote.ip", NotPrefixes: nets4("::ffff:192.0.2.0/120")}),
		when(plan.Condition{Key: "remote.ip", Prefixes: nets4("10.0.0.1/32")}), when(plan.Condition{Key: "remote.ip", NotPrefixes: nets4("10.0.0.1/32")}),
	},
	{
		"destination.ip", false, when(plan.Condition{Key: "destination.ip", Prefixes: nets4("10.0.0.2/32")}), when(plan.Condition{Key: "destination.ip", NotPrefixes: nets4("10.0.0.2/31")}),
		when(plan.Condition{Key: "destination.ip", Prefixes: nets4("10.0.0.1/32")}), when(plan.Condition{Key: "destination.ip", NotPrefixes: nets4("10.0.0.1/32")}),
	},
	{
		"destination.port", false, when(plan.Condition{Key: "destination.port", Ports: []uint16{9080}}), when(plan.Condition{Key: "destination.port", NotPorts: []uint16{9080}}),
		when(plan.Condition{Key: "destination.port", Ports: []uint16{1}}), when(plan.Condition{Key: "destination.port", NotPorts: []uint16{1}}),
	},
	texted("source.namespace", false, "default"), texted("source.principal", false, "cluster.local/ns/default/sa/web"),
	texted("source.serviceAccount", false, "default/web"), texted("source.trustDomain", false, "cluster.local"),
	texted("connection.sni", false, "reviews.example.com"), texted("request.headers[X-Role]", true, "admin"),
	texted("request.headers[:method]", true, "GET"),
	texted("request.headers[:authority]", true, "Reviews:9080"), texted("request.headers[host]", true, "Reviews:9080"),
	texted("request.headers[:path]", true, "/api/v1?x"),
}

func texted(key string, http bool, value string) field {
	return field{
		key, http, when(plan.Condition{Key: key, Values: exact("x", value)}), when(plan.Condition{Key: key, NotValues: exact(value)}),
		when(plan.Condition{Key: key, Values: exact("x")}), when(plan.Condition{Key: key, NotValues: exact("x")}),
	}
}

// TestFields is the truth table: each field, listed and as an exception, met and not, in both actions, for requests
// and for connections.
func TestFields(t *testing.T) {
	for _, f := range fields {
		for _, c := range []struct {
			what string
			rule plan.PolicyRule
			want bool // the rule matches the request
		}{{"listed", f.hit, true}, {"excepted", f.not, false}, {"another listed", f.miss, false}, {"another excepted", f.missNot, true}} {
			t.Run(f.name+", "+c.what, func(t *testing.T) {
				allow, deny := compiled(t, policies(plan.ActionAllow, c.rule)), compiled(t, policies(plan.ActionDeny, c.rule))
				if got := allow.Judge(request()).Allowed; got != c.want {
					t.Errorf("ALLOW lets the request in: %t", got)
				}
				if got := deny.Judge(request()).Allowed; got == c.want {
					t.Errorf("DENY lets the request in: %t", got)
				}
				// A connection: what only a request shows never allows, and is left out of what denies.
				if got, want := allow.Judge(connection()).Allowed, c.want && !f.http; got != want {
					t.Errorf("ALLOW lets the connection in: %t", got)
				}
				if got, want := deny.Judge(connection()).Allowed, !c.want && !f.http; got != want {
					t.Errorf("DENY lets the connection in: %t", got)
				}
			})
		}
	}
}

// TestRepeatedField: whoever serves a request may see the first of several fields of one name, the last, or their list.
// A deny policy denies if any of these is denied, an allow policy allows what all of the fields are allowed by.
func TestRepeatedField(t *testing.T) {
	a, ab, listed, begins := exact("a"), exact("a", "b"), exact("a,b"), of(plan.MatchPrefix, "a")
	for _, test := range []struct {
		name        string
		values, not []plan.StringMatch
		fields      string // of x-many, parted by spaces
		allow, deny bool   // whether a policy of that action matches
	}{
		{"one", a, nil, "a", true, true},
		{"one of another value", a, nil, "b", false, false},
		{"hidden behind", a, nil, "b a", false, true},
		{"hidden before", a, nil, "a b", false, true},
		{"both listed", ab, nil, "a b", true, true},
		{"none listed", ab, nil, "c d", false, false},
		{"a list that was cut", listed, nil, "a b", false, true},
		{"the beginning", begins, nil, "ax b", false, true},
		{"the end", of(plan.MatchSuffix, "a"), nil, "b a", false, true},
		{"present", of(plan.MatchPresent, ""), nil, "a b", true, true},
		{"one excepted", nil, a, "a", false, false},
		{"one besides the excepted", nil, a, "b", true, true},
		{"both excepted", nil, of(plan.MatchPresent, ""), "a b", false, false},
		{"excepted, hidden behind", nil, a, "b a", false, true},
		{"excepted, hidden before", nil, a, "a b", false, true},
		{"neither excepted", nil, a, "b c", true, true},
		{"an excepted list that was cut", nil, listed, "a b", false, true},
		{"listed and excepted", begins, a, "ax a", false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			rule := when(plan.Condition{Key: "request.headers[X-Many]", Values: test.values, NotValues: test.not})
			in := request()
			for value := range strings.SplitSeq(test.fields, " ") {
				in.Head.AddString("x-Many", value)
			}
			if got := compiled(t, policies(plan.ActionAllow, rule)).Judge(in).Allowed; got != test.allow {
				t.Errorf("ALLOW lets the request in: %t", got)
			}
			if got := compiled(t, policies(plan.ActionDeny, rule)).Judge(in).Allowed; got == test.deny {
				t.Errorf("DENY lets the request in: %t", got)
			}
		})
	}
}

// TestNobody: without mTLS, a header or a token there is nothing that a list could match, and nothing that an
// exception could exclude.
func TestNobody(t *testing.T) {
	any := of(plan.MatchPresent, "")
	for name, pair := range map[string][2]plan.PolicyRule{
		"principals":         {from(plan.Source{Principals: any}), from(plan.Source{NotPrincipals: any})},
		"request principals": {from(plan.Source{RequestPrincipals: any}), from(plan.Source{NotRequestPrincipals: any})},
		"namespaces":         {from(plan.Source{Namespaces: any}), from(plan.Source{NotNamespaces: any})},
		"service accounts":   {from(plan.Source{ServiceAccounts: any}), from(plan.Source{NotServiceAccounts: any})},
		"trust domains":      {from(plan.Source{TrustDomains: any}), from(plan.Source{NotTrustDomains: any})},
		"header":             {when(plan.Condition{Key: "request.headers[x-no]", Values: any}), when(plan.Condition{Key: "request.headers[x-no]", NotValues: any})},
		"token":              {when(plan.Condition{Key: "request.auth.claims[iss]", Values: any}), when(plan.Condition{Key: "request.auth.claims[iss]", NotValues: any})},
		"server name":        {when(plan.Condition{Key: "connection.sni", Values: any}), when(plan.Condition{Key: "connection.sni", NotValues: any})},
	} {
		if compiled(t, policies(plan.ActionAllow, pair[0])).Judge(anonymous()).Allowed {
			t.Errorf("%s: nobody is matched by a list", name)
		}
		if !compiled(t, policies(plan.ActionAllow, pair[1])).Judge(anonymous()).Allowed {
			t.Errorf("%s: nobody is excluded by an exception", name)
		}
	}
}

// TestEmptyField: a field without a value is there, as for Envoy's present_match.
func TestEmptyField(t *testing.T) {
	any := of(plan.MatchPresent, "")
	there, not := plan.Condition{Key: "request.headers[x-empty]", Values: any}, plan.Condition{Key: "request.headers[x-empty]", NotValues: any}
	for _, tt := range []struct {
		action plan.Action
		when   plan.Condition
		want   bool
	}{{plan.ActionAllow, there, true}, {plan.ActionAllow, not, false}, {plan.ActionDeny, there, false}, {plan.ActionDeny, not, true}} {
		if got := compiled(t, policies(tt.action, when(tt.when))).Judge(anonymous()).Allowed; got != tt.want {
			t.Errorf("%v %v: %t", tt.action, tt.when, got)
		}
	}
}

func TestCombination(t *testing.T) {
	yes, no := from(plan.Source{Namespaces: exact("default")}), from(plan.Source{Namespaces: exact("x")})
	yesSource, noSource := yes.From[0], no.From[0]
	yesOp, noOp := plan.Operation{Methods: exact("GET")}, plan.Operation{Methods: exact("PUT")}
	yesWhen, noWhen := plan.Condition{Key: "destination.port", Ports: []uint16{9080}}, plan.Condition{Key: "destination.port", Ports: []uint16{1}}
	tests := []struct {
		what string
		rule plan.PolicyRule
		want bool
	}{
		{"everything", plan.PolicyRule{}, true},
		{"sources are or-ed", plan.PolicyRule{From: []plan.Source{noSource, yesSource}}, true},
		{"operations are or-ed", plan.PolicyRule{To: []plan.Operation{noOp, yesOp}}, true},
		{"conditions are and-ed", plan.PolicyRule{When: []plan.Condition{yesWhen, noWhen}}, false},
		{"from and to", plan.PolicyRule{From: []plan.Source{yesSource}, To: []plan.Operation{noOp}}, false},
		{"from, to and when", plan.PolicyRule{From: []plan.Source{yesSource}, To: []plan.Operation{yesOp}, When: []plan.Condition{yesWhen}}, true},
		{"fields of a source are and-ed", from(plan.Source{Namespaces: exact("default"), Principals: exact("x")}), false},
		{"list and exception", from(plan.Source{Namespaces: exact("default"), NotPrincipals: of(plan.MatchSuffix, "/sa/web")}), false},
		{"fields of an operation are and-ed", to(plan.Operation{Methods: exact("GET"), Ports: []uint16{1}}), false},
	}
	for _, tt := range tests {
		if got := compiled(t, policies(plan.ActionAllow, tt.rule)).Judge(request()).Allowed; got != tt.want {
			t.Errorf("%s: %t", tt.what, got)
		}
	}
}

func TestOrder(t *testing.T) {
	policy := func(name string, action plan.Action, rules ...plan.PolicyRule) plan.Policy {
		return plan.Policy{Name: name, Action: action, Rules: rules}
	}
	dry := func(p plan.Policy) plan.Policy {
		p.DryRun = true
		return p
	}
	all, none := plan.PolicyRule{}, from(plan.Source{Namespaces: exact("x")})
	tests := []struct {
		what     string
		policies []plan.Policy
		allowed  bool
		policy   string
		rule     int
		reason   telemetry.Reason
		shadow   string
	}{
		{"no policy", nil, true, "", -1, telemetry.None, ""},
		{"nothing is allowed", []plan.Policy{policy("a", plan.ActionAllow)}, false, "", -1, telemetry.NotAllowed, ""},
		{"a deny without rules denies nothing", []plan.Policy{policy("d", plan.ActionDeny)}, true, "", -1, telemetry.None, ""},
		{"deny before allow", []plan.Policy{policy("a", plan.ActionAllow, all), policy("d", plan.ActionDeny, none, all)}, false, "d", 1, telemetry.DeniedByPolicy, ""},
		{"a deny that does not match", []plan.Policy{policy("d", plan.ActionDeny, none), policy("a", plan.ActionAllow, all)}, true, "a", 0, telemetry.None, ""},
		{"the second allow", []plan.Policy{policy("a", plan.ActionAllow, none), policy("b", plan.ActionAllow, none, none, all)}, true, "b", 2, telemetry.None, ""},
		{"audit decides nothing", []plan.Policy{policy("x", plan.ActionAudit, none)}, true, "", -1, telemetry.None, ""},
		{"dry deny", []plan.Policy{dry(policy("d", plan.ActionDeny, all))}, true, "", -1, telemetry.None, "d"},
		{"dry allow that would not match", []plan.Policy{dry(policy("a", plan.ActionAllow, none)), policy("b", plan.ActionAllow, all)}, true, "b", 0, telemetry.None, "a"},
		{"dry allow that would match", []plan.Policy{dry(policy("a", plan.ActionAllow, none)), dry(policy("b", plan.ActionAllow, all))}, true, "", -1, telemetry.None, ""},
		{"dry beside denied", []plan.Policy{dry(policy("a", plan.ActionDeny, all)), policy("b", plan.ActionDeny, all)}, false, "b", 0, telemetry.DeniedByPolicy, "a"},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			v := compiled(t, &plan.Authz{Policies: tt.policies}).Judge(request())
			name := func(p *plan.Policy) string {
				if p == nil {
					return ""
				}
				return p.Name
			}
			if v.Allowed != tt.allowed || name(v.Policy) != tt.policy || v.Rule != tt.rule || v.Reason != tt.reason || name(v.Shadow) != tt.shadow {
				t.Errorf("%+v", v)
			}
		})
	}
	var none2 *Authz
	if !none2.Judge(request()).Allowed || !compiled(t, nil).Judge(request()).Allowed {
		t.Error("no policies deny")
	}
}

func TestTrustDomains(t *testing.T) {
	judge := func(policy []plan.StringMatch, peer string) bool {
		a, err := New(policies(plan.ActionAllow, from(plan.Source{Principals: policy})), "td1", []string{"old"})
		if err != nil {
			t.Fatal(err)
		}
		in := request()
		in.Principal = peer
		return a.Judge(in).Allowed
	}
	tests := []struct {
		policy []plan.StringMatch
		peer   string
		want   bool
	}{
		{exact("td1/ns/a/sa/b"), "td1/ns/a/sa/b", true},
		{exact("td1/ns/a/sa/b"), "old/ns/a/sa/b", true},
		{exact("old/ns/a/sa/b"), "td1/ns/a/sa/b", true},
		{exact("cluster.local/ns/a/sa/b"), "td1/ns/a/sa/b", true},
		{exact("cluster.local/ns/a/sa/b"), "cluster.local/ns/a/sa/b", false}, // another mesh's
		{exact("other/ns/a/sa/b"), "td1/ns/a/sa/b", false},
		{exact("other/ns/a/sa/b"), "other/ns/a/sa/b", true},
		{of(plan.MatchPrefix, "old/ns/a/"), "td1/ns/a/sa/b", true},
		{of(plan.MatchPrefix, "old"), "older/ns/a/sa/b", true},
		{of(plan.MatchSuffix, "/sa/b"), "any/ns/a/sa/b", true},
		{of(plan.MatchSuffix, "old/sa/b"), "td1/sa/b", false},
	}
	for _, tt := range tests {
		if got := judge(tt.policy, tt.peer); got != tt.want {
			t.Errorf("%s for %s: %t", tt.policy, tt.peer, got)
		}
	}
}

func TestRefused(t *testing.T) {
	value := exact("x")
	tests := []struct {
		what string
		rule plan.PolicyRule
		want string
	}{
		{"unknown key", when(plan.Condition{Key: "request.body", Values: value}), "rule 1: condition \"request.body\": is unknown"},
		{"no bracket", when(plan.Condition{Key: "request.headers[x", Values: value}), "is unknown"},
		{"no value", when(plan.Condition{Key: "source.namespace"}), "has no value"},
		{"no value of an unknown token", when(plan.Condition{Key: "request.auth.principal"}), "has no value"},
		{"addresses that did not parse", when(plan.Condition{Key: "source.ip"}), "has no value"},
		{"addresses as text", when(plan.Condition{Key: "source.ip", Values: value, NotPrefixes: nets4("10.0.0.0/8")}), "has no value"},
		{"ports that did not parse", when(plan.Condition{Key: "destination.port"}), "has no value"},
		{"ports as text", when(plan.Condition{Key: "destination.port", Ports: []uint16{1}, NotValues: value}), "has no value"},
		{"text as address", when(plan.Condition{Key: "source.namespace", Values: value, Prefixes: nets4("10.0.0.0/8")}), "has no value"},
		{"empty source", from(plan.Source{}), "source 1: has no value"},
		{"empty operation", to(plan.Operation{}), "operation 1: has no value"},
		{"expression", from(plan.Source{NotNamespaces: of(plan.MatchRegex, "x")}), "do not know"},
		{"no kind", to(plan.Operation{NotPaths: of(plan.MatchNone, "x")}), "do not know"},
		{"template", to(plan.Operation{Paths: of(plan.MatchPath, "/{**}/{*}")}), "template"},
		{"method", to(plan.Operation{Methods: of(plan.MatchRegex, "x")}), "do not know"},
		{"host", to(plan.Operation{Hosts: of(plan.MatchRegex, "x")}), "do not know"},
		{"condition", when(plan.Condition{Key: "connection.sni", Values: of(plan.MatchRegex, "x")}), "do not know"},
	}
	for _, tt := range tests {
		for _, action := range []plan.Action{plan.ActionAllow, plan.ActionDeny} {
			if _, err := New(policies(action, tt.rule), "", nil); err == nil || !strings.Contains(err.Error(), "authorization policy ns/p") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s: %v", tt.what, action, err)
			}
		}
	}
	if _, err := New(policies(9), "", nil); err == nil {
		t.Error("an unknown action is taken")
	}
}

func TestRanges(t *testing.T) {
	r := newRanges(nets4("10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "fd00::/8", "::ffff:1.2.3.0/120", "172.16.5.5/12"))
	for addr, want := range map[string]bool{
		"10.9.9.9": true, "::ffff:10.9.9.9": true, "11.0.0.0": false, "192.0.2.1": true, "192.0.2.2": false, "fd00::1": true,
		"fd00::1%eth0": true, "fe80::1": false, "1.2.3.4": true, "1.2.4.4": false, "172.20.0.1": true,
	} {
		if got := r.contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %t", addr, got)
		}
	}
	if r.contains(netip.Addr{}) || !(&ranges{}).empty() {
		t.Error("no address is in a range")
	}
}

// twenty is a policy with 20 rules with long lists, of which the last matches.
func twenty() *plan.Authz {
	p := policies(plan.ActionAllow)
	for i := range 20 {
		var s plan.Source
		var o plan.Operation
		for j := range 30 {
			s.Principals = append(s.Principals, exact(fmt.Sprintf("cluster.local/ns/n%d/sa/s%d", i, j))...)
			o.Paths = append(o.Paths, exact(fmt.Sprintf("/p%d/%d", i, j))...)
			s.NotIPs = append(s.NotIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i), byte(j), 0}), 24))
		}
		p.Policies[0].Rules = append(p.Policies[0].Rules, plan.PolicyRule{From: []plan.Source{s}, To: []plan.Operation{o}})
	}
	last := &p.Policies[0].Rules[19]
	last.From[0].Principals = append(last.From[0].Principals, exact("cluster.local/ns/default/sa/web")...)
	last.To[0].Paths = of(plan.MatchPath, "/api/{**}")
	last.When = []plan.Condition{{Key: "request.headers[x-role]", Values: exact("admin")}}
	return p
}

func TestJudgeDoesNotAllocate(t *testing.T) {
	p := twenty()
	p.Policies = append(p.Policies, plan.Policy{Action: plan.ActionDeny, DryRun: true, Rules: []plan.PolicyRule{to(plan.Operation{Hosts: exact("x")})}})
	a, in := compiled(t, p), request()
	if v := a.Judge(in); !v.Allowed || v.Rule != 19 {
		t.Fatalf("%+v", v)
	}
	if n := testing.AllocsPerRun(100, func() { a.Judge(in) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkJudge(b *testing.B) {
	a, in := compiled(b, twenty()), request()
	b.ReportAllocs()
	for b.Loop() {
		a.Judge(in)
	}
}

// naive is the meaning of policies, written as plainly as possible.
func naive(p *plan.Authz, in *Input) bool {
	allows, allowed := false, false
	for _, policy := range p.Policies {
		matched := slices.ContainsFunc(policy.Rules, func(r plan.PolicyRule) bool { return naiveRule(r, in, policy.Action == plan.ActionDeny) })
		switch policy.Action {
		case plan.ActionDeny:
			if matched {
				return false
			}
		case plan.ActionAllow:
			allows, allowed = true, allowed || matched
		}
	}
	return !allows || allowed
}

func naiveText(list, not []plan.StringMatch, s string, fold bool) bool {
	one := func(m plan.StringMatch) bool {
		v, s := m.Value, s
		if fold {
			v, s = strings.ToLower(v), strings.ToLower(s)
		}
		switch m.Kind {
		case plan.MatchExact:
			return s == v
		case plan.MatchPrefix:
			return strings.HasPrefix(s, v)
		case plan.MatchSuffix:
			return strings.HasSuffix(s, v)
		default:
			return true
		}
	}
	if s == "" {
		return len(list) == 0
	}
	return (len(list) == 0 || slices.ContainsFunc(list, one)) && !slices.ContainsFunc(not, one)
}

func naiveRule(r plan.PolicyRule, in *Input, deny bool) bool {
	http := in.Head != nil
	looks := false // at the request
	from := len(r.From) == 0
	for _, s := range r.From {
		looks = looks || len(s.RequestPrincipals)+len(s.NotRequestPrincipals) > 0
		contains := func(list []netip.Prefix) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(in.SourceIP) })
		}
		from = from || naiveText(s.Principals, s.NotPrincipals, in.Principal, false) && naiveText(s.Namespaces, s.NotNamespaces, in.Namespace, false) &&
			(len(s.IPs) == 0 || contains(s.IPs)) && !contains(s.NotIPs) && (!http || len(s.RequestPrincipals) == 0)
	}
	to := len(r.To) == 0
	for _, o := range r.To {
		looks = looks || len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths) > 0
		ok := (len(o.Ports) == 0 || slices.Contains(o.Ports, in.DestPort)) && !slices.Contains(o.NotPorts, in.DestPort)
		if http {
			ok = ok && naiveText(o.Hosts, o.NotHosts, string(in.Host), true) && naiveText(o.Methods, o.NotMethods, string(in.Head.Method()), false) &&
				naiveText(o.Paths, o.NotPaths, string(in.Path), false)
		}
		to = to || ok
	}
	when := true
	for _, c := range r.When {
		if name, ok := strings.CutPrefix(c.Key, "request.headers["); ok {
			looks = true
			if http {
				v, _ := in.Head.Get(strings.TrimSuffix(name, "]"))
				when = when && naiveText(c.Values, c.NotValues, string(v), false)
			}
			continue
		}
		when = when && naiveText(c.Values, c.NotValues, in.Namespace, false)
	}
	if !http && looks && !deny {
		return false
	}
	return from && to && when
}

// random makes policies whose values meet the inputs of randomInput often.
func random(r *rand.Rand) *plan.Authz {
	texts := func(values ...string) (out []plan.StringMatch) {
		for range r.IntN(3) {
			out = append(out, plan.StringMatch{Kind: []plan.MatchKind{plan.MatchExact, plan.MatchPrefix, plan.MatchSuffix, plan.MatchPresent}[r.IntN(4)], Value: values[r.IntN(len(values))]})
		}
		return out
	}
	some := func(list []plan.StringMatch) []plan.StringMatch {
		if r.IntN(2) == 0 {
			return nil
		}
		return list
	}
	p := &plan.Authz{}
	for range r.IntN(4) {
		policy := plan.Policy{Action: plan.Action(r.IntN(3))}
		for range r.IntN(4) {
			var rule plan.PolicyRule
			for range r.IntN(3) {
				s := plan.Source{NotNamespaces: some(texts("a", "b")), Principals: some(texts("td/ns/a/sa/x", "td/")), NotPrincipals: some(texts("td/ns/b", "x"))}
				if r.IntN(3) == 0 {
					s.IPs = nets4("10.0.0.0/31")
				}
				if r.IntN(5) == 0 {
					s.RequestPrincipals = exact("x")
				}
				s.Namespaces = append(texts("a", "b"), exact("a")...)
				rule.From = append(rule.From, s)
			}
			for range r.IntN(3) {
				o := plan.Operation{Ports: []uint16{1, 2}, Hosts: some(texts("A", "b")), NotHosts: some(texts("B")), Methods: some(texts("GET", "PUT")), Paths: some(texts("/a", "/", "b")), NotPaths: some(texts("/a/b"))}
				rule.To = append(rule.To, o)
			}
			if r.IntN(3) == 0 {
				rule.When = append(rule.When, plan.Condition{Key: "request.headers[x]", Values: texts("1", "2"), NotValues: exact("2")})
			}
			if r.IntN(3) == 0 {
				rule.When = append(rule.When, plan.Condition{Key: "source.namespace", Values: exact("a", "b"), NotValues: texts("b")})
			}
			policy.Rules = append(policy.Rules, rule)
		}
		p.Policies = append(p.Policies, policy)
	}
	return p
}

func checkAgainstNaive(t *testing.T, seed uint64, namespace, host, path, x string, port uint16, http bool) {
	t.Helper()
	p := random(rand.New(rand.NewPCG(seed, 3)))
	in := &Input{Namespace: namespace, SourceIP: netip.AddrFrom4([4]byte{10, 0, 0, byte(port)}), DestPort: port}
	if namespace != "" {
		in.Principal, in.ServiceAccount, in.TrustDomain = "td/ns/"+namespace+"/sa/x", "x", "td"
	}
	if http {
		in.Head = &stream.Head{}
		in.Head.SetMethodString("GET")
		if x != "" {
			in.Head.AddString("X", x)
		}
		in.Host, in.Path = []byte(host), []byte(path)
	}
	a, err := New(p, "td", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Judge(in).Allowed, naive(p, in); got != want {
		t.Errorf("seed %d, %+v: %t, want %t", seed, in, got, want)
	}
}

func TestAgainstNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for seed := range uint64(5000) {
		checkAgainstNaive(t, seed, pick("", "a", "b", "ab"), pick("a", "A", "b", "ab:80"), pick("/", "/a", "/a/b"), pick("", "1", "2"), uint16(r.IntN(4)), r.IntN(3) > 0)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add(uint64(1), "a", "A", "/a", "1", uint16(1), true)
	f.Add(uint64(2), "", "", "", "", uint16(0), false)
	f.Fuzz(func(t *testing.T, seed uint64, namespace, host, path, x string, port uint16, http bool) {
		if strings.ContainsFunc(host, func(r rune) bool { return r > 126 }) {
			return // lower case is ASCII's
		}
		checkAgainstNaive(t, seed, namespace, host, path, x, port, http)
	})
}
