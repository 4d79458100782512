package apply_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// everything has an installation of all kinds of objects; its Installation is installed by the command line.
const everything = `
hub: lateen.test
tag: v1
lateend: {autoscaling: {enabled: true}}
cni: {enabled: true}
secretNamespaces: [shop]
gateways: {ingress: {enabled: true, replicas: 2}, egress: {enabled: true}}
`

// TestThreeWays installs into a real API server by Helm's own program, by what `lateen install` does, and by kubectl: the
// same objects are there.
func TestThreeWays(t *testing.T) {
	r := newRig(t)
	folder := t.TempDir()
	values := filepath.Join(folder, "values.yaml")
	if err := os.WriteFile(values, []byte(everything), 0o600); err != nil {
		t.Fatal(err)
	}
	given, err := deploy.ReadValues([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) {
		t.Helper()
		if _, err := r.cluster.Kubectl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	helm := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "-modfile=tools/go.mod", "helm"}, args...)...)
		cmd.Dir = "../.."
		// The flags are those of the images' programs, which are made of much the same.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath", "KUBECONFIG="+r.cluster.Kubeconfig, "HELM_CACHE_HOME="+folder, "HELM_CONFIG_HOME="+folder, "HELM_DATA_HOME="+folder)
		began := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		t.Logf("%6.1fs helm %s", time.Since(began).Seconds(), args[0])
	}
	remove := func() {
		t.Helper()
		all, err := r.applier.Removal(t.Context(), "")
		if err == nil {
			err = r.applier.Remove(context.WithoutCancel(t.Context()), all, 5*time.Minute)
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	kubectl("create", "namespace", "shop")
	helm("install", "lateen", "deploy/chart", "-n", deploy.Namespace, "--create-namespace", "-f", values)
	byHelm := installed(t, r.client)
	helm("uninstall", "lateen", "-n", deploy.Namespace)

	var i apply.Installation
	i.Name, i.Spec = apply.DefaultRevision, apply.Spec{Profile: "minimal", Values: given}
	if err := r.applier.Install(t.Context(), i, 0); err != nil {
		t.Fatal(err)
	}
	byCommand := installed(t, r.client)
	remove()

	objects, err := deploy.Render(i.Config())
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := deploy.Definitions()
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(folder, "manifest.yaml")
	if err := os.WriteFile(manifest, deploy.Manifest(definitions, objects), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl("apply", "--server-side", "--force-conflicts", "-f", manifest)
	byManifest := installed(t, r.client)

	if len(byCommand) < len(objects) {
		t.Errorf("%d objects of %d were found", len(byCommand), len(objects))
	}
	if diff := cmp.Diff(byCommand, byHelm); diff != "" {
		t.Errorf("Helm's differ (-command +Helm):\n%s", diff)
	}
	if diff := cmp.Diff(byCommand, byManifest); diff != "" {
		t.Errorf("kubectl's differ (-command +kubectl):\n%s", diff)
	}
}

// installed are all objects of an installation as YAML, with the definitions' specs, without what the cluster makes up and
// Helm's own marks.
func installed(t *testing.T, client dynamic.Interface) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, k := range deploy.Kinds() {
		selector := apply.LabelInstallation
		if k.Name == "CustomResourceDefinition" {
			selector = ""
		}
		list, err := client.Resource(k.Resource).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list.Items {
			for _, path := range [][]string{
				{"status"},
				{"metadata", "managedFields"},
				{"metadata", "resourceVersion"},
				{"metadata", "uid"},
				{"metadata", "generation"},
				{"metadata", "creationTimestamp"},
				{"metadata", "labels", "app.kubernetes.io/managed-by"},
				{"metadata", "annotations", "meta.helm.sh/release-name"},
				{"metadata", "annotations", "meta.helm.sh/release-namespace"},
				{"metadata", "annotations", "deployment.kubernetes.io/revision"},
				{"metadata", "finalizers"},
				{"spec", "clusterIP"},
				{"spec", "clusterIPs"},
			} {
				unstructured.RemoveNestedField(u.Object, path...)
			}
			if u.GetName() == "lateend" && u.GetKind() == "Deployment" {
				unstructured.RemoveNestedField(u.Object, "spec", "replicas") // the autoscaler's
			}
			if ports, found, _ := unstructured.NestedSlice(u.Object, "spec", "ports"); found {
				for _, p := range ports {
					delete(p.(map[string]any), "nodePort")
				}
				if err := unstructured.SetNestedSlice(u.Object, ports, "spec", "ports"); err != nil {
					t.Fatal(err)
				}
			}
			if len(u.GetAnnotations()) == 0 {
				u.SetAnnotations(nil)
			}
			text, err := yaml.Marshal(u.Object)
			if err != nil {
				t.Fatal(err)
			}
			out[k.Name+" "+u.GetNamespace()+"/"+u.GetName()] = string(text)
		}
	}
	return out
}
