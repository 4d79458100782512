package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// pageItems is how many objects are read at once where the API server cannot stream them, so that few are in memory as
// they are stored.
const pageItems = 500

// key names an object within a feed.
type key = types.NamespacedName

// feed is one watched resource: what of it has changed since that was last taken. Of each object only the newest state
// waits, so that the feed is bounded by what there is.
//
// A Reflector fills it: it lists, watches, and lists again when the API server has forgotten where the watch was.
type feed struct {
	name  string // of the resource, for messages
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// convert makes of an object what is kept; nil if the object is as good as not there. It is called by one goroutine
	// at a time.
	convert func(runtime.Object) any
	// apply brings what was taken into the picture. whole: the items are all that there are.
	apply func(t *turn, items map[key]any, whole bool)
	// optional: the feed need not be readable for the picture to be complete.
	optional bool
	notice   func()
	stop     context.CancelFunc

	mu      sync.Mutex
	items   map[key]any // nil values: the object is gone
	whole   bool
	synced  bool
	closing bool // nothing is to come any more
	failure error
}

// run fills the feed until ctx ends.
func (f *feed) run(ctx context.Context) {
	lw := &cache.ListWatch{ListWithContextFunc: f.pages, WatchFuncWithContext: f.follow}
	silent := logr.Discard() // what goes wrong is told by trouble
	r := cache.NewReflectorWithOptions(lw, nil, f, cache.ReflectorOptions{Name: f.name, Logger: &silent, Clock: hurried{ctx: ctx}})
	r.RunWithContext(klog.NewContext(ctx, silent))
}

// pages reads the whole list page by page and keeps of each object what is converted.
func (f *feed) pages(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	out := &metav1.List{}
	o.Limit, o.ResourceVersion, o.ResourceVersionMatch = pageItems, "", "" // pages are of the newest state only
	for {
		page, err := f.list(ctx, o)
		if err != nil {
			f.failed(err)
			return nil, err
		}
		err = meta.EachListItem(page, func(item runtime.Object) error {
			e, err := f.transform(item)
			if err == nil {
				out.Items = append(out.Items, runtime.RawExtension{Object: e.(*entry)})
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		m, err := meta.ListAccessor(page)
		if err != nil {
			return nil, err
		}
		out.ResourceVersion, o.Continue = m.GetResourceVersion(), m.GetContinue()
		if o.Continue == "" {
			return out, nil
		}
	}
}

func (f *feed) follow(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := f.watch(ctx, o)
	f.failed(err)
	return w, err
}

// failed notes why the resource cannot be read; nil when it can. That the place of a watch was forgotten, or a way of
// listing is not offered, is in the order of things.
func (f *feed) failed(err error) {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || errors.Is(err, context.Canceled) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing || err == nil && f.failure == nil {
		return
	}
	f.failure = err
	f.notice()
}

// trouble is why the feed cannot be read, in words; nil if it can.
func (f *feed) trouble() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch err := f.failure; {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("may not be read: %w; give lateend's service account the right to list and watch them", err)
	case f.synced:
		return fmt.Errorf("cannot be watched, what was last read of them stays in force: %w", err)
	case unserved(err):
		return fmt.Errorf("none of them is in force, and what else there is does not wait for them: %w", err)
	default:
		return fmt.Errorf("cannot be read, and nothing is in force before they are: %w", err)
	}
}

// settled reports whether the feed was read once, or need not be: a kind that is served in no version that we read has no
// objects for us.
func (f *feed) settled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced || f.closing || f.optional && f.failure != nil || unserved(f.failure)
}

func unserved(err error) bool {
	_, so := errors.AsType[*unservedError](err)
	return so
}

// end stops the feed and leaves word that all its objects are gone.
func (f *feed) end() {
	f.stop()
	f.mu.Lock()
	f.items, f.whole, f.closing, f.failure = nil, true, true, nil
	f.mu.Unlock()
	f.notice()
}

// closed reports whether the feed was stopped.
func (f *feed) closed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closing
}

// ended reports whether the feed is stopped and the word of it was taken.
func (f *feed) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closing && !f.whole
}

// take returns what has changed. whole: it is all that there is.
func (f *feed) take() (items map[key]any, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	items, whole = f.items, f.whole
	f.items, f.whole = nil, false
	return items, whole
}

func (f *feed) put(k key, value any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil
	}
	if f.items == nil {
		f.items = map[key]any{}
	}
	f.items[k] = value
	f.notice()
	return nil
}

// Add implements cache.ReflectorStore.
func (f *feed) Add(obj any) error {
	e, err := f.transform(obj)
	if err != nil {
		return err
	}
	return f.put(e.(*entry).key, e.(*entry).value)
}

// Update implements cache.ReflectorStore.
func (f *feed) Update(obj any) error { return f.Add(obj) }

// Delete implements cache.ReflectorStore.
func (f *feed) Delete(obj any) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	return f.put(key{Namespace: m.GetNamespace(), Name: m.GetName()}, nil)
}

// Replace implements cache.ReflectorStore.
func (f *feed) Replace(list []any, _ string) error {
	items := make(map[key]any, len(list))
	for _, obj := range list {
		e, err := f.transform(obj)
		if err != nil {
			return err
		}
		if entry := e.(*entry); entry.value != nil {
			items[entry.key] = entry.value
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closing {
		f.items, f.whole, f.synced = items, true, true
		f.notice()
	}
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (f *feed) Resync() error { return nil }

// Transformer implements cache.TransformingStore: even the first list is not held as it is stored.
func (f *feed) Transformer() cache.TransformFunc { return f.transform }

func (f *feed) transform(obj any) (any, error) {
	if e, done := obj.(*entry); done {
		return e, nil
	}
	o, ok := obj.(runtime.Object)
	if !ok {
		return nil, fmt.Errorf("read %s: %T is no object", f.name, obj)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	e := &entry{key: key{Namespace: m.GetNamespace(), Name: m.GetName()}}
	e.value = f.convert(o)
	return e, nil
}

// entry is an object after its conversion, on its way through client-go.
type entry struct {
	key
	value any
}

// GetObjectKind implements runtime.Object.
func (e *entry) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object; what was converted is not changed any more.
func (e *entry) DeepCopyObject() runtime.Object { c := *e; return &c }

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (e *entry) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name}
}

// hurried is the clock whose waits end with a context, which a Reflector does not look at while it backs off.
type hurried struct {
	clock.RealClock
	ctx context.Context
}

// After implements clock.Clock.
func (c hurried) After(d time.Duration) <-chan time.Time {
	out := make(chan time.Time, 1)
	wait, cancel := context.WithTimeout(c.ctx, d)
	context.AfterFunc(wait, func() {
		cancel()
		out <- time.Now()
	})
	return out
}
