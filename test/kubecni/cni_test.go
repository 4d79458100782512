package kubecni

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

const image = "lateen.test/lateen-cni:dev"

// pod is one as the webhook makes it, as far as the plugin is concerned: its name, and what is to be captured.
const pod = `
apiVersion: v1
kind: Pod
metadata: {name: %s, annotations: {lateen.dev/capture: '%s'}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: lateen-validation
    image: lateen.test/lateen-cni:dev
    command: [/lateen-cni, validate, --config, '{"noDNS":true}']
    securityContext: {runAsUser: 65534, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  containers:
  - {name: app, image: "lateen.test/pause:1"}
`

const patience = 10 * time.Minute

// installer is the chart's DaemonSet.
func installer(t *testing.T) string {
	t.Helper()
	objects, err := deploy.Render(deploy.Config{Profile: "minimal", Set: []string{"cni.enabled=true", "hub=lateen.test"}})
	if err != nil {
		t.Fatal(err)
	}
	return string(deploy.Manifest(slices.DeleteFunc(objects, func(o deploy.Object) bool { return o.Kind != "DaemonSet" })))
}

// TestPods: a pod that is there before the plugin does not run until the installer has set its rules; one that comes later
// runs at once; one whose rules cannot be set gets no network, and its events say why.
func TestPods(t *testing.T) {
	c := kubetest.Up(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	program := filepath.Join(t.TempDir(), "lateen-cni")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "github.com/lateen-mesh/lateen/cmd/lateen-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := c.Load(ctx, map[string]string{image: program}); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) string {
		t.Helper()
		out, err := c.Kubectl(ctx, args...)
		if err != nil {
			t.Fatalf("kubectl %q: %v", args, err)
		}
		return out
	}
	create := func(name, capture string) {
		t.Helper()
		if err := c.Apply(ctx, fmt.Sprintf(pod, name, capture)); err != nil {
			t.Fatal(err)
		}
	}
	create("before", `{"noDNS":true}`)
	do("wait", "pod/before", "--for=jsonpath={.status.initContainerStatuses[0].lastState.terminated.exitCode}=126", "--timeout=5m")
	do("create", "namespace", deploy.Namespace)
	if err := c.Apply(ctx, installer(t)); err != nil {
		t.Fatal(err)
	}
	do("-n", deploy.Namespace, "rollout", "status", "daemonset/lateen-cni", "--timeout=5m")
	create("after", `{"noDNS":true}`)
	create("broken", `{"newer":true}`)
	do("wait", "pod/after", "--for=condition=Ready", "--timeout=5m")
	if restarts := do("get", "pod", "after", "-o", "jsonpath={.status.initContainerStatuses[0].restartCount}"); restarts != "0" {
		t.Errorf("lateen-validation was started again: %q", restarts)
	}
	do("wait", "pod/before", "--for=condition=Ready", "--timeout=5m")
	// An event may come late; the context ends this if none comes.
	for events := ""; !strings.Contains(events, "annotation lateen.dev/capture"); {
		events = do("get", "events", "--field-selector", "involvedObject.name=broken,reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
	}
}
