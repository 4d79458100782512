package kube

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

const authzHead = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: NAME, namespace: default}\n"

// TestClosed: a policy that cannot be read, and of which there is no good version, is not as if it were not there.
func TestClosed(t *testing.T) {
	faulty := func(selector string) string {
		return strings.Replace(authzHead, "NAME", "a", 1) + "spec: {" + selector + "action: ALLOW, rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]}\n"
	}
	named := func(kind, name, spec string) string {
		return "apiVersion: security.istio.io/v1\nkind: " + kind + "\nmetadata: {name: " + name + ", namespace: default}\nspec: " + spec + "\n"
	}
	gateway := "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], rules: [{}]"
	for name, tt := range map[string]struct {
		text string
		kind mesh.Kind
		made string // the name of what is in force; empty: nothing
		of   mesh.Labels
	}{
		"of some workloads":       {faulty("selector: {matchLabels: {app: x}}, "), mesh.KindAuthz, "a", mesh.Labels{"app": "x"}},
		"of a namespace":          {faulty(""), mesh.KindAuthz, "a", nil},
		"with a faulty selector":  {faulty("selector: {matchLabels: {app: \"*\"}}, "), mesh.KindAuthz, "a", nil},
		"of no known form":        {named("AuthorizationPolicy", "a", "{selector: 7, action: 8}"), mesh.KindAuthz, "a", nil},
		"for a dry run":           {strings.Replace(faulty(""), "namespace: default}", "namespace: default, annotations: {istio.io/dry-run: \"true\"}}", 1), mesh.KindAuthz, "", nil},
		"of a Gateway":            {named("AuthorizationPolicy", "a", "{"+gateway+", action: NO}"), mesh.KindAuthz, "a", mesh.Labels{gatewayOf: "edge"}},
		"of waypoints":            {named("AuthorizationPolicy", "a", "{targetRefs: [{group: \"\", kind: Service, name: s}], action: NO}"), mesh.KindAuthz, "", nil},
		"AUDIT":                   {named("AuthorizationPolicy", "a", "{action: AUDIT, rules: 7}"), mesh.KindAuthz, "", nil},
		"a PeerAuthentication":    {named("PeerAuthentication", "a", "{mtls: {mode: NEVER}}"), mesh.KindAuthn, "a", nil},
		"a RequestAuthentication": {named("RequestAuthentication", "a", "{selector: {matchLabels: {app: x}}}"), mesh.KindAuthz, "RequestAuthentication a", mesh.Labels{"app": "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.define()
			s.apply(tt.text)
			r := follow(t, s)
			r.read()
			want := []mesh.Object{}
			if tt.made != "" {
				o := mesh.Object(&mesh.Authz{Namespace: "default", Name: tt.made, Selector: tt.of, Action: "DENY", Rules: []mesh.AuthzRule{{}}})
				if tt.kind == mesh.KindAuthn {
					o = &mesh.Authn{Namespace: "default", Name: tt.made, Selector: tt.of, Mode: mesh.MTLSStrict, Unreadable: true}
				}
				want = append(want, o)
			}
			got := []mesh.Object{}
			r.mu.Lock()
			for ref, o := range r.objects {
				if ref.Kind == mesh.KindAuthz || ref.Kind == mesh.KindAuthn {
					got = append(got, o)
				}
			}
			r.mu.Unlock()
			if diff := cmp.Diff(want, got, placeless, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Origin" }, cmp.Ignore())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			var said []string
			for _, f := range r.Status().Faults {
				said = append(said, f.String())
			}
			if told := strings.Join(said, "\n"); strings.Contains(told, "there is no good version of it") != (tt.made != "") {
				t.Errorf("faults %s", told)
			}
			made := func(o *api.Object) bool { return o.Kind == api.KindGatewayClass } // by the leader
			if list := slices.DeleteFunc(r.List("", "", ""), made); len(list) > 0 {
				t.Errorf("objects %v", list)
			}
		})
	}
}

// TestClosedUntilGood: the good version takes the place of what is closed, and stays when another fault comes.
func TestClosedUntilGood(t *testing.T) {
	s := newServer(t)
	s.define()
	head := strings.Replace(authzHead, "NAME", "a", 1)
	s.apply(head + "spec: {action: NO}\n")
	r := follow(t, s)
	r.read()
	action := func() string {
		p, _ := r.object(mesh.KindAuthz, "default", "a").(*mesh.Authz)
		if p == nil {
			return ""
		}
		return p.Action
	}
	if got := action(); got != "DENY" {
		t.Errorf("at the start %q", got)
	}
	s.apply(head + "spec: {action: ALLOW, rules: [{}]}\n")
	r.await("the good version", func() bool { return action() == "ALLOW" && len(r.Status().Faults) == 0 })
	s.apply(head + "spec: {action: NO}\n")
	r.await("a fault", func() bool { return len(r.Status().Faults) > 0 })
	if got := action(); got != "ALLOW" || len(r.Status().Faults) != 1 {
		t.Errorf("with a fault %q, faults %v", got, r.Status().Faults)
	}
	s.remove("AuthorizationPolicy", "default/a")
	r.await("it is gone", func() bool { return r.object(mesh.KindAuthz, "default", "a") == nil && len(r.Status().Faults) == 0 })
	if list := r.List(api.KindAuthorizationPolicy, "", ""); len(list) > 0 {
		t.Errorf("objects %v", list)
	}
}
