package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/lateen-mesh/lateen/deploy"
)

// DefaultRevision is the name of the revision that owns what all share.
const DefaultRevision = "default"

// The condition of an Installation, and its reasons.
const (
	conditionReady  = "Ready"
	reasonInstalled = "Installed"
	reasonWorking   = "Installing"
	reasonFailed    = "InstallationFailed"
	reasonNotWaited = "NotWaitedFor"
	reasonInvalid   = "InvalidSpec"
	reasonRemoving  = "Removing"
)

// Installation is the record of one revision's installation in the cluster, a custom resource of our own: what is wanted,
// and what has become of it. Its name is the revision's.
type Installation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   Spec    `json:"spec"`
	Status *Status `json:"status,omitempty"`
}

// Spec is what is wanted.
type Spec struct {
	// Profile is one of deploy.Profiles; empty: the default one.
	Profile string `json:"profile,omitempty"`
	// Values go before the profile's.
	Values map[string]any `json:"values,omitempty"`
}

// Status is what has become of it.
type Status struct {
	// ObservedGeneration is that of the spec to which the rest belongs.
	ObservedGeneration int64 `json:"observedGeneration"`
	// Version is that of the chart whose objects these are.
	Version string `json:"version"`
	// Applied is what the objects were made of: the last spec in which there was no fault.
	Applied *Spec `json:"applied,omitempty"`
	// Objects are all that were made, in the order in which they were applied.
	Objects []Reference `json:"objects"`
	// Conditions has one, Ready.
	Conditions []metav1.Condition `json:"conditions"`
}

// Reference names an object.
type Reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// Render makes the objects of the installation.
func (i Installation) Render() ([]deploy.Object, error) {
	if r, said := i.Spec.Values["revision"]; said && r != i.Name {
		return nil, fmt.Errorf("spec.values.revision is %v; the revision is the name of the Installation, %s: leave the value out", r, i.Name)
	}
	return deploy.Render(i.Config())
}

// Config is the installation as deploy renders it.
func (i Installation) Config() deploy.Config {
	return deploy.Config{Profile: i.Spec.Profile, Values: []map[string]any{i.Spec.Values}, Revision: i.Name}
}

// Ready is the condition of that name; nil: nothing was said yet.
func (i Installation) Ready() *metav1.Condition {
	if i.Status != nil {
		for _, c := range i.Status.Conditions {
			if c.Type == conditionReady {
				return &c
			}
		}
	}
	return nil
}

func (a *Applier) records() dynamic.ResourceInterface { return a.client.Resource(deploy.Installations) }

// Installed are all installations that the cluster has a record of, by name.
func (a *Applier) Installed(ctx context.Context) ([]Installation, error) {
	list, err := a.records().List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil // there is no definition of it: nothing was ever installed
	}
	if err != nil {
		return nil, fmt.Errorf("read what is installed: %w%s", err, next(err))
	}
	var out []Installation
	for _, u := range list.Items {
		i, err := read(&u)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

func read(u *unstructured.Unstructured) (i Installation, err error) {
	if err = runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &i); err != nil {
		return i, fmt.Errorf("read the Installation %s: %w", u.GetName(), err)
	}
	return i, nil
}

// Find is the record of a revision's installation; nil: there is none.
func (a *Applier) Find(ctx context.Context, revision string) (*Installation, error) {
	u, err := a.records().Get(ctx, revision, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the Installation %s: %w%s", revision, err, next(err))
	}
	i, err := read(u)
	return &i, err
}

// want writes down what is wanted, and nothing else is from then on, whoever has written what was; it returns it with its
// generation.
func (a *Applier) want(ctx context.Context, i Installation) (Installation, error) {
	spec := map[string]any{}
	if i.Spec.Profile != "" {
		spec["profile"] = i.Spec.Profile
	}
	if len(i.Spec.Values) > 0 {
		spec["values"] = i.Spec.Values
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": deploy.Installations.GroupVersion().String(), "kind": deploy.InstallationKind,
		"metadata": map[string]any{"name": i.Name}, "spec": spec,
	}}
	patch, err := json.Marshal([]any{map[string]any{"op": "add", "path": "/spec", "value": spec}})
	if err != nil {
		return i, fmt.Errorf("write down what is wanted: %w", err)
	}
	made, err := a.records().Patch(ctx, i.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: Manager})
	if apierrors.IsNotFound(err) {
		made, err = a.records().Create(ctx, u, metav1.CreateOptions{FieldManager: Manager})
	}
	if err != nil {
		return i, fmt.Errorf("write down what is wanted: %s: %w%s", reference(u), err, next(err))
	}
	return read(made)
}

// record is what is written down of one installation while it is made. All methods may be called concurrently.
type record struct {
	applier *Applier
	// objects are those that are made; nil: those that were.
	objects []deploy.Object

	mu sync.Mutex
	i  Installation
}

// say writes down how far it is. Nothing is written if nothing has changed, not even the time.
func (r *record) say(ctx context.Context, status metav1.ConditionStatus, reason, message string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	version, err := deploy.Version()
	if err != nil {
		return err
	}
	next := Status{ObservedGeneration: r.i.Generation, Objects: []Reference{}}
	switch old := r.i.Status; {
	case r.objects != nil:
		next.Version, next.Applied = version, &r.i.Spec
		for _, o := range r.objects {
			next.Objects = append(next.Objects, Reference{o.APIVersion, o.Kind, o.Namespace, o.Name})
		}
	case old != nil:
		next.Version, next.Applied, next.Objects = old.Version, old.Applied, append(next.Objects, old.Objects...)
	}
	ready := metav1.Condition{Type: conditionReady, Status: status, Reason: reason, Message: message, ObservedGeneration: r.i.Generation}
	ready.LastTransitionTime = metav1.NewTime(time.Now().Truncate(time.Second))
	if last := r.i.Ready(); last != nil && last.Status == status {
		ready.LastTransitionTime = last.LastTransitionTime
	}
	next.Conditions = []metav1.Condition{ready}
	if err := r.applier.report(ctx, r.i, next); err != nil {
		return err
	}
	r.i.Status = &next
	return nil
}

// report writes down what has become of an installation.
func (a *Applier) report(ctx context.Context, i Installation, status Status) error {
	data, err := json.Marshal(map[string]any{
		"apiVersion": deploy.Installations.GroupVersion().String(), "kind": deploy.InstallationKind,
		"metadata": map[string]any{"name": i.Name}, "status": status,
	})
	if err != nil {
		return fmt.Errorf("write down what was made: %w", err)
	}
	force := true
	_, err = a.records().Patch(ctx, i.Name, types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: Manager, Force: &force}, "status")
	if err != nil {
		return fmt.Errorf("write down what was made: %w%s", err, next(err))
	}
	return nil
}
