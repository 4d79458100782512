package apply

import (
	"context"
	"encoding/json"
	"fmt"
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

// want writes down what is wanted, and returns it with its generation.
func (a *Applier) want(ctx context.Context, i Installation) (Installation, error) {
	spec := map[string]any{}
	if i.Spec.Profile != "" {
		spec["profile"] = i.Spec.Profile
	}
	if len(i.Spec.Values) > 0 {
		spec["values"] = i.Spec.Values
	}
	o, err := object(map[string]any{
		"apiVersion": deploy.Installations.GroupVersion().String(), "kind": deploy.InstallationKind,
		"metadata": map[string]any{"name": i.Name}, "spec": spec,
	})
	if err != nil {
		return i, err
	}
	force := true
	u, err := a.records().Patch(ctx, o.Name, types.ApplyPatchType, []byte(o.YAML), metav1.PatchOptions{FieldManager: Manager, Force: &force})
	if err != nil {
		return i, fmt.Errorf("write down what is wanted: %s: %w%s", o, err, next(err))
	}
	return read(u)
}

// report writes down what has become of an installation. Nothing is written if nothing has changed, not even the time.
func (a *Applier) report(ctx context.Context, i Installation, made []deploy.Object, ready metav1.Condition) error {
	version, err := deploy.Version()
	if err != nil {
		return err
	}
	ready.Type, ready.ObservedGeneration, ready.LastTransitionTime = conditionReady, i.Generation, metav1.NewTime(time.Now().Truncate(time.Second))
	if last := i.Ready(); last != nil && last.Status == ready.Status {
		ready.LastTransitionTime = last.LastTransitionTime
	}
	status := Status{ObservedGeneration: i.Generation, Version: version, Objects: []Reference{}, Conditions: []metav1.Condition{ready}}
	for _, o := range made {
		status.Objects = append(status.Objects, Reference{o.APIVersion, o.Kind, o.Namespace, o.Name})
	}
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
