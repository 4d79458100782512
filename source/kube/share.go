package kube

import (
	"context"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// shareTimeout bounds the reading and making of a Secret.
const shareTimeout = 30 * time.Second

// Share returns what is in a Secret of the namespace that this server runs in. If there is none it is made of files; of
// several servers that begin at once each gets the same.
func Share(ctx context.Context, at *Cluster, name string, files map[string][]byte) (map[string][]byte, error) {
	c, err := newClients(at)
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	ctx, stop := context.WithTimeout(ctx, shareTimeout)
	defer stop()
	namespace := ownNamespace()
	read := func() (*core.Secret, error) {
		out := &core.Secret{}
		err := c.core.Get().Namespace(namespace).Resource("secrets").Name(name).Do(ctx).Into(out)
		return out, err
	}
	found, err := read()
	if apierrors.IsNotFound(err) {
		own := &core.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Type: core.SecretTypeOpaque, Data: files}
		err = c.core.Post().Namespace(namespace).Resource("secrets").Body(own).Do(ctx).Error()
		if err == nil {
			return files, nil
		}
		if apierrors.IsAlreadyExists(err) { // somebody was faster
			found, err = read()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("share what is in the Secret %s/%s: %w", namespace, name, err)
	}
	return found.Data, nil
}
