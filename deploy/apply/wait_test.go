package apply

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/deploy"
)

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	return &u
}

// TestReady: what is missing is said, and nothing is when an object is ready.
func TestReady(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"new deployment", "kind: Deployment\nmetadata: {generation: 2}\nstatus: {observedGeneration: 1}", "has not looked at it"},
		{"no pods", "kind: Deployment\nspec: {replicas: 2}\nstatus: {updatedReplicas: 1, replicas: 3}", "1 of 2 new pods"},
		{"old pods", "kind: Deployment\nspec: {replicas: 1}\nstatus: {updatedReplicas: 1, replicas: 2, availableReplicas: 2}", "1 old pods"},
		{"not ready", "kind: Deployment\nspec: {replicas: 1}\nstatus: {updatedReplicas: 1, replicas: 1}", "0 of 1 pods are ready"},
		{"ready", "kind: Deployment\nmetadata: {generation: 1}\nspec: {replicas: 1}\nstatus: {observedGeneration: 1, updatedReplicas: 1, replicas: 1, availableReplicas: 1}", ""},
		{"new daemon", "kind: DaemonSet\nmetadata: {generation: 1}", "has not looked at it"},
		{"old daemon", "kind: DaemonSet\nstatus: {desiredNumberScheduled: 3, updatedNumberScheduled: 1, numberAvailable: 3}", "1 of 3 nodes have it"},
		{"daemon", "kind: DaemonSet\nstatus: {desiredNumberScheduled: 3, updatedNumberScheduled: 3, numberAvailable: 2}", "ready on 2 of 3 nodes"},
		{"all nodes", "kind: DaemonSet\nstatus: {desiredNumberScheduled: 3, updatedNumberScheduled: 3, numberAvailable: 3}", ""},
		{"no bundle", "kind: MutatingWebhookConfiguration\nwebhooks: [{clientConfig: {caBundle: eA==}}, {clientConfig: {}}]", "caBundle"},
		{"bundle", "kind: MutatingWebhookConfiguration\nwebhooks: [{clientConfig: {caBundle: eA==}}]", ""},
	} {
		o := parse(t, tt.text)
		if got := checks[o.GetKind()](o); !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	for text, want := range map[string]string{
		"kind: A\nmetadata: {name: x}": "x is not served yet",
		"kind: A\nmetadata: {name: x}\nstatus: {conditions: [{type: NamesAccepted, status: 'False', message: of y}]}": "names are taken: of y",
		"kind: A\nstatus: {conditions: [{type: NamesAccepted, status: 'True'}, {type: Established, status: 'True'}]}": "",
	} {
		if got := established(parse(t, text)); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// TestJudge: a pod's trouble names the pod, the container, the kubelet's reason and what to do.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name, status string
		want         []string
	}{
		{
			"image", "containerStatuses: [{name: c, state: {waiting: {reason: ErrImagePull, message: 'x: not found'}}}]",
			[]string{"pod ns/p, container c: ImagePullBackOff: the image hub/c:1 cannot be had (x: not found)", "--set tag="},
		},
		{
			"back-off", "containerStatuses: [{name: c, state: {waiting: {reason: ImagePullBackOff, message: 'Back-off pulling'}}}]",
			[]string{"ImagePullBackOff: the image hub/c:1 cannot be had", "imagePullSecrets"},
		},
		{"name", "containerStatuses: [{name: c, state: {waiting: {reason: InvalidImageName}}}]", []string{"InvalidImageName: hub/c:1"}},
		{
			"crash", "containerStatuses: [{name: c, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 2, message: \"a\\nlast\\n\"}}}]",
			[]string{"CrashLoopBackOff: it ended with code 2 (last)", "kubectl logs -n ns p -c c --previous"},
		},
		{
			"between", "containerStatuses: [{name: c, state: {running: {}}, lastState: {terminated: {exitCode: 2, reason: Error}}}]",
			[]string{"CrashLoopBackOff: it ended with code 2 (Error)"},
		},
		{
			"init", "initContainerStatuses: [{name: i, state: {waiting: {reason: CreateContainerConfigError, message: no key}}}]",
			[]string{"container i: CreateContainerConfigError: no key", "kubectl describe pod -n ns p"},
		},
		{"node", "conditions: [{type: PodScheduled, status: 'False', message: 0/3 nodes}]", []string{"pod ns/p has no node: 0/3 nodes", "make room"}},
		{"making", "containerStatuses: [{name: c, state: {waiting: {reason: ContainerCreating}}}]", nil},
		{"well", "containerStatuses: [{name: c, ready: true, state: {running: {}}, lastState: {terminated: {exitCode: 1}}}]", nil},
	} {
		var pod corev1.Pod
		text := "metadata: {namespace: ns, name: p}\nspec: {initContainers: [{name: i, image: hub/i:1}], containers: [{name: c, image: hub/c:1}]}\nstatus: {" + tt.status + "}"
		if err := yaml.UnmarshalStrict([]byte(text), &pod); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got := judge(&pod)
		if (got.text == "") != (tt.want == nil) {
			t.Errorf("%s: %q", tt.name, got.text)
		}
		for _, want := range tt.want {
			if !strings.Contains(got.text+got.next, want) {
				t.Errorf("%s: %q, %q do not say %q", tt.name, got.text, got.next, want)
			}
		}
	}
}

// TestTally: counts are told in one order, without zeros.
func TestTally(t *testing.T) {
	for want, count := range map[string]tally{"nothing to do": {}, "2 created, 1 unchanged": {Unchanged: 1, Created: 2}} {
		if got := count.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestSays: a definition that says all that ours does may say more, but nothing else.
func TestSays(t *testing.T) {
	const wanted = "spec: {names: [a, b], versions: [{name: v1, max: 3, half: 0.5}], none: null}"
	for text, want := range map[string]bool{
		wanted: true,
		"spec: {names: [a, b], versions: [{name: v1, max: 3, half: 0.5, more: true}], none: null, added: {}}\nstatus: {}": true,
		"spec: {names: [a, b, c], versions: [{name: v1, max: 3, half: 0.5}], none: null}":                                 false,
		"spec: {names: [b, a], versions: [{name: v1, max: 3, half: 0.5}], none: null}":                                    false,
		"spec: {names: [a, b], versions: [{name: v1, max: 4, half: 0.5}], none: null}":                                    false,
		"spec: {names: [a, b], versions: [{name: v1, max: 3, half: 0.5}]}":                                                false,
		"spec: {names: [a, b], versions: {}, none: null}":                                                                 false,
		"spec: text": false,
	} {
		o := deploy.Object{Kind: definition, YAML: "kind: X\n" + wanted}
		if got, err := alike(o, parse(t, "kind: X\n"+text)); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}
