package apply

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lateen-mesh/lateen/deploy"
)

// The operator's names in a cluster.
const (
	// OperatorName is that of its Deployment, its account and its rights, and of the Lease whose holder works.
	OperatorName = "lateen-operator"
	// Finalizer is on each Installation that an operator keeps: its objects go before the Installation does.
	Finalizer = "lateen.dev/operator"
)

// LeaseDuration is how long an operator that has died is taken to work.
const LeaseDuration = 15 * time.Second

// operatorLabel is on the operator's own objects.
const operatorLabel = "app=" + OperatorName

// lease is the operator's.
var lease = deploy.Object{APIVersion: "coordination.k8s.io/v1", Kind: "Lease", Namespace: deploy.Namespace, Name: OperatorName}

// Operated reports whether an operator keeps the cluster's installations. It is one if it holds its Lease, and renews it: if
// that cannot be told by the clock, it is waited for.
func (a *Applier) Operated(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*LeaseDuration)
	defer cancel()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	first := ""
	for begin := time.Now(); ; {
		live, err := a.live(ctx, lease)
		if err != nil || live == nil {
			return false, err
		}
		var l coordination.Lease
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, &l); err != nil {
			return false, fmt.Errorf("read %s: %w", lease, err)
		}
		if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" || l.Spec.RenewTime == nil {
			return false, nil
		}
		first = cmp.Or(first, l.ResourceVersion)
		age := time.Since(l.Spec.RenewTime.Time)
		switch {
		case first != l.ResourceVersion, age >= 0 && age < LeaseDuration:
			return true, nil
		case time.Since(begin) > LeaseDuration:
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("find out whether an operator works: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Ask writes down what is wanted and has the cluster's operator make it. It waits as Install does.
func (a *Applier) Ask(ctx context.Context, i Installation, wait time.Duration) error {
	if _, err := i.Render(); err != nil {
		return err
	}
	ctx, cancel := within(ctx, wait)
	defer cancel()
	i, err := a.want(ctx, i)
	if err != nil || wait == 0 {
		return err
	}
	return a.step(ctx, "operator", func(say func(string)) (string, error) {
		return "all of it is ready", a.follow(ctx, i, say)
	})
}

// follow waits until the record says that an installation is ready.
func (a *Applier) follow(ctx context.Context, wanted Installation, say func(string)) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	why := "the operator has not looked at it"
	for {
		now, err := a.Find(ctx, wanted.Name)
		switch {
		case err != nil && ctx.Err() == nil:
			why = err.Error()
		case err == nil && (now == nil || now.DeletionTimestamp != nil):
			return errors.New("somebody has deleted the Installation")
		case err == nil && now.Generation != wanted.Generation:
			return errors.New("somebody has changed the Installation meanwhile; see `kubectl get installations`")
		case err == nil:
			ready := now.Ready()
			if ready == nil || ready.ObservedGeneration != now.Generation {
				break
			}
			if why = ready.Message; ready.Status == metav1.ConditionTrue {
				return nil
			}
			if ready.Reason == reasonInvalid {
				return errors.New(ready.Message)
			}
		}
		say(why)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s; see `kubectl logs -n %s deploy/%s`", context.Cause(ctx), why, deploy.Namespace, OperatorName)
		case <-tick.C:
		}
	}
}

// Dismiss deletes the Installation of a revision, or with "" all of them, and waits until the operator has taken away what
// belongs to them.
func (a *Applier) Dismiss(ctx context.Context, revision string, wait time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("it was not gone within %v", wait))
	defer cancel()
	installed, err := a.Installed(ctx)
	if err != nil {
		return err
	}
	for _, i := range installed {
		if revision != "" && i.Name != revision {
			continue
		}
		o := deploy.Object{APIVersion: i.APIVersion, Kind: i.Kind, Name: i.Name}
		err := a.step(ctx, "operator", func(say func(string)) (string, error) {
			return "the Installation " + i.Name + " is gone, with its objects", a.end(ctx, o, func(string) {
				if now, err := a.Find(ctx, i.Name); err == nil && now != nil && now.Ready() != nil {
					say(now.Ready().Message)
				}
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Hold sees to it that an Installation stays until its objects are gone.
func (a *Applier) Hold(ctx context.Context, i Installation) error {
	if slices.Contains(i.Finalizers, Finalizer) {
		return nil
	}
	return a.finalizers(ctx, i, append(slices.Clone(i.Finalizers), Finalizer))
}

// release lets an Installation go, of which an operator may have been the keeper.
func (a *Applier) release(ctx context.Context, i Installation) error {
	if !slices.Contains(i.Finalizers, Finalizer) {
		return nil
	}
	return a.finalizers(ctx, i, slices.DeleteFunc(slices.Clone(i.Finalizers), func(f string) bool { return f == Finalizer }))
}

func (a *Applier) finalizers(ctx context.Context, i Installation, to []string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": i.ResourceVersion, "finalizers": to}})
	if err != nil {
		return fmt.Errorf("write the finalizers of the Installation %s: %w", i.Name, err)
	}
	_, err = a.records().Patch(ctx, i.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: Manager})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the finalizers of the Installation %s: %w%s", i.Name, err, next(err))
	}
	return nil
}

// Finish takes away the objects of an Installation that was deleted, and lets it go. The authority's key stays, which nobody
// could make anew: proxies trust what is installed after it. What Helm has installed stays, too, and with it what it needs.
func (a *Applier) Finish(ctx context.Context, i Installation, wait time.Duration) error {
	if !slices.Contains(i.Finalizers, Finalizer) {
		return nil
	}
	rec := &record{applier: a, i: i}
	told := &Applier{client: a.client, tell: serial(func(s Step) {
		if a.tell(s); s.Text != "" && !s.Done && !s.Warning {
			_ = rec.say(ctx, metav1.ConditionFalse, reasonRemoving, s.Component+": "+s.Text) // it says nothing that is needed
		}
	})}
	if err := told.finish(ctx, i.Name, wait); err != nil {
		if errors.Is(context.Cause(ctx), ErrSuperseded) {
			return err
		}
		return errors.Join(err, rec.say(ctx, metav1.ConditionFalse, reasonFailed, "it was deleted, and cannot go: "+err.Error()))
	}
	now, err := a.Find(ctx, i.Name) // what was written down of it has changed it
	if err != nil || now == nil {
		return err
	}
	return a.release(ctx, *now)
}

// finish takes away what an operator takes with a revision.
func (a *Applier) finish(ctx context.Context, revision string, wait time.Duration) error {
	r, helms, err := a.removal(ctx, revision)
	if err != nil {
		return err
	}
	if len(helms) > 0 {
		a.tell(Step{Component: revision, Warning: true, Text: fmt.Sprintf("the Installation %s goes, and %d objects stay that are of Helm's release %s",
			revision, len(helms), helms[0].GetAnnotations()[annotationRelease])})
	}
	r.Objects = slices.DeleteFunc(r.Objects, func(o deploy.Object) bool {
		return o.Kind == deploy.InstallationKind || o.Kind == "Secret"
	})
	return a.Remove(ctx, r, wait)
}

// InitOperator puts an operator in the cluster, or brings the one that is there up to date, and waits until it works.
func (a *Applier) InitOperator(ctx context.Context, objects []deploy.Object, wait time.Duration) error {
	ctx, cancel := within(ctx, wait)
	defer cancel()
	if err := a.Ground(ctx); err != nil {
		return err
	}
	var rest, programs []deploy.Object
	for _, o := range objects {
		if o.Kind == "Deployment" {
			programs = append(programs, o)
		} else {
			rest = append(rest, o)
		}
	}
	err := a.step(ctx, "rights", func(func(string)) (string, error) {
		done, err := a.all(ctx, "rights", rest)
		return done.String(), err
	})
	if err != nil {
		return err
	}
	return a.each(ctx, programs, wait > 0)
}

// RemoveOperator takes the operator away. What it has installed stays, and can be deleted without it.
func (a *Applier) RemoveOperator(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("it was not gone within %v", wait))
	defer cancel()
	var found []unstructured.Unstructured
	for _, k := range slices.Backward(deploy.Kinds()) {
		if k.Name == definition {
			continue
		}
		list, err := a.client.Resource(k.Resource).List(ctx, metav1.ListOptions{LabelSelector: operatorLabel})
		if err != nil {
			return fmt.Errorf("look for the operator: list %s: %w%s", k.Resource.Resource, err, next(err))
		}
		found = append(found, list.Items...)
	}
	r := Removal{Objects: []deploy.Object{lease}}
	for _, u := range found {
		r.Objects = append(r.Objects, reference(&u))
	}
	if err := a.Remove(ctx, r, wait); err != nil {
		return err
	}
	installed, err := a.Installed(ctx)
	for _, i := range installed {
		if err := a.release(ctx, i); err != nil {
			return err
		}
	}
	return err
}
