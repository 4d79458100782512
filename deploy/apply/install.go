package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/deploy"
)

// reportTimeout bounds the last words of an installation that was interrupted.
const reportTimeout = 10 * time.Second

// tally counts what became of objects.
type tally map[Change]int

// String tells it, such as "14 created, 2 unchanged".
func (t tally) String() string {
	var out []string
	for _, c := range []Change{Created, Changed, Deleted, Unchanged} {
		if t[c] > 0 {
			out = append(out, fmt.Sprintf("%d %s", t[c], c))
		}
	}
	return cmp.Or(strings.Join(out, ", "), "nothing to do")
}

// ErrSuperseded as the cause of a context's end says that somebody else goes on: nothing is written down of the end.
var ErrSuperseded = errors.New("something newer is wanted")

// Install writes down an installation and makes it. It waits until all of it is ready, for as long as wait says in all; 0: it
// does not wait. What has gone wrong is recorded, too.
func (a *Applier) Install(ctx context.Context, i Installation, wait time.Duration) error {
	if _, err := i.Render(); err != nil {
		return err
	}
	ctx, cancel := within(ctx, wait)
	defer cancel()
	if err := a.Ground(ctx); err != nil {
		return err
	}
	i, err := a.want(ctx, i)
	if err != nil {
		return err
	}
	return a.make(ctx, i, wait)
}

// Keep makes an installation as the cluster's record of it, which was just read, wants it, or repairs it; it waits as Install
// does. If there is a fault in what is wanted the record says so, and what was wanted before it is kept. It stands on what
// Ground makes.
func (a *Applier) Keep(ctx context.Context, i Installation, wait time.Duration) error {
	if _, err := i.Render(); err != nil {
		return a.refuse(ctx, i, err)
	}
	ctx, cancel := within(ctx, wait)
	defer cancel()
	return a.make(ctx, i, wait)
}

// within bounds a context; wait 0: not.
func within(ctx context.Context, wait time.Duration) (context.Context, context.CancelFunc) {
	if wait == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, wait, fmt.Errorf("it was not ready within %v", wait))
}

// refuse writes down a fault in what is wanted, and keeps what was wanted before.
func (a *Applier) refuse(ctx context.Context, i Installation, fault error) error {
	text := fmt.Sprintf("%s; correct it with `kubectl edit installation %s`", strings.TrimSpace(fault.Error()), i.Name)
	before := i
	if i.Status != nil && i.Status.Applied != nil {
		text, before.Spec = text+"; what was wanted before stays in force", *i.Status.Applied
	}
	r := &record{applier: a, i: i}
	if err := r.say(ctx, metav1.ConditionFalse, reasonInvalid, text); err != nil {
		return err
	}
	a.tell(Step{Component: i.Name, Warning: true, Text: text})
	objects, err := before.Render()
	if err != nil {
		return nil //nolint:nilerr // the fault was told; there is nothing that could be kept
	}
	return a.raise(ctx, i.Name, objects, false)
}

// make makes an installation that was written down.
func (a *Applier) make(ctx context.Context, i Installation, wait time.Duration) error {
	objects, err := i.Render()
	if err != nil {
		return err
	}
	r := &record{applier: a, i: i, objects: objects}
	if last := i.Ready(); last == nil || last.ObservedGeneration != i.Generation {
		if err := r.say(ctx, metav1.ConditionFalse, reasonWorking, "under way"); err != nil {
			return err
		}
	}
	// What is waited for stands in the record, too. That it could not be written is told by what is written last.
	told := &Applier{client: a.client, tell: serial(func(s Step) {
		if a.tell(s); s.Text != "" && !s.Done && !s.Warning {
			_ = r.say(ctx, metav1.ConditionFalse, reasonWorking, s.Component+": "+s.Text)
		}
	})}
	err = told.raise(ctx, i.Name, objects, wait > 0)
	if errors.Is(context.Cause(ctx), ErrSuperseded) {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer cancel()
	switch {
	case err != nil:
		return errors.Join(err, r.say(last, metav1.ConditionFalse, reasonFailed, err.Error()))
	case wait == 0:
		return r.say(last, metav1.ConditionUnknown, reasonNotWaited, "it was not waited for")
	}
	return r.say(last, metav1.ConditionTrue, reasonInstalled, "all of it is ready")
}

// Ground makes what all revisions stand on: definitions of kinds, and the namespace.
func (a *Applier) Ground(ctx context.Context) error {
	definitions, stays, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	if stays != "" {
		a.tell(Step{Component: "definitions", Warning: true, Text: stays})
	}
	return a.step(ctx, "definitions", func(say func(string)) (string, error) {
		done, err := a.all(ctx, "definitions", append(definitions, deploy.Ground()))
		if err != nil {
			return "", err
		}
		for _, o := range definitions {
			if err := a.await(ctx, o, established, say); err != nil {
				return "", err
			}
		}
		return done.String(), nil
	})
}

// raise applies the objects in their order and takes away what is no longer wanted. The webhooks come when those whom the
// API server is to ask are ready, so that no pod is refused meanwhile; then the pods that the webhooks make.
func (a *Applier) raise(ctx context.Context, revision string, objects []deploy.Object, wait bool) error {
	var rest, programs, webhooks, injected []deploy.Object
	for _, o := range objects {
		switch {
		case strings.HasSuffix(o.Kind, "WebhookConfiguration"):
			webhooks = append(webhooks, o)
		case o.Kind != "Deployment" && o.Kind != "DaemonSet":
			rest = append(rest, o)
		case takesProxy(o):
			injected = append(injected, o)
		default:
			programs = append(programs, o)
		}
	}
	err := a.step(ctx, "rights and configuration", func(func(string)) (string, error) {
		done, err := a.all(ctx, "rights and configuration", rest)
		return done.String(), err
	})
	if err != nil {
		return err
	}
	for _, group := range [][]deploy.Object{programs, webhooks, injected} {
		if err := a.each(ctx, group, wait); err != nil {
			return err
		}
	}
	gone, err := a.prune(ctx, revision, objects)
	if err != nil || len(gone) == 0 {
		return err
	}
	return a.step(ctx, "no longer wanted", func(func(string)) (string, error) { return "deleted " + list(gone), nil })
}

// list names objects.
func list(objects []deploy.Object) string {
	names := make([]string, len(objects))
	for i, o := range objects {
		names[i] = o.String()
	}
	return strings.Join(names, ", ")
}

// takesProxy reports whether the webhook makes the proxies of a workload's pods.
func takesProxy(o deploy.Object) bool {
	value, err := o.Value()
	if err != nil {
		return false
	}
	label, _, _ := unstructured.NestedString(value, "spec", "template", "metadata", "labels", "sidecar.istio.io/inject")
	return label == "true"
}

// all applies objects one after the other.
func (a *Applier) all(ctx context.Context, component string, objects []deploy.Object) (tally, error) {
	out := tally{}
	for _, o := range objects {
		change, err := a.apply(ctx, component, o)
		if err != nil {
			return out, err
		}
		out[change]++
	}
	return out, nil
}

// each applies objects, and waits for all of them together: each is a component. All faults are told.
func (a *Applier) each(ctx context.Context, objects []deploy.Object, wait bool) error {
	faults := make([]error, len(objects))
	var g sync.WaitGroup
	quiet := &Applier{client: a.client, tell: serial(a.tell)}
	for i, o := range objects {
		g.Go(func() {
			faults[i] = quiet.step(ctx, o.Name, func(say func(string)) (string, error) {
				change, err := quiet.apply(ctx, o.Name, o)
				if err != nil || !wait {
					return string(change), err
				}
				return string(change) + ", ready", quiet.await(ctx, o, checks[o.Kind], say)
			})
		})
	}
	g.Wait()
	return errors.Join(slices.DeleteFunc(faults, func(err error) bool { return err == nil })...)
}

// serial has one goroutine at a time tell.
func serial(tell func(Step)) func(Step) {
	var mu sync.Mutex
	return func(s Step) {
		mu.Lock()
		defer mu.Unlock()
		tell(s)
	}
}

// step tells of a component: that it has begun, what it waits for, and its end.
func (a *Applier) step(ctx context.Context, component string, do func(say func(string)) (string, error)) error {
	begin := time.Now()
	a.tell(Step{Component: component})
	last := ""
	text, err := do(func(text string) {
		if text != last {
			last = text
			a.tell(Step{Component: component, Text: text, Took: time.Since(begin)})
		}
	})
	if cause := context.Cause(ctx); err != nil && errors.Is(err, ctx.Err()) && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", component, err)
	}
	a.tell(Step{Component: component, Text: text, Done: true, Took: time.Since(begin), Err: err})
	return err
}

// check says whether an object is ready, and if not, what is missing.
type check func(o *unstructured.Unstructured) (missing string)

// checks are those of the kinds that are waited for.
var checks = map[string]check{
	"Deployment":                     rolledOut,
	"DaemonSet":                      onAllNodes,
	"MutatingWebhookConfiguration":   believed,
	"ValidatingWebhookConfiguration": believed,
}
