package apply

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/deploy"
)

// Difference is what would become of an object.
type Difference struct {
	Object deploy.Object
	Change Change
	// Before and After are the whole of it as YAML, without what the cluster alone says; empty: it is not there, or it is
	// unchanged.
	Before, After string
}

// Compare says what Install would do with a revision. It changes nothing: the API server is asked what would come of each
// object.
func (a *Applier) Compare(ctx context.Context, i Installation) ([]Difference, error) {
	objects, err := deploy.Render(i.Config())
	if err != nil {
		return nil, err
	}
	definitions, _, err := a.definitions(ctx)
	if err != nil {
		return nil, err
	}
	var out []Difference
	for _, o := range slices.Concat(definitions, []deploy.Object{deploy.Ground()}, objects) {
		d, err := a.compare(ctx, o)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	there, err := a.made(ctx, i.Name)
	if err != nil {
		return nil, err
	}
	for _, o := range there {
		if slices.ContainsFunc(objects, func(wanted deploy.Object) bool { return wanted.String() == o.String() }) {
			continue
		}
		live, err := a.live(ctx, o)
		if err != nil {
			return nil, err
		}
		if live != nil {
			out = append(out, Difference{Object: o, Change: Deleted, Before: bare(live)})
		}
	}
	return out, nil
}

func (a *Applier) compare(ctx context.Context, o deploy.Object) (Difference, error) {
	d := Difference{Object: o, Change: Created}
	live, err := a.live(ctx, o)
	if err != nil {
		return d, err
	}
	if live == nil {
		d.After, err = Normal(o)
		return d, err
	}
	d.Change = Unchanged
	if same, err := alike(o, live); err != nil || same {
		return d, err
	}
	force := o.Kind != definition // another's definition stays as it is
	after, err := a.patch(ctx, o, metav1.PatchOptions{FieldManager: Manager, Force: &force, DryRun: []string{metav1.DryRunAll}})
	if apierrors.IsConflict(err) {
		after, err = live, nil
	}
	if err != nil {
		return d, fmt.Errorf("ask what would come of %s: %w%s", o, err, next(err))
	}
	if before, after := bare(live), bare(after); after != before {
		d.Change, d.Before, d.After = Changed, before, after
	}
	return d, nil
}

// alike reports whether a definition in the cluster says all that ours does. To have the API server find that out of all of
// them takes it as long as all the rest of an installation.
func alike(o deploy.Object, live *unstructured.Unstructured) (bool, error) {
	if o.Kind != definition || live == nil {
		return false, nil
	}
	ours, err := o.Value()
	return err == nil && says(live.Object, ours), err
}

// says reports whether a value holds all that another one does. Maps may have more.
func says(value, wanted any) bool {
	switch w := wanted.(type) {
	case map[string]any:
		v, is := value.(map[string]any)
		for name := range w {
			if _, there := v[name]; !is || !there || !says(v[name], w[name]) {
				return false
			}
		}
		return is
	case []any:
		v, is := value.([]any)
		return is && slices.EqualFunc(v, w, says)
	}
	return value == wanted
}

// Normal is an object's YAML with its fields in the order that Compare writes, so that two can be compared.
func Normal(o deploy.Object) (string, error) {
	value, err := o.Value()
	if err != nil {
		return "", err
	}
	return bare(&unstructured.Unstructured{Object: value}), nil
}

// bare is an object without what the cluster alone says of it.
func bare(u *unstructured.Unstructured) string {
	object := maps.Clone(u.Object)
	delete(object, "status")
	if metadata, is := object["metadata"].(map[string]any); is {
		metadata = maps.Clone(metadata)
		for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"} {
			delete(metadata, field)
		}
		object["metadata"] = metadata
	}
	text, err := yaml.Marshal(object)
	return cmp.Or(string(text), fmt.Sprint(err))
}

// Fingerprint changes when something about an object does that an installation has to do with: not its status, but whether
// that says that it is ready.
func Fingerprint(u *unstructured.Unstructured) string {
	missing := checks[u.GetKind()]
	sum := sha256.Sum256([]byte(bare(u)))
	return fmt.Sprintf("%x %v", sum, missing == nil || missing(u) == "")
}
