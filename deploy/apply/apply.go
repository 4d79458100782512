// Package apply puts an installation in force in a cluster, tells what would change, and takes it away again.
//
// In come a wanted installation and a client of the cluster; out go progress, one step for each component, and a record in
// the cluster of what was wanted and what was made: an Installation of lateen.dev. What the objects are says package
// deploy. The package must not know who asks: a person at a terminal or a program of the cluster. All methods may be
// called concurrently, but two that change one revision undo each other's work.
package apply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/lateen-mesh/lateen/deploy"
)

// Manager is who owns the fields of what is installed, in Kubernetes' managedFields: one name, so that an installation can
// pass from a person to a program.
const Manager = "lateen"

// Config is what an Applier works with.
type Config struct {
	// Client reaches the cluster.
	Client dynamic.Interface
	// Tell gets each step when it has begun, when what it waits for changes, and when it has ended; nil: nobody. It is
	// called by one goroutine at a time.
	Tell func(Step)
}

// Step is how far a component is.
type Step struct {
	// Component is what is installed, such as "lateend".
	Component string
	// Text is what was done, or what is waited for.
	Text string
	// Done says that the step has ended, after Took; Err is why it has not worked.
	Done bool
	Took time.Duration
	Err  error
	// Warning says that Text is something odd, which ends no step.
	Warning bool
}

// Applier changes a cluster.
type Applier struct {
	client dynamic.Interface
	tell   func(Step)
}

// New builds an Applier.
func New(c Config) *Applier {
	if c.Tell == nil {
		c.Tell = func(Step) {}
	}
	return &Applier{client: c.Client, tell: c.Tell}
}

// Change is what became of an object.
type Change string

// What can become of an object.
const (
	Created   Change = "created"
	Changed   Change = "changed"
	Unchanged Change = "unchanged"
	Deleted   Change = "deleted"
)

// resource is where the API server has objects of a kind.
func (a *Applier) resource(o deploy.Object) (dynamic.ResourceInterface, error) {
	k, err := deploy.KindOf(o)
	if err != nil {
		return nil, err
	}
	if k.Namespaced {
		return a.client.Resource(k.Resource).Namespace(o.Namespace), nil
	}
	return a.client.Resource(k.Resource), nil
}

// live is an object as it is in the cluster; nil: it is not there.
func (a *Applier) live(ctx context.Context, o deploy.Object) (*unstructured.Unstructured, error) {
	r, err := a.resource(o)
	if err != nil {
		return nil, err
	}
	got, err := r.Get(ctx, o.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w%s", o, err, next(err))
	}
	return got, nil
}

// apply puts one object in force, and says what that has changed. What others have made of our fields is put back, with a
// warning; a definition that is another's stays as it is.
func (a *Applier) apply(ctx context.Context, component string, o deploy.Object) (Change, error) {
	before, err := a.live(ctx, o)
	if err != nil {
		return "", err
	}
	if before != nil && before.GetAnnotations()[annotationRelease] != "" {
		return "", fmt.Errorf("%s is of Helm's release %s: change it with `helm upgrade`, or run `helm uninstall` first", o, before.GetAnnotations()[annotationRelease])
	}
	if same, err := alike(o, before); err != nil || same {
		return Unchanged, err
	}
	after, err := a.patch(ctx, o, metav1.PatchOptions{FieldManager: Manager})
	if apierrors.IsConflict(err) {
		if o.Kind == definition {
			a.tell(Step{Component: component, Warning: true, Text: fmt.Sprintf("%s is another's and stays as it is (%s)", o, causes(err))})
			return Unchanged, nil
		}
		a.tell(Step{Component: component, Warning: true, Text: fmt.Sprintf("%s was changed by others, and is as it should be again (%s)", o, causes(err))})
		force := true
		after, err = a.patch(ctx, o, metav1.PatchOptions{FieldManager: Manager, Force: &force})
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("apply %s: %w%s", o, err, next(err))
	case before == nil:
		return Created, nil
	case bare(before) != bare(after): // a resourceVersion tells too much: others write a status, or which fields are theirs
		return Changed, nil
	}
	return Unchanged, nil
}

// definition is the kind of definitions of kinds.
const definition = "CustomResourceDefinition"

func (a *Applier) patch(ctx context.Context, o deploy.Object, options metav1.PatchOptions) (*unstructured.Unstructured, error) {
	r, err := a.resource(o)
	if err != nil {
		return nil, err
	}
	value, err := o.Value()
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", o, err)
	}
	return r.Patch(ctx, o.Name, types.ApplyPatchType, data, options)
}

// causes are the fields of a conflict, and whose they are.
func causes(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return err.Error()
	}
	var out []string
	for _, c := range status.Status().Details.Causes {
		out = append(out, c.Message+": "+c.Field)
	}
	return strings.Join(out, "; ")
}

// next is what to do about an answer of the API server.
func next(err error) string {
	switch {
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), ":"+deploy.Namespace+":"+OperatorName+`"`):
		return "; the operator may not give what it has not: name the namespaces also with `lateen operator init --set secretNamespaces={...}`, or bring it up to date with `lateen operator init`"
	case apierrors.IsForbidden(err):
		return "; use an account that may do it, such as one with the ClusterRole cluster-admin"
	case apierrors.IsUnauthorized(err):
		return "; log in again, or name another user with --user"
	case apierrors.IsInvalid(err):
		return "; if a field is immutable, delete the object and run the command again"
	}
	return ""
}

// reference is an object by its name alone.
func reference(u *unstructured.Unstructured) deploy.Object {
	return deploy.Object{APIVersion: u.GetAPIVersion(), Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()}
}

// made are the objects in the cluster that bear the label of a revision's installation, those that were applied last
// first.
func (a *Applier) made(ctx context.Context, revision string) ([]deploy.Object, error) {
	var out []deploy.Object
	for _, k := range deploy.Kinds() {
		if k.Name == definition {
			continue
		}
		list, err := a.client.Resource(k.Resource).List(ctx, metav1.ListOptions{LabelSelector: LabelInstallation + "=" + revision})
		if apierrors.IsNotFound(err) {
			continue // a kind that this cluster does not know
		}
		if err != nil {
			return nil, fmt.Errorf("look for what is installed: list %s: %w%s", k.Resource.Resource, err, next(err))
		}
		for _, u := range list.Items {
			out = append(out, reference(&u))
		}
	}
	slices.Reverse(out)
	return out, nil
}

// LabelInstallation is on all that an installation has made; its value is the revision.
const LabelInstallation = "lateen.dev/installation"

// delete takes one object away, and what it owns after it.
func (a *Applier) delete(ctx context.Context, o deploy.Object) error {
	r, err := a.resource(o)
	if err != nil {
		return err
	}
	policy := metav1.DeletePropagationBackground
	if err := r.Delete(ctx, o.Name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w%s", o, err, next(err))
	}
	return nil
}

// prune takes away what a former installation of the revision has made and this one does not.
func (a *Applier) prune(ctx context.Context, revision string, keep []deploy.Object) ([]deploy.Object, error) {
	there, err := a.made(ctx, revision)
	if err != nil {
		return nil, err
	}
	gone := slices.DeleteFunc(there, func(o deploy.Object) bool {
		return slices.ContainsFunc(keep, func(k deploy.Object) bool { return k.String() == o.String() })
	})
	for _, o := range gone {
		if err := a.delete(ctx, o); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

// core is the resource of one of Kubernetes' core kinds.
func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}
