package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
)

// PluggedSecret is the Secret of an authority that somebody else made, Istio's name. It counts before our own.
const PluggedSecret = "cacerts" //nolint:gosec // a name

// The annotations of our own Secret that replace the root: the first is the operator's and says how long old and new
// overlap ("24h"), the second is ours and says when the present half has begun.
const (
	AnnotationRotate  = "lateen.dev/rotate"
	annotationRotated = "lateen.dev/rotated"
)

// AnnotationForce on a Secret of the authority's keys, "true", has them taken over though workloads may not believe each other
// for a while.
const AnnotationForce = "lateen.dev/force"

// keysTimeout bounds the reading and making of a Secret.
const keysTimeout = 30 * time.Second

// Keys are what the authority of all servers signs with.
type Keys struct {
	// Secret is where they are, namespace/name.
	Secret string
	// Files are they.
	Files map[string][]byte
	// Forced: by AnnotationForce.
	Forced bool
	// Trusted are the roots that a control plane of ours has told the workloads of, as PEM, where the keys are those of
	// PluggedSecret and were just read; empty: it is not known.
	Trusted []byte
}

func keysOf(s *core.Secret) Keys {
	return Keys{Secret: s.Namespace + "/" + s.Name, Files: s.Data, Forced: s.Annotations[AnnotationForce] == "true"}
}

// ReadKeys returns what is in PluggedSecret of the namespace that this server runs in, or else in the Secret own. If
// neither is there own is made, of fresh; of several servers that begin at once each gets the same.
func ReadKeys(ctx context.Context, at *Cluster, own string, fresh func() (map[string][]byte, error)) (Keys, error) {
	c, err := newClients(at)
	if err != nil {
		return Keys{}, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	ctx, stop := context.WithTimeout(ctx, keysTimeout)
	defer stop()
	namespace := ownNamespace()
	for {
		for _, name := range []string{PluggedSecret, own} {
			at, found := namespace+"/"+name, &core.Secret{}
			err := c.core.Get().Namespace(namespace).Resource("secrets").Name(name).Do(ctx).Into(found)
			if err == nil {
				keys := keysOf(found)
				if name == PluggedSecret {
					keys.Trusted, err = published(ctx, c, namespace)
				}
				return keys, err
			}
			if !apierrors.IsNotFound(err) {
				return Keys{}, fmt.Errorf("read the authority's keys in the Secret %s: %w", at, err)
			}
		}
		files, err := fresh()
		if err != nil {
			return Keys{}, err
		}
		secret := &core.Secret{ObjectMeta: metav1.ObjectMeta{Name: own, Namespace: namespace}, Type: core.SecretTypeOpaque, Data: files}
		err = c.core.Post().Namespace(namespace).Resource("secrets").Body(secret).Do(ctx).Error()
		if err == nil {
			return keysOf(secret), nil
		}
		if !apierrors.IsAlreadyExists(err) { // else somebody was faster
			return Keys{}, fmt.Errorf("make the Secret %s/%s of the authority's keys: %w", namespace, own, err)
		}
	}
}

// published are the roots that a control plane of ours has written for a namespace, as PEM; empty: none has. Those of Istio,
// whose place is taken, do not count.
func published(ctx context.Context, c *clients, namespace string) ([]byte, error) {
	list := &core.ConfigMapList{}
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", RootsName).String()}
	err := c.core.Get().Namespace(namespace).Resource("configmaps").VersionedParams(&only, metav1.ParameterCodec).Do(ctx).Into(list)
	if err != nil {
		return nil, fmt.Errorf("read the roots that workloads trust: %w", err)
	}
	for _, m := range list.Items {
		ours := slices.ContainsFunc(m.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == userAgent })
		if m.Name == RootsName && ours {
			return []byte(m.Data[RootsKey]), nil
		}
	}
	return nil, nil
}

// secret watches one Secret of lateend's namespace.
func (s *Store) secret(name string) *feed {
	whole := func(o runtime.Object) any { return o }
	return s.single(s.api.core, "secrets", key{Namespace: ownNamespace(), Name: name}, &core.SecretList{}, whole, nil)
}

// followKeys tells of the authority's keys whenever they differ, until ctx ends. Every server does so.
func (s *Store) followKeys(ctx context.Context) {
	feeds := [2]*feed{s.secret(PluggedSecret), s.secret(s.config.Keys)}
	var have [2]*core.Secret
	told := ""
	s.tend(ctx, func(n []news) {
		for i, x := range n {
			if x.whole {
				have[i] = nil
			}
			for _, item := range x.items {
				have[i], _ = item.(*core.Secret)
			}
		}
		for j, secret := range have {
			if err := feeds[j].trouble(); err != nil || !feeds[j].settled() {
				s.keysTrouble(err, &told)
				return
			}
			if secret != nil {
				s.keysTrouble(s.config.UseKeys(keysOf(secret)), &told)
				return
			}
		}
		s.keysTrouble(fmt.Errorf("the Secret %s/%s is gone; this server goes on with the keys that it has, but none can start: restore it from a copy",
			ownNamespace(), s.config.Keys), &told)
	}, feeds[:]...)
}

// keysTrouble logs what differs from what was told last.
func (s *Store) keysTrouble(err error, told *string) {
	text := ""
	if err != nil && !errors.Is(err, context.Canceled) {
		text = err.Error()
	}
	if text != *told && text != "" {
		s.log.Error("the authority's keys cannot be taken over; the present ones serve on", "cause", text)
	}
	*told = text
}

// rotate replaces the authority's root when our Secret's annotation asks for it, or it is time, until ctx ends, which it
// does when this server leads no more.
func (s *Store) rotate(ctx context.Context) {
	var secret *core.Secret
	told := ""
	s.tend(ctx, func(n []news) {
		for _, item := range n[0].items {
			secret, _ = item.(*core.Secret)
		}
		if secret == nil {
			return
		}
		next, err := s.turned(secret)
		if err == nil && next != nil {
			err = s.api.core.Put().Namespace(next.Namespace).Resource("secrets").Name(next.Name).Body(next).Do(ctx).Error()
		}
		switch {
		case err == nil && next != nil:
			s.log.Info("a step in the replacement of the authority's root", "secret", next.Namespace+"/"+next.Name,
				"overlap", next.Annotations[AnnotationRotate], "since", next.Annotations[annotationRotated])
			secret = nil // until it comes back as it is now
		case err == nil, apierrors.IsConflict(err), apierrors.IsNotFound(err), ctx.Err() != nil:
		case err.Error() != told:
			told = err.Error()
			s.log.Error("the authority's root cannot be replaced", "secret", secret.Namespace+"/"+secret.Name, "cause", err)
		}
	}, s.secret(s.config.Keys))
}

// turned is our Secret after the step of a rotation that is due; nil if none is.
func (s *Store) turned(secret *core.Secret) (*core.Secret, error) {
	var overlap time.Duration
	var since time.Time
	var err error
	if text := secret.Annotations[AnnotationRotate]; text != "" {
		if overlap, err = time.ParseDuration(text); err != nil || overlap <= 0 {
			return nil, fmt.Errorf("annotation %s %q: write how long the old root and the new one are to overlap, such as 24h", AnnotationRotate, text)
		}
	}
	if text := secret.Annotations[annotationRotated]; text != "" {
		if since, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, fmt.Errorf("annotation %s: %w; remove it, and the present half begins anew", annotationRotated, err)
		}
	}
	files, newOverlap, newSince, err := s.config.RotateKeys(secret.Data, overlap, since)
	if err != nil || newSince.Equal(since) {
		return nil, err
	}
	next := secret.DeepCopy()
	next.Data = files
	next.Annotations = maps.Clone(next.Annotations)
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	if newSince.IsZero() {
		delete(next.Annotations, AnnotationRotate)
		delete(next.Annotations, annotationRotated)
		return next, nil
	}
	next.Annotations[AnnotationRotate], next.Annotations[annotationRotated] = newOverlap.String(), newSince.UTC().Format(time.RFC3339)
	return next, nil
}
