package keep

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"text/template"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// addOns are the rights of kube-proxy and the name server, and the latter's configuration.
//
//go:embed files/addons.yaml
var addOns string

// nameServer is the name server's Deployment, for nodes that have its image.
//
//go:embed files/coredns.yaml
var nameServer string

// apply makes objects that every cluster has.
func (k *Keeper) apply(ctx context.Context, manifest string) error {
	parsed, err := template.New("addons").Option("missingkey=error").Parse(manifest)
	if err != nil {
		return fmt.Errorf("read the cluster's add-ons: %w", err)
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, map[string]any{"Image": nameServerImage, "Address": k.cfg.Layout.DNS()}); err != nil {
		return fmt.Errorf("fill the cluster's add-ons: %w", err)
	}
	client, err := dynamic.NewForConfig(k.config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	documents := yaml.NewYAMLOrJSONDecoder(&text, text.Len())
	for {
		var object unstructured.Unstructured
		err := documents.Decode(&object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the cluster's add-ons: %w", err)
		}
		if err := create(ctx, client, &object); err != nil {
			return err
		}
	}
}

// create tries again while the API server is not there yet in all its parts.
func create(ctx context.Context, client dynamic.Interface, object *unstructured.Unstructured) error {
	// The plurals of these kinds are regular.
	plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
	what := fmt.Sprintf("%s %s to be created", object.GetKind(), object.GetName())
	return poll(ctx, what, func(ctx context.Context) (bool, error) {
		var to dynamic.ResourceInterface = client.Resource(plural)
		if object.GetNamespace() != "" {
			to = client.Resource(plural).Namespace(object.GetNamespace())
		}
		_, err := to.Create(ctx, object, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return true, nil
		}
		return err == nil, err
	})
}

// awaitNameServer waits until there is a name server.
func (k *Keeper) awaitNameServer(ctx context.Context) error {
	return poll(ctx, "the name server", func(ctx context.Context) (bool, error) {
		got, err := k.client.AppsV1().Deployments(metav1.NamespaceSystem).Get(ctx, "coredns", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range got.Status.Conditions {
			if c.Type == appsv1.DeploymentAvailable {
				return c.Status == corev1.ConditionTrue, nil
			}
		}
		return false, nil
	})
}

// awaitAccount waits for the account that pods of the default namespace have.
func (k *Keeper) awaitAccount(ctx context.Context) error {
	return poll(ctx, "the default account", func(ctx context.Context) (bool, error) {
		_, err := k.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
}
