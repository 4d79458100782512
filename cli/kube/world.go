package kube

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lateen-mesh/lateen/deploy"
)

// Names of what is installed; the chart gives them.
const (
	controlApp        = "lateend"
	controlSelector   = "app=" + controlApp
	labelRevision     = "istio.io/rev"
	labelInstallation = "lateen.dev/installation"
	annotationStatus  = "sidecar.istio.io/status"
	proxyContainer    = "istio-proxy"
	rootsName         = "istio-ca-root-cert"
	rootsKey          = "root-cert.pem"
	injectionName     = "lateen-injection"
	leaseName         = "lateend-leader"
)

// pageSize is how many objects are read at once.
const pageSize = 500

// unmeshed are the namespaces in which nothing of a mesh runs.
func unmeshed() []string {
	return []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
}

// definitions is the resource of CustomResourceDefinitions.
var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// world is a cluster, as the commands ask it; tests have doubles for all of it.
type world struct {
	kube    kubernetes.Interface
	objects dynamic.Interface
	dial    dialer
	// date is what the API server's clock says.
	date func(context.Context) (time.Time, error)
	now  func() time.Time
	// wanted and known are the objects and definitions of an installation, as this program would make them.
	wanted func() ([]deploy.Object, error)
	known  func() (map[string]definition, error)
	// version is that of this program.
	version string
	// namespace, unless empty, is the only one whose proxies are meant.
	namespace string
	certDays  int
}

// world reaches the cluster.
func (c *cluster) world() (*world, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	typed, everything, err := c.clients()
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	version := typed.Discovery().RESTClient().Get().AbsPath("/version").URL().String()
	return &world{
		kube: typed, objects: everything, dial: forward(cfg, typed.CoreV1().RESTClient()), now: time.Now, version: ownVersion(),
		wanted: wantedObjects, known: ownDefinitions,
		date: func(ctx context.Context) (time.Time, error) { return dateOf(ctx, client, version) },
	}, nil
}

// dateOf asks a server for its clock.
func dateOf(ctx context.Context, client *http.Client, url string) (time.Time, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return time.Time{}, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return time.Time{}, err
	}
	_ = answer.Body.Close()
	return http.ParseTime(answer.Header.Get("Date"))
}

// ownVersion is that of the module as it was built.
func ownVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "(unknown)"
}

// look is one look at the cluster: what was read is kept, so that all checks judge one picture. One goroutine uses it.
type look struct {
	*world
	kept map[string]any
}

func (w *world) look() *look { return &look{world: w, kept: map[string]any{}} }

// once reads something, once a look. What could not be read is read again.
func once[T any](l *look, name string, read func() (T, error)) (T, error) {
	if v, ok := l.kept[name]; ok {
		return v.(T), nil
	}
	v, err := read()
	if err != nil {
		return v, fmt.Errorf("read the %s: %w", name, err)
	}
	l.kept[name] = v
	return v, nil
}

// paged reads a list page by page.
func paged[T any](ctx context.Context, o meta.ListOptions, list func(context.Context, meta.ListOptions) ([]T, string, error)) ([]T, error) {
	var out []T
	o.Limit = pageSize
	for {
		page, more, err := list(ctx, o)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if o.Continue = more; more == "" {
			return out, nil
		}
	}
}

// pods are those of a namespace; empty: of all.
func (l *look) pods(ctx context.Context, namespace string) ([]core.Pod, error) {
	return once(l, "pods of "+namespace, func() ([]core.Pod, error) {
		return paged(ctx, meta.ListOptions{}, func(ctx context.Context, o meta.ListOptions) ([]core.Pod, string, error) {
			list, err := l.kube.CoreV1().Pods(namespace).List(ctx, o)
			if err != nil {
				return nil, "", err
			}
			return list.Items, list.Continue, nil
		})
	})
}

func (l *look) namespaces(ctx context.Context) ([]core.Namespace, error) {
	return once(l, "namespaces", func() ([]core.Namespace, error) {
		list, err := l.kube.CoreV1().Namespaces().List(ctx, meta.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

func (l *look) nodes(ctx context.Context) ([]core.Node, error) {
	return once(l, "nodes", func() ([]core.Node, error) {
		list, err := l.kube.CoreV1().Nodes().List(ctx, meta.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

// controls are the Deployments of lateend, one a revision.
func (l *look) controls(ctx context.Context) ([]apps.Deployment, error) {
	return once(l, "Deployments of lateend", func() ([]apps.Deployment, error) {
		list, err := l.kube.AppsV1().Deployments(deploy.Namespace).List(ctx, meta.ListOptions{LabelSelector: controlSelector})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

// controlPods are the pods of lateend, of all revisions.
func (l *look) controlPods(ctx context.Context) ([]core.Pod, error) {
	pods, err := l.pods(ctx, deploy.Namespace)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(pods), func(p core.Pod) bool {
		return p.Labels["app"] != controlApp || p.DeletionTimestamp != nil
	}), nil
}

func (l *look) mutating(ctx context.Context) ([]admission.MutatingWebhookConfiguration, error) {
	return once(l, "mutating webhooks", func() ([]admission.MutatingWebhookConfiguration, error) {
		list, err := l.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, meta.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

func (l *look) validating(ctx context.Context) ([]admission.ValidatingWebhookConfiguration, error) {
	return once(l, "validating webhooks", func() ([]admission.ValidatingWebhookConfiguration, error) {
		list, err := l.kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx, meta.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}

// definitions are the CustomResourceDefinitions of the cluster, by name.
func (l *look) definitions(ctx context.Context) (map[string]definition, error) {
	return once(l, "CustomResourceDefinitions", func() (map[string]definition, error) {
		list, err := paged(ctx, meta.ListOptions{}, func(ctx context.Context, o meta.ListOptions) ([]unstructured.Unstructured, string, error) {
			list, err := l.objects.Resource(definitions).List(ctx, o)
			if err != nil {
				return nil, "", err
			}
			return list.Items, list.GetContinue(), nil
		})
		out := map[string]definition{}
		for _, u := range list {
			out[u.GetName()] = definitionOf(u.Object)
		}
		return out, err
	})
}

// each calls f with every object of a CustomResourceDefinition, in one of its versions.
func (l *look) each(ctx context.Context, d definition, version string, f func(*unstructured.Unstructured)) error {
	r := l.objects.Resource(schema.GroupVersionResource{Group: d.group, Version: version, Resource: d.resource})
	for o := (meta.ListOptions{Limit: pageSize}); ; {
		list, err := r.List(ctx, o)
		if apierrors.IsNotFound(err) {
			return nil // the definition goes away at this moment
		}
		if err != nil {
			return fmt.Errorf("read all %s: %w", d.resource, err)
		}
		for i := range list.Items {
			f(&list.Items[i])
		}
		if o.Continue = list.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}

// definition is what is asked of a CustomResourceDefinition.
type definition struct {
	group, resource, kind string
	versions              []string // those that are served
	storage               string
	established           bool
}

// definitionOf reads a CustomResourceDefinition.
func definitionOf(o map[string]any) definition {
	text := func(path ...string) string { s, _, _ := unstructured.NestedString(o, path...); return s }
	out := definition{group: text("spec", "group"), resource: text("spec", "names", "plural"), kind: text("spec", "names", "kind")}
	versions, _, _ := unstructured.NestedSlice(o, "spec", "versions")
	for _, v := range versions {
		version, _ := v.(map[string]any)
		name, _ := version["name"].(string)
		if served, _ := version["served"].(bool); served {
			out.versions = append(out.versions, name)
		}
		if stored, _ := version["storage"].(bool); stored {
			out.storage = name
		}
	}
	conditions, _, _ := unstructured.NestedSlice(o, "status", "conditions")
	for _, c := range conditions {
		if condition, _ := c.(map[string]any); condition["type"] == "Established" {
			out.established = condition["status"] == "True"
		}
	}
	return out
}

// roots is the PEM text of the mesh's roots, as the namespace of the installation has it.
func (l *look) roots(ctx context.Context) (string, error) {
	return once(l, "mesh's roots", func() (string, error) {
		m, err := l.kube.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, rootsName, meta.GetOptions{})
		if err != nil {
			return "", err
		}
		return m.Data[rootsKey], nil
	})
}
