package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// RootsName is the ConfigMap in every namespace that holds the mesh's roots, as PEM under RootsKey: Istio's names.
const (
	RootsName = "istio-ca-root-cert"
	RootsKey  = "root-cert.pem"
)

// labelRoots marks the ConfigMaps of roots, as Istio does.
const labelRoots = "istio.io/config"

// rootsRetry is how long it takes until what could not be written is tried again.
const rootsRetry = 10 * time.Second

// unmeshed are the namespaces that get no roots, as in Istio: nothing of a mesh runs there.
var unmeshed = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// RootsChanged says that what Config.Roots returns is another: it is written wherever it belongs, at once.
func (s *Store) RootsChanged() { s.bell.ring() }

// bell wakes whoever writes the roots: at other roots, and at another namespace.
type bell struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next ring; nil: nobody waits
}

// rung returns a channel that is closed when the bell rings.
func (b *bell) rung() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// news is what was taken of a feed.
type news struct {
	items map[key]any
	whole bool // the items are all that there are
}

// tend runs feeds, and calls act with what has changed of each whenever something has, the bell rings, or it is time to
// try again, until ctx ends.
func (s *Store) tend(ctx context.Context, act func([]news), feeds ...*feed) {
	wake := make(chan struct{}, 1)
	var group sync.WaitGroup
	defer group.Wait()
	for _, f := range feeds {
		f.notice = func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
		group.Go(func() { f.run(ctx) })
	}
	retry := time.NewTicker(s.retry)
	defer retry.Stop()
	for {
		rung := s.bell.rung() // before anything is looked at
		taken := make([]news, len(feeds))
		for i, f := range feeds {
			taken[i].items, taken[i].whole = f.take()
		}
		act(taken)
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-rung:
		case <-retry.C:
		}
	}
}

// distribute keeps the roots in a ConfigMap of every namespace until ctx ends.
func (s *Store) distribute(ctx context.Context) {
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", RootsName).String()}
	read := func(o runtime.Object) any { return o.(*core.ConfigMap).Data[RootsKey] }
	f := s.typed(s.api.core, "configmaps", "", only, &core.ConfigMapList{}, read, nil)
	have := map[string]string{} // by namespace
	s.tend(ctx, func(n []news) {
		if n[0].whole {
			clear(have)
		}
		for k, item := range n[0].items {
			if text, there := item.(string); there {
				have[k.Namespace] = text
			} else {
				delete(have, k.Namespace)
			}
		}
		if f.settled() {
			s.spread(ctx, have)
		}
	}, f)
}

// spread writes the roots where they are missing or not these.
func (s *Store) spread(ctx context.Context, have map[string]string) {
	roots := bytes.TrimSpace(s.config.Roots())
	if len(roots) == 0 {
		return
	}
	text := string(roots) + "\n"
	for _, namespace := range s.namespaces() {
		if have[namespace] == text || slices.Contains(unmeshed, namespace) {
			continue
		}
		if err := s.ration.Wait(ctx); err != nil {
			return
		}
		switch err := s.writeRoots(ctx, namespace, text); {
		case err == nil:
			have[namespace] = text
		case apierrors.IsNotFound(err), ctx.Err() != nil, apierrors.HasStatusCause(err, core.NamespaceTerminatingCause):
			// the namespace is going away, or we are
		default:
			s.log.Log(ctx, slog.LevelWarn, "the mesh's roots cannot be written; pods of this namespace may not start",
				"configmap", namespace+"/"+RootsName, "cause", err)
		}
	}
}

func (s *Store) writeRoots(ctx context.Context, namespace, text string) error {
	raw, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]string{RootsKey: text},
		"metadata": map[string]any{"name": RootsName, "namespace": namespace, "labels": map[string]string{labelRoots: "true"}},
	})
	if err != nil {
		return err
	}
	force := true
	return s.api.core.Patch(types.ApplyPatchType).Namespace(namespace).Resource("configmaps").Name(RootsName).
		VersionedParams(&metav1.PatchOptions{FieldManager: userAgent, Force: &force}, metav1.ParameterCodec).Body(raw).Do(ctx).Error()
}

// namespaces are those of the cluster, sorted.
func (s *Store) namespaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name := range s.picture.networks {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
