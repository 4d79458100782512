package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lateen-mesh/lateen/deploy"
)

// labelShared is on those objects of a revision that the others need, too.
const labelShared = "lateen.dev/shared"

// plugin is the DaemonSet of the CNI plugin, which is on the nodes even when its pods have ended.
const plugin = "lateen-cni"

// Removal is what is to be taken away.
type Removal struct {
	// Revision is whose installation it is; empty: all.
	Revision string
	// Objects are in the order in which they go.
	Objects []deploy.Object
	// Kept are those that other revisions need.
	Kept []deploy.Object
	// Last says that no control plane remains: what lateend has made goes as well, among it the authority's key.
	Last bool
	// Gateways are the Deployments that lateend has made for Gateways of the Gateway API, if Last: they have no control plane
	// from then on. If all goes, they go, too.
	Gateways []deploy.Object
}

// Removal finds out what goes with a revision; empty: with all of them. What Helm has installed only Helm takes away: that is
// an error.
func (a *Applier) Removal(ctx context.Context, revision string) (Removal, error) {
	r, helms, err := a.removal(ctx, revision)
	if err == nil && len(helms) > 0 {
		release := helms[0].GetAnnotations()[annotationRelease]
		err = fmt.Errorf("%s is of Helm's release %s: run `helm uninstall %s -n %s`", reference(&helms[0]), release, release, deploy.Namespace)
	}
	return r, err
}

// removal finds out what goes with a revision, and what would but is of a release of Helm's.
func (a *Applier) removal(ctx context.Context, revision string) (r Removal, helms []unstructured.Unstructured, err error) {
	r = Removal{Revision: revision, Last: true}
	found, err := a.found(ctx)
	if err != nil {
		return r, nil, err
	}
	for _, u := range found {
		other := u.GetLabels()[LabelInstallation] != revision || u.GetAnnotations()[annotationRelease] != ""
		if revision != "" && other && u.GetKind() == "Deployment" && u.GetLabels()["app"] == "lateend" {
			r.Last = false
		}
	}
	for _, u := range found {
		own := revision == "" || u.GetLabels()[LabelInstallation] == revision
		_, shared := u.GetLabels()[labelShared]
		switch {
		case own && shared && !r.Last:
			r.Kept = append(r.Kept, reference(&u))
		case !own && (!shared || !r.Last):
		case u.GetAnnotations()[annotationRelease] != "":
			helms = append(helms, u)
		default:
			r.Objects = append(r.Objects, reference(&u))
		}
	}
	// Pods are asked about by a webhook until it is gone, so that it goes first; rights go when nobody uses them.
	slices.Reverse(r.Objects)
	slices.SortStableFunc(r.Objects, func(x, y deploy.Object) int { return order(x) - order(y) })
	installed, err := a.Installed(ctx)
	if err != nil {
		return r, nil, err
	}
	for _, i := range installed {
		if revision == "" || i.Name == revision {
			r.Objects = append(r.Objects, deploy.Object{APIVersion: i.APIVersion, Kind: i.Kind, Name: i.Name})
		}
	}
	if !r.Last {
		return r, helms, nil
	}
	left, err := a.left(ctx)
	if err != nil {
		return r, nil, err
	}
	r.Objects = append(r.Objects, left...)
	gateways, err := a.gateways(ctx)
	if err != nil {
		return r, nil, err
	}
	for _, o := range gateways {
		if o.Kind == "Deployment" {
			r.Gateways = append(r.Gateways, o)
		}
	}
	if revision == "" {
		r.Objects = append(r.Objects, gateways...) // when lateend has ended, which would make them again
	}
	return r, helms, nil
}

// found are the objects of all installations, in the order in which they were applied.
func (a *Applier) found(ctx context.Context) (found []unstructured.Unstructured, err error) {
	for _, k := range deploy.Kinds() {
		if k.Name == definition {
			continue
		}
		list, err := a.client.Resource(k.Resource).List(ctx, metav1.ListOptions{LabelSelector: LabelInstallation})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("look for what is installed: list %s: %w%s", k.Resource.Resource, err, next(err))
		}
		if err == nil {
			found = append(found, list.Items...)
		}
	}
	return found, nil
}

// selectGateways finds what lateend has made to run Gateways of the Gateway API.
const selectGateways = "lateen.dev/managed=gateway"

// gateways are the objects that lateend has made to run Gateways.
func (a *Applier) gateways(ctx context.Context) ([]deploy.Object, error) {
	var out []deploy.Object
	for _, k := range deploy.Kinds() {
		if !slices.Contains([]string{"Deployment", "Service", "ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget"}, k.Name) {
			continue
		}
		list, err := a.client.Resource(k.Resource).List(ctx, metav1.ListOptions{LabelSelector: selectGateways})
		if err != nil {
			return nil, fmt.Errorf("look for gateways: list %s: %w%s", k.Resource.Resource, err, next(err))
		}
		for _, u := range list.Items {
			out = append(out, reference(&u))
		}
	}
	return out, nil
}

// controller is how GatewayClasses name ours, and server who lateend is in Kubernetes' managedFields.
const (
	controller = "lateen.dev/gateway-controller"
	server     = "lateend"
)

// madeByServer reports whether an object is as lateend has made it. What is no GatewayClass is.
func madeByServer(u *unstructured.Unstructured) bool {
	if u.GetKind() != "GatewayClass" {
		return true
	}
	name, _, _ := unstructured.NestedString(u.Object, "spec", "controllerName")
	return name == controller && slices.ContainsFunc(u.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == server && f.Subresource == ""
	})
}

// annotationRelease is Helm's.
const annotationRelease = "meta.helm.sh/release-name"

// order is the place of an object among those that go.
func order(o deploy.Object) int {
	switch {
	case strings.HasSuffix(o.Kind, "WebhookConfiguration"):
		return 0
	case o.Kind == "Deployment" || o.Kind == "DaemonSet":
		return 1
	}
	return 2
}

// trustName is the ClusterTrustBundle that holds the mesh's roots.
const trustName = "istio.io:istiod-ca:root-cert"

// left are the objects that servers make, which all revisions share.
func (a *Applier) left(ctx context.Context) ([]deploy.Object, error) {
	var out []deploy.Object
	for _, o := range []deploy.Object{
		{APIVersion: "v1", Kind: "Secret", Namespace: deploy.Namespace, Name: "lateen-ca"},
		{APIVersion: "coordination.k8s.io/v1", Kind: "Lease", Namespace: deploy.Namespace, Name: "lateend-leader"},
		{APIVersion: "certificates.k8s.io/v1", Kind: "ClusterTrustBundle", Name: trustName},
		{APIVersion: "certificates.k8s.io/v1beta1", Kind: "ClusterTrustBundle", Name: trustName},
		{APIVersion: "gateway.networking.k8s.io/v1", Kind: "GatewayClass", Name: "lateen"},
		{APIVersion: "gateway.networking.k8s.io/v1", Kind: "GatewayClass", Name: "istio"},
	} {
		live, err := a.live(ctx, o)
		if err != nil {
			return nil, err
		}
		if live != nil && madeByServer(live) {
			out = append(out, o)
		}
	}
	roots, err := a.client.Resource(core("configmaps")).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", "istio-ca-root-cert").String(), LabelSelector: "istio.io/config=true",
	})
	if err != nil {
		return nil, fmt.Errorf("look for the roots in all namespaces: %w%s", err, next(err))
	}
	for _, u := range roots.Items {
		o := reference(&u)
		o.APIVersion, o.Kind = "v1", "ConfigMap"
		out = append(out, o)
	}
	return out, nil
}

// Remove takes away what a Removal says. Programs have ended before what they use is taken away.
func (a *Applier) Remove(ctx context.Context, r Removal, wait time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("it was not gone within %v", wait))
	defer cancel()
	var rest []deploy.Object
	for _, o := range r.Objects {
		if order(o) == 2 {
			rest = append(rest, o)
			continue
		}
		err := a.step(ctx, o.String(), func(say func(string)) (string, error) {
			if o.Kind == "DaemonSet" && o.Name == plugin {
				if err := a.unplug(ctx, o, say); err != nil {
					a.tell(Step{Component: o.String(), Warning: true, Text: fmt.Sprintf("the plugin stays on nodes, where it harms nobody: %v", err)})
				}
			}
			return "deleted", a.end(ctx, o, say)
		})
		if err != nil {
			return err
		}
	}
	if len(rest) == 0 {
		return nil
	}
	return a.step(ctx, "rights and configuration", func(func(string)) (string, error) {
		for _, o := range rest {
			if err := a.let(ctx, o); err != nil {
				return "", err
			}
			if err := a.delete(ctx, o); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("%d deleted", len(rest)), nil
	})
}

// let takes away what would hold an object up whose own objects have gone.
func (a *Applier) let(ctx context.Context, o deploy.Object) error {
	if o.Kind != deploy.InstallationKind {
		return nil
	}
	i, err := a.Find(ctx, o.Name)
	if err != nil || i == nil {
		return err
	}
	return a.release(ctx, *i)
}

// end deletes an object with all its pods and waits until they have ended.
func (a *Applier) end(ctx context.Context, o deploy.Object, say func(string)) error {
	resource, err := a.resource(o)
	if err != nil {
		return err
	}
	policy := metav1.DeletePropagationForeground
	if err := resource.Delete(ctx, o.Name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w%s", o, err, next(err))
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		if live, err := a.live(ctx, o); err == nil && live == nil {
			return nil
		}
		say("it has not ended")
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: wait for the end of %s; see `kubectl get pods -n %s`", context.Cause(ctx), o, deploy.Namespace)
		case <-tick.C:
		}
	}
}

// unplugTimeout is how long nodes have to take the plugin out of their lists. One that is away does not hold up the rest.
const unplugTimeout = time.Minute

// unplug has the pods of the CNI plugin take it from their nodes.
func (a *Applier) unplug(ctx context.Context, o deploy.Object, say func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, unplugTimeout, errors.New("not all nodes have taken it away"))
	defer cancel()
	resource, err := a.resource(o)
	if err != nil {
		return err
	}
	patch := `{"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}, "template": {"spec": {"containers": [
		{"name": "install", "command": ["/lateen-cni", "uninstall", "--hold"], "readinessProbe": null}]}}}}`
	if _, err := resource.Patch(ctx, o.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: Manager}); err != nil {
		return err
	}
	return a.await(ctx, o, onAllNodes, say)
}
