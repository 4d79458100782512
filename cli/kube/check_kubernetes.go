package kube

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	authorization "k8s.io/api/authorization/v1"
	lease "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/lateen-mesh/lateen/deploy"
)

// The versions of Kubernetes that count: CEL rules of CustomResourceDefinitions, and native sidecars without a feature gate.
const (
	minorNeeded = 25
	minorNative = 29
)

// The bounds of clocks. Certificates are back-dated by two minutes, so that a peer may be as much behind.
const (
	skewMax = time.Minute
	// leaseLate is more than a kubelet that lives lets its Lease go unrenewed (10 s, and 40 s until it counts as dead).
	leaseLate = 90 * time.Second
)

// nodeLeases is where kubelets say that they live.
const nodeLeases = "kube-node-lease"

// kubernetesChecks judge the cluster itself.
func kubernetesChecks() group {
	return group{"kubernetes", []check{
		{
			name: "the API server answers", needed: true, judge: apiAnswers,
			next: "see whether `kubectl version` answers; choose another cluster with --context or --kubeconfig",
		},
		{
			name: fmt.Sprintf("Kubernetes is of version 1.%d or newer", minorNative), judge: apiVersion,
			next: "upgrade the cluster, or have pods get classic sidecars: --set injection.config.classicSidecars=true",
		},
		{
			name: "the clocks agree: this machine's, the API server's, the nodes'", judge: clocksAgree,
			next: "have the machines that are named synchronise their clocks (NTP): certificates depend on them",
		},
	}}
}

func apiAnswers(_ context.Context, l *look) verdict {
	if _, err := once(l, "version of Kubernetes", l.kube.Discovery().ServerVersion); err != nil {
		return trouble(err)
	}
	return ok()
}

func apiVersion(_ context.Context, l *look) verdict {
	v, err := once(l, "version of Kubernetes", l.kube.Discovery().ServerVersion)
	if err != nil {
		return trouble(err)
	}
	switch minor := minorOf(v); {
	case minor < minorNeeded:
		return verdict{failed, []string{fmt.Sprintf("it is %s; the rules of Istio's CustomResourceDefinitions need 1.%d", v.GitVersion, minorNeeded)}}
	case minor < minorNative:
		return verdict{warned, []string{fmt.Sprintf("it is %s, which has no native sidecars", v.GitVersion)}}
	}
	return ok()
}

// minorOf is the minor version; providers write things as "33+".
func minorOf(v *version.Info) int {
	minor, _ := strconv.Atoi(strings.TrimRight(v.Minor, "+"))
	if v.Major != "" && v.Major != "1" {
		return minorNative // of a time to come
	}
	return minor
}

func clocksAgree(ctx context.Context, l *look) verdict {
	server, err := l.date(ctx)
	if err != nil {
		return skip(fmt.Sprintf("the API server does not say what its clock is: %v", err))
	}
	var why []string
	if d := l.now().Sub(server); d.Abs() > skewMax {
		why = append(why, fmt.Sprintf("this machine is %s the API server", apart(d)))
	}
	nodes, err := l.nodes(ctx)
	if err != nil {
		return trouble(err)
	}
	held, err := once(l, "nodes' Leases", func() ([]lease.Lease, error) {
		list, err := l.kube.CoordinationV1().Leases(nodeLeases).List(ctx, meta.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
	if err != nil {
		return verdict{warned, append(why, err.Error())}
	}
	renewed := map[string]time.Time{}
	for _, h := range held {
		if h.Spec.RenewTime != nil {
			renewed[h.Name] = h.Spec.RenewTime.Time
		}
	}
	for _, n := range nodes {
		at, there := renewed[n.Name]
		d := at.Sub(server)
		if there && (d > skewMax || d < -leaseLate && nodeReady(&n)) {
			why = append(why, fmt.Sprintf("node %s is %s the API server", n.Name, apart(d)))
		}
	}
	return unless(warned, why)
}

func nodeReady(n *core.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == core.NodeReady {
			return c.Status == core.ConditionTrue
		}
	}
	return false
}

// apart says where one clock is by another.
func apart(d time.Duration) string {
	if d < 0 {
		return (-d).Round(time.Second).String() + " behind"
	}
	return d.Round(time.Second).String() + " ahead of"
}

// permissionChecks judge whether this user may install: one check for each kind that an installation makes.
func permissionChecks(w *world) group {
	g := group{name: "permissions"}
	objects, err := w.wanted()
	if err != nil {
		g.checks = []check{{name: "what is installed is known", judge: func(context.Context, *look) verdict { return trouble(err) }}}
		return g
	}
	seen := map[string]bool{}
	for _, o := range objects {
		if seen[o.Kind] {
			continue
		}
		seen[o.Kind] = true
		where := ""
		if o.Namespace != "" {
			where = " in the namespace " + o.Namespace
		}
		g.checks = append(g.checks, check{
			name:  fmt.Sprintf("you may make and change %ss%s", o.Kind, where),
			next:  "install as somebody who has this right, such as a cluster-admin (--as, --context)",
			judge: func(ctx context.Context, l *look) verdict { return mayMake(ctx, l, o) },
		})
	}
	g.checks = append(g.checks, check{
		name:  "you may give lateend its own rights",
		next:  "install as a cluster-admin, or have one give you the verbs bind and escalate on clusterroles and roles",
		judge: mayGive,
	})
	return g
}

// wantedObjects are the objects of an installation, and what it needs of Kubernetes besides.
func wantedObjects() ([]deploy.Object, error) {
	crds, err := deploy.Definitions()
	if err != nil {
		return nil, err
	}
	objects, err := deploy.Render(deploy.Config{})
	if err != nil {
		return nil, err
	}
	out := []deploy.Object{{APIVersion: "v1", Kind: "Namespace", Name: deploy.Namespace}}
	return append(append(out, crds...), objects...), nil
}

// mayMake asks whether this user may create and patch objects of a kind.
func mayMake(ctx context.Context, l *look, o deploy.Object) verdict {
	gv, err := schema.ParseGroupVersion(o.APIVersion)
	if err != nil {
		return trouble(err)
	}
	resource, _ := apimeta.UnsafeGuessKindToResource(gv.WithKind(o.Kind))
	var why []string
	for _, verb := range []string{"create", "patch"} {
		may, reason, err := l.may(ctx, authorization.ResourceAttributes{
			Verb: verb, Group: resource.Group, Version: resource.Version, Resource: resource.Resource, Namespace: o.Namespace,
		})
		if err != nil {
			return trouble(err)
		}
		if !may {
			why = append(why, strings.TrimSuffix(fmt.Sprintf("the verb %s is refused: %s", verb, reason), ": "))
		}
	}
	return unless(failed, why)
}

// mayGive asks for the rights without which the API server lets nobody give rights that he has not himself.
func mayGive(ctx context.Context, l *look) verdict {
	for _, a := range []authorization.ResourceAttributes{
		{Verb: "*", Group: "*", Resource: "*"},
		{Verb: "escalate", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	} {
		may, _, err := l.may(ctx, a)
		if err != nil {
			return trouble(err)
		}
		if may {
			return ok()
		}
	}
	return verdict{warned, []string{"the API server will refuse the ClusterRole lateend unless you have each of its rights yourself"}}
}

// may asks the API server for a right of this user.
func (l *look) may(ctx context.Context, a authorization.ResourceAttributes) (bool, string, error) {
	review := &authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}
	answer, err := l.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, meta.CreateOptions{})
	if err != nil {
		return false, "", fmt.Errorf("ask for the right to %s %s: %w", a.Verb, a.Resource, err)
	}
	return answer.Status.Allowed, answer.Status.Reason, nil
}
