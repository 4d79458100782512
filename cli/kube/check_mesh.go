package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/deploy"
)

// meshChecks judge what is there of meshes already, before an installation.
func meshChecks() group {
	return group{"meshes", []check{
		{
			name: "the namespace " + deploy.Namespace + " can be used", judge: namespaceFree,
			next: "wait until it is gone: `kubectl get namespace " + deploy.Namespace + " -o yaml` says what it waits for",
		},
		{
			name: "Lateen is not installed yet", judge: notInstalled,
			next: "see what is there with `lateen check`; a second control plane beside it needs --revision",
		},
		{
			name: "no control plane of Istio runs here", judge: noIstio,
			next: "remove Istio's control plane and webhooks, and keep its CustomResourceDefinitions with all that is configured",
		},
		{
			name: "no other mesh puts proxies into pods", judge: noOtherMesh,
			next: "have namespaces ask for one mesh only: a pod with two proxies does not work",
		},
		{
			name: "Istio's CustomResourceDefinitions are none, or serve the versions that Lateen knows", judge: definitionsOlder,
			next: "bring them up to date: `lateen manifest generate | kubectl apply --server-side -f -`; Helm leaves them as they are",
		},
	}}
}

func namespaceFree(ctx context.Context, l *look) verdict {
	n, err := l.kube.CoreV1().Namespaces().Get(ctx, deploy.Namespace, meta.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return ok()
	case err != nil:
		return trouble(err)
	case n.Status.Phase == core.NamespaceTerminating:
		return verdict{failed, []string{"it is being deleted"}}
	}
	return ok()
}

func notInstalled(ctx context.Context, l *look) verdict {
	list, err := l.controls(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, d := range list {
		why = append(why, fmt.Sprintf("Deployment %s/%s is there: an installation changes it", d.Namespace, d.Name))
	}
	return unless(warned, why)
}

// istioWebhooks are what Istio's webhooks' names begin with.
var istioWebhooks = []string{"istio-sidecar-injector", "istio-revision-tag", "istio-validator", "istiod-"}

func noIstio(ctx context.Context, l *look) verdict {
	var why []string
	names, err := l.webhookNames(ctx)
	if err != nil {
		return trouble(err)
	}
	for _, name := range names {
		if slices.ContainsFunc(istioWebhooks, func(p string) bool { _, short, _ := strings.Cut(name, " "); return strings.HasPrefix(short, p) }) {
			why = append(why, name+" is there")
		}
	}
	list, err := l.kube.AppsV1().Deployments("").List(ctx, meta.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return trouble(err)
	}
	for _, d := range list.Items {
		why = append(why, fmt.Sprintf("Deployment %s/%s is there", d.Namespace, d.Name))
	}
	return unless(failed, why)
}

// webhookNames are the names of all webhooks that are registered, with their kinds.
func (l *look) webhookNames(ctx context.Context) ([]string, error) {
	mutating, err := l.mutating(ctx)
	if err != nil {
		return nil, err
	}
	validating, err := l.validating(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range mutating {
		out = append(out, "MutatingWebhookConfiguration "+m.Name)
	}
	for _, v := range validating {
		out = append(out, "ValidatingWebhookConfiguration "+v.Name)
	}
	return out, nil
}

// otherInjectors are the webhooks of other meshes, by a part of their names.
var otherInjectors = map[string]string{
	"linkerd-proxy-injector": "Linkerd", "kuma-admission-mutating": "Kuma", "consul-connect-injector": "Consul", "osm-webhook": "Open Service Mesh",
	"traefik-mesh": "Traefik Mesh", "nginx-mesh": "NGINX Service Mesh", "cilium-envoy": "Cilium",
}

func noOtherMesh(ctx context.Context, l *look) verdict {
	list, err := l.mutating(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, m := range list {
		for part, mesh := range otherInjectors {
			if strings.Contains(m.Name, part) {
				why = append(why, fmt.Sprintf("%s: MutatingWebhookConfiguration %s is there", mesh, m.Name))
			}
		}
	}
	return unless(warned, why)
}

// ownDefinitions are those that an installation brings, by name.
func ownDefinitions() (map[string]definition, error) {
	list, err := deploy.Definitions()
	if err != nil {
		return nil, err
	}
	out := map[string]definition{}
	for _, d := range list {
		o, err := d.Value()
		if err != nil {
			return nil, err
		}
		out[d.Name] = definitionOf(o)
	}
	return out, nil
}

func definitionsOlder(ctx context.Context, l *look) verdict {
	there, err := l.definitions(ctx)
	if err != nil {
		return trouble(err)
	}
	own, err := l.world.known()
	if err != nil {
		return trouble(err)
	}
	var why []string
	for name, d := range own {
		if is, found := there[name]; found {
			why = append(why, unserved(name, is, d)...)
		}
	}
	slices.Sort(why)
	return unless(warned, why)
}

// unserved says which versions a CustomResourceDefinition does not serve that it should.
func unserved(name string, is, should definition) []string {
	var missing []string
	for _, v := range should.versions {
		if !slices.Contains(is.versions, v) {
			missing = append(missing, v)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s does not serve %s", name, strings.Join(missing, ", "))}
}
