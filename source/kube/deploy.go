package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	gatewayapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source/attach"
)

// deployables are the resources of what is deployed for Gateways, by kind.
func deployables() map[string]schema.GroupVersionResource {
	return map[string]schema.GroupVersionResource{
		"ServiceAccount":          {Version: "v1", Resource: "serviceaccounts"},
		"Deployment":              {Group: "apps", Version: "v1", Resource: "deployments"},
		"Service":                 {Version: "v1", Resource: "services"},
		"HorizontalPodAutoscaler": {Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"},
		"PodDisruptionBudget":     {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	}
}

// The times between two looks at what is deployed; a change of it or of a Gateway makes one at once.
const (
	deployEvery = 10 * time.Minute
	deployRetry = 5 * time.Second
)

// deployer keeps the workloads of Gateways as they should be, while this server leads: it watches what is there, applies
// what differs, and removes what no Gateway wants any more. How it stands goes into the Gateways' status.
type deployer struct {
	*Store
	resources map[string]schema.GroupVersionResource
	feeds     map[string]*feed // by kind
	there     map[string]map[key]attach.Document
	wake      chan struct{}
	told      map[string]string // what could not be done, so that it is said once
}

// deploy keeps Gateways deployed until ctx ends, which it does when this server leads no more.
func (s *Store) deploy(ctx context.Context) {
	d := &deployer{
		Store: s, resources: deployables(), feeds: map[string]*feed{}, there: map[string]map[key]attach.Document{},
		wake: make(chan struct{}, 1), told: map[string]string{},
	}
	s.mu.Lock()
	s.deploying = d.note
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.deploying = nil
		s.mu.Unlock()
	}()
	var group sync.WaitGroup
	defer group.Wait()
	for kind, resource := range d.resources {
		f := d.feed(resource)
		d.feeds[kind], d.there[kind] = f, map[key]attach.Document{}
		group.Go(func() { f.run(ctx) })
	}
	for ctx.Err() == nil {
		wait, stop := context.WithTimeout(ctx, d.settle(ctx))
		select {
		case <-wait.Done():
		case <-d.wake:
		}
		stop()
	}
}

// note has the deployer look at once.
func (d *deployer) note() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *deployer) feed(resource schema.GroupVersionResource) *feed {
	r := d.api.dynamic.Resource(resource)
	const ours = attach.LabelManaged + "=" + attach.ManagedGateway
	return &feed{
		name: resource.Resource, notice: d.note,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = ours
			return r.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = ours
			return r.Watch(ctx, o)
		},
		convert: func(o runtime.Object) any {
			u := o.(*unstructured.Unstructured)
			unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
			return u.Object
		},
	}
}

// settle brings what is there to what should be and returns when to look again.
func (d *deployer) settle(ctx context.Context) time.Duration {
	for kind, f := range d.feeds {
		items, whole := f.take()
		if whole {
			clear(d.there[kind])
		}
		for k, item := range items {
			if o, _ := item.(attach.Document); o != nil {
				d.there[kind][k] = o
			} else {
				delete(d.there[kind], k)
			}
		}
	}
	gateways, foreign, unknown := d.wanted()
	if len(gateways) == 0 && unknown {
		return deployEvery // not everything was read, or the Gateway API is not installed
	}
	for _, f := range d.feeds {
		if err := f.trouble(); err != nil {
			d.tell(f.name, err)
		}
		if !f.settled() {
			return deployEvery // it says so when it is read
		}
	}
	again := deployEvery
	failed := func(what string, err error) {
		if d.tell(what, err); err != nil {
			again = deployRetry
		}
	}
	failed("GatewayClasses", d.class(ctx))
	for _, g := range gateways {
		failed(g.Object.Ref.String(), d.one(ctx, g))
	}
	for _, ref := range foreign {
		failed(ref.String(), d.remove(ctx, ref, ""))
	}
	d.stand(gateways)
	return again
}

// tell logs what could not be done, once; nil: it could.
func (d *deployer) tell(what string, err error) {
	if err == nil {
		delete(d.told, what)
		return
	}
	if text := err.Error(); d.told[what] != text {
		d.told[what] = text
		d.log.Warn("a gateway cannot be deployed as it should; trying again", "object", what, "cause", text)
	}
}

// subject is a Gateway and what else must be known to deploy it.
type subject struct {
	*attach.Gateway
	uid        string
	parameters map[string]string
}

// wanted lists the Gateways, and those of others, for which nothing of ours is to run; unknown: the kind is not installed.
func (d *deployer) wanted() (out []subject, foreign []api.Ref, unknown bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	unknown = !slices.ContainsFunc(d.Store.feeds, func(f *feed) bool { return f.name == "gatewayclasses."+api.GroupGateway })
	if !d.inForce {
		return nil, nil, true
	}
	attached := d.picture.set.Attached()
	for _, g := range attached.Gateways {
		x := subject{Gateway: g, uid: d.status.uid(g.Object.Ref)}
		if name := g.Parameters(); name != "" {
			x.parameters = d.picture.parameters[key{Namespace: g.Object.Namespace, Name: name}]
		}
		out = append(out, x)
	}
	return out, attached.Foreign, unknown
}

// class makes our GatewayClasses where there is none of their name: Istio has made its own where it runs.
func (d *deployer) class(ctx context.Context) error {
	for _, name := range []string{attach.ClassLateen, attach.ClassIstio} {
		if d.status.uid(api.Ref{Kind: api.KindGatewayClass, Name: name}) != "" {
			continue
		}
		if err := d.ration.Wait(ctx); err != nil {
			return err
		}
		_, err := d.api.dynamic.Resource(schema.GroupVersionResource{Group: api.GroupGateway, Version: "v1", Resource: "gatewayclasses"}).Create(ctx,
			&unstructured.Unstructured{Object: attach.Document{
				"apiVersion": api.GroupGateway + "/v1", "kind": api.KindGatewayClass, "metadata": attach.Document{"name": name},
				"spec": attach.Document{"controllerName": attach.Controller, "description": "Gateways of the Lateen mesh"},
			}}, metav1.CreateOptions{FieldManager: userAgent})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make the GatewayClass %s: %w", name, err)
		}
	}
	return nil
}

// one deploys one Gateway, or removes what was deployed for it. What a Gateway with a fault has stays as it is.
func (d *deployer) one(ctx context.Context, g subject) error {
	var wanted []attach.Document
	switch {
	case g.Elsewhere():
	case !g.Deployed() || g.uid == "":
		return nil
	default:
		var err error
		if wanted, err = g.Documents(g.uid, g.parameters); err != nil {
			return err
		}
	}
	k := key{Namespace: g.Object.Namespace, Name: g.Account()}
	for _, o := range wanted {
		kind, _ := o["kind"].(string)
		if attach.Holds(d.there[kind][k], o) {
			continue
		}
		if d.there[kind][k] == nil {
			if err := d.free(ctx, kind, k, g); err != nil {
				return err
			}
		}
		if err := d.apply(ctx, kind, k, o); err != nil {
			return err
		}
	}
	if len(wanted) == 0 {
		k.Name = ""
	}
	return d.remove(ctx, g.Object.Ref, k.Name)
}

// free makes sure that nobody else has an object of that name, which would be taken over.
func (d *deployer) free(ctx context.Context, kind string, k key, g subject) error {
	list, err := d.api.dynamic.Resource(d.resources[kind]).Namespace(k.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + k.Name})
	if err != nil {
		return fmt.Errorf("look for %s %s: %w", kind, k, err)
	}
	for i := range list.Items {
		ours := slices.ContainsFunc(list.Items[i].GetOwnerReferences(), func(r metav1.OwnerReference) bool {
			return r.Kind == api.KindGateway && r.Name == g.Object.Name
		})
		if !ours && list.Items[i].GetLabels()[attach.LabelManaged] != attach.ManagedGateway {
			return fmt.Errorf("there is a %s %s already, of somebody else, and it is left alone; rename it or the Gateway", kind, k)
		}
	}
	return nil
}

func (d *deployer) apply(ctx context.Context, kind string, k key, o attach.Document) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := d.ration.Wait(ctx); err != nil {
		return err
	}
	force := true // what somebody else has changed is repaired
	u, err := d.api.dynamic.Resource(d.resources[kind]).Namespace(k.Namespace).Patch(ctx, k.Name, types.ApplyPatchType, raw,
		metav1.PatchOptions{FieldManager: userAgent, Force: &force})
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", kind, k, err)
	}
	d.there[kind][k] = u.Object
	d.log.Info("deployed for a Gateway", "object", kind+" "+k.String())
	return nil
}

// remove deletes what was deployed for a Gateway under another name than that which is kept, or all of it. What belongs to a
// Gateway that is gone Kubernetes removes itself.
func (d *deployer) remove(ctx context.Context, gateway api.Ref, keep string) error {
	for kind, all := range d.there {
		for k, o := range all {
			labels, _, _ := unstructured.NestedStringMap(o, "metadata", "labels")
			if k.Namespace != gateway.Namespace || labels[attach.LabelGateway] != attach.LabelOf(gateway.Name) || k.Name == keep {
				continue
			}
			err := d.api.dynamic.Resource(d.resources[kind]).Namespace(k.Namespace).Delete(ctx, k.Name, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s %s: %w", kind, k, err)
			}
			d.log.Info("removed what ran a Gateway", "object", kind+" "+k.String())
			delete(all, k)
		}
	}
	return nil
}

// stand tells how what is deployed stands.
func (d *deployer) stand(gateways []subject) {
	now := map[key]attach.Deployed{}
	for _, g := range gateways {
		k := key{Namespace: g.Object.Namespace, Name: g.Account()}
		standing := standingAs(d.there["Service"][k], d.there["Deployment"][k])
		if cause := d.told[g.Object.Ref.String()]; cause != "" {
			standing.Waiting = cause
		}
		now[key{Namespace: k.Namespace, Name: g.Object.Name}] = standing
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.standing = now
	d.state()
}

// standingAs reads the status of a Gateway's Service and Deployment.
func standingAs(service, deployment attach.Document) attach.Deployed {
	out := attach.Deployed{Waiting: "its Service is not made yet"}
	if service == nil {
		return out
	}
	kind, _, _ := unstructured.NestedString(service, "spec", "type")
	ingress, _, _ := unstructured.NestedSlice(service, "status", "loadBalancer", "ingress")
	for _, x := range ingress {
		m, _ := x.(attach.Document)
		if ip := value(m["ip"]); ip != "" {
			out.Addresses = append(out.Addresses, address(gatewayapi.IPAddressType, ip))
		} else if host := value(m["hostname"]); host != "" {
			out.Addresses = append(out.Addresses, address(gatewayapi.HostnameAddressType, host))
		}
	}
	if ip, _, _ := unstructured.NestedString(service, "spec", "clusterIP"); kind != "LoadBalancer" && ip != "" {
		out.Addresses = append(out.Addresses, address(gatewayapi.IPAddressType, ip))
	}
	available, _, _ := unstructured.NestedInt64(deployment, "status", "availableReplicas")
	out.Ready = available > 0
	name, _, _ := unstructured.NestedString(service, "metadata", "name")
	if len(out.Addresses) == 0 {
		out.Waiting = fmt.Sprintf("the Service %s has no address yet: nothing in the cluster has given its load balancer one; or annotate the Gateway with networking.istio.io/service-type: ClusterIP", name)
	} else if !out.Ready {
		out.Waiting = fmt.Sprintf("no pod of the Deployment %s is available yet", name)
	}
	return out
}

func address(kind gatewayapi.AddressType, text string) gatewayapi.GatewayStatusAddress {
	return gatewayapi.GatewayStatusAddress{Type: &kind, Value: text}
}

// deployed tells how the workloads of a Gateway stand; nil: the deployer has not looked. Those that run already are reached
// as their Service is called. The caller holds mu.
func (s *Store) deployed(g *attach.Gateway) *attach.Deployed {
	if g.Manual && g.Behind != nil {
		return &attach.Deployed{Ready: true, Addresses: []gatewayapi.GatewayStatusAddress{address(gatewayapi.HostnameAddressType, g.Behind.Host)}}
	}
	if s.standing == nil {
		return nil
	}
	d := s.standing[key{Namespace: g.Object.Namespace, Name: g.Object.Name}]
	d.Waiting = cmp.Or(d.Waiting, "nothing is deployed yet")
	return &d
}

// state tells the status of the Gateway API's objects, once all that they refer to was read. The caller holds mu.
func (s *Store) state() {
	if s.inForce {
		s.status.attach(s.attached.Status(s.deployed))
	}
}

// Serves reports whether a service account is that of the workloads that we deploy for a Gateway, which the label of a
// workload names: such a proxy gets the keys that its Gateway names, and no others.
func (s *Store) Serves(namespace, account, gateway string) bool {
	all := s.serving.Load()
	return all != nil && gateway != "" && (*all)[namespace+"/"+account] == gateway
}

// attachments takes over what the Gateway API's objects come to, if that has changed. The caller holds mu.
func (s *Store) attachments() {
	a := s.picture.set.Attached()
	if a == s.attached {
		return
	}
	s.attached = a
	serving := map[string]string{}
	named := map[key]bool{}
	for _, g := range a.Gateways {
		if g.Deployed() {
			serving[g.Object.Namespace+"/"+g.Account()] = attach.LabelOf(g.Object.Name)
		}
		if name := g.Parameters(); name != "" {
			named[key{Namespace: g.Object.Namespace, Name: name}] = true
		}
	}
	s.serving.Store(&serving)
	if !maps.Equal(named, s.picture.references.parameters) {
		s.picture.references.parameters, s.picture.references.changed = named, true
	}
	s.state()
	s.redeploy()
}

// redeploy has the deployer look, if this server leads. The caller holds mu.
func (s *Store) redeploy() {
	if s.deploying != nil {
		s.deploying()
	}
}
