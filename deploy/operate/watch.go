package operate

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// readyWithin is how long an installation has to become ready before its record says that it has not.
const readyWithin = 5 * time.Minute

// The annotations of what is kept of an object: by which it is seen whether it has changed, and who has written it last.
const (
	fingerprint = "fingerprint"
	writer      = "writer"
)

// watch has keepers know what happens in the cluster. They and the watches end with ctx, and are of the group.
func (o *Operator) watch(ctx context.Context, group *sync.WaitGroup, ground *keeper) {
	var definitions []string
	if list, err := deploy.Definitions(); err == nil { // they were just applied
		for _, d := range list {
			definitions = append(definitions, d.Name)
		}
	}
	for _, k := range deploy.Kinds() {
		if k.Resource.Resource == "customresourcedefinitions" {
			o.follow(ctx, group, o.heads(k.Resource), events(func(old, _ *metav1.PartialObjectMetadata) {
				if old != nil && slices.Contains(definitions, old.Name) {
					ground.wake()
				}
			}))
			continue
		}
		o.follow(ctx, group, o.objects(k.Resource, apply.LabelInstallation), events(func(old, now *metav1.PartialObjectMetadata) {
			o.mu.Lock()
			defer o.mu.Unlock()
			for _, u := range []*metav1.PartialObjectMetadata{old, now} { // the label may be what has changed
				if u == nil || o.keepers[u.Labels[apply.LabelInstallation]] == nil {
					continue
				}
				// What somebody else does may be what is waited for in vain.
				if keeper := o.keepers[u.Labels[apply.LabelInstallation]]; now == nil || now.Annotations[writer] != apply.Manager {
					keeper.interrupt()
				} else {
					keeper.wake()
				}
			}
		}))
	}
	o.follow(ctx, group, o.objects(deploy.Installations, ""), events(func(old, now *metav1.PartialObjectMetadata) {
		if now == nil {
			now = old // its keeper finds that it is gone
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		keeper := o.keepers[now.Name]
		if keeper == nil {
			keeper = o.keeper(now.Name)
			o.keepers[now.Name] = keeper
			group.Go(func() { o.keep(ctx, keeper) })
		}
		if old != nil && (old.Generation != now.Generation || now.DeletionTimestamp != nil && old.DeletionTimestamp == nil) {
			keeper.interrupt()
		} else {
			keeper.wake()
		}
	}))
}

// keeper keeps the installation of a revision.
func (o *Operator) keeper(revision string) *keeper {
	a := o.applier(revision)
	k := newKeeper(revision, o.log, nil)
	k.pass = func(ctx context.Context) error {
		i, err := a.Find(ctx, revision)
		switch {
		case err != nil:
			return err
		case i == nil:
			return errGone
		case i.DeletionTimestamp != nil:
			k.remove(true)
			defer k.remove(false)
			return o.finish(ctx, a, *i)
		}
		if err := a.Hold(ctx, *i); err != nil {
			return err
		}
		return a.Keep(ctx, *i, readyWithin)
	}
	return k
}

// finish takes an installation away. Of several that are deleted at once the last one takes what they share, so that they go
// one after the other.
func (o *Operator) finish(ctx context.Context, a *apply.Applier, i apply.Installation) error {
	select {
	case o.removing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-o.removing }()
	return a.Finish(ctx, i, readyWithin)
}

// keep runs a keeper until its Installation is gone for good: another one may come under the same name.
func (o *Operator) keep(ctx context.Context, k *keeper) {
	for {
		k.run(ctx)
		o.mu.Lock()
		if len(k.events) == 0 || ctx.Err() != nil {
			delete(o.keepers, k.name)
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
	}
}

// source is what is watched.
type source struct {
	resource schema.GroupVersionResource
	list     func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch    func(context.Context, metav1.ListOptions) (watch.Interface, error)
	example  runtime.Object
}

// objects are those of a kind that have a label; "": all of them.
func (o *Operator) objects(resource schema.GroupVersionResource, label string) source {
	client := o.client.Resource(resource)
	return source{
		resource,
		func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.LabelSelector = label
			return client.List(ctx, options)
		},
		func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = label
			return client.Watch(ctx, options)
		},
		&unstructured.Unstructured{},
	}
}

// heads are the metadata of all objects of a kind.
func (o *Operator) heads(resource schema.GroupVersionResource) source {
	client := o.metadata.Resource(resource)
	return source{
		resource,
		func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, options)
		},
		client.Watch, &metav1.PartialObjectMetadata{},
	}
}

// follow watches until ctx ends, on goroutines of the group.
func (o *Operator) follow(ctx context.Context, group *sync.WaitGroup, s source, handler cache.ResourceEventHandler) {
	informer := cache.NewSharedIndexInformerWithOptions(&cache.ListWatch{ListWithContextFunc: s.list, WatchFuncWithContext: s.watch}, s.example, cache.SharedIndexInformerOptions{})
	told := ""
	err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			o.log.Warn("what happens cannot be seen", "resource", s.resource.Resource, "cause", err)
		}
	})
	if err == nil {
		err = informer.SetTransform(trim)
	}
	if err == nil {
		_, err = informer.AddEventHandler(handler)
	}
	if err != nil {
		panic(fmt.Sprintf("an informer that has not started takes everything: %v", err))
	}
	group.Go(func() { informer.RunWithContext(ctx) })
}

// trim keeps of an object what is needed to know whether it has changed.
func trim(in any) (any, error) {
	u, is := in.(*unstructured.Unstructured)
	if !is {
		return in, nil
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: u.GetName(), Namespace: u.GetNamespace(), Labels: u.GetLabels(), ResourceVersion: u.GetResourceVersion(), UID: u.GetUID(),
		Generation: u.GetGeneration(), DeletionTimestamp: u.GetDeletionTimestamp(),
		Annotations: map[string]string{fingerprint: apply.Fingerprint(u), writer: lastWriter(u.GetManagedFields())},
	}}, nil
}

// lastWriter is who has written an object last, but for its status. Of two in one second it is the other one than us.
func lastWriter(fields []metav1.ManagedFieldsEntry) string {
	var last metav1.ManagedFieldsEntry
	for _, f := range fields {
		if f.Subresource != "" || f.Time == nil {
			continue
		}
		if last.Time == nil || last.Time.Before(f.Time) || last.Time.Equal(f.Time) && last.Manager == apply.Manager {
			last = f
		}
	}
	return last.Manager
}

// events has a function know what has come, where there was no old one, what has changed, and what has gone, where there is
// none now.
func events(happened func(old, now *metav1.PartialObjectMetadata)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(now any) {
			if n, is := now.(*metav1.PartialObjectMetadata); is {
				happened(nil, n)
			}
		},
		UpdateFunc: func(old, now any) {
			was, is := old.(*metav1.PartialObjectMetadata)
			n, too := now.(*metav1.PartialObjectMetadata)
			if is && too && (was.Annotations[fingerprint] != n.Annotations[fingerprint] || was.Generation != n.Generation) {
				happened(was, n)
			}
		},
		DeleteFunc: func(old any) {
			if last, unknown := old.(cache.DeletedFinalStateUnknown); unknown {
				old = last.Obj
			}
			if last, is := old.(*metav1.PartialObjectMetadata); is {
				happened(last, nil)
			}
		},
	}
}
