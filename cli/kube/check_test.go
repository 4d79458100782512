package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	lease "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/inject"
)

// checkIt makes checks on a stage, and returns what is told and whether the exit code is 0.
func checkIt(t *testing.T, s *stage, o checkOptions) (string, bool) {
	t.Helper()
	var out strings.Builder
	w := s.world()
	if o.certDays > 0 {
		w.certDays = o.certDays
	}
	err := o.run(t.Context(), w, &out)
	return out.String(), err == nil
}

// TestSound: where all is well nothing is told but that; colours are for terminals only.
func TestSound(t *testing.T) {
	s := newStage(t)
	out, good := checkIt(t, s, checkOptions{proxy: true, failOn: "warning"})
	if !good || !strings.HasSuffix(out, "\n√ all 29 checks hold\n") || strings.Contains(out, "\x1b") {
		t.Error(out)
	}
	for _, name := range []string{"lateend"} {
		drop[*apps.Deployment](s, deploy.Namespace, name)
	}
	if out, good = checkIt(t, s, checkOptions{pre: true, failOn: "warning"}); !good || strings.Contains(out, "×") || strings.Contains(out, "‼") {
		t.Error(out)
	}
}

// TestBefore: what is in the way of an installation.
func TestBefore(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*stage)
		line  string
	}{
		{"old", func(s *stage) { s.version.Minor, s.version.GitVersion = "24", "v1.24.1" }, "× Kubernetes is of version 1.29 or newer\n    it is v1.24.1; the rules"},
		{"older", func(s *stage) { s.version.Minor, s.version.GitVersion = "28+", "v1.28.2-gke" }, "‼ Kubernetes is of version 1.29 or newer\n    it is v1.28.2-gke, which has no native"},
		{"this clock", func(s *stage) { s.skew = -5 * time.Minute }, "‼ the clocks agree: this machine's, the API server's, the nodes'\n    this machine is 5m0s ahead of the API server"},
		{"a node's clock", func(s *stage) {
			get[*lease.Lease](s, nodeLeases, "n1").Spec.RenewTime = &meta.MicroTime{Time: s.now.Add(2 * time.Hour)}
		}, "node n1 is 2h0m0s ahead of the API server"},
		{"a node's clock behind", func(s *stage) {
			get[*lease.Lease](s, nodeLeases, "n1").Spec.RenewTime = &meta.MicroTime{Time: s.now.Add(-2 * time.Hour)}
		}, "node n1 is 2h0m0s behind the API server"},
		{"no right", func(s *stage) { s.refused["patch deployments"] = true }, "× you may make and change Deployments in the namespace istio-system\n    the verb patch is refused\n    → install as"},
		{"no rights to give", func(s *stage) { s.refused["* *"], s.refused["escalate"] = true, true }, "‼ you may give lateend its own rights"},
		{"a namespace that ends", func(s *stage) {
			get[*core.Namespace](s, "", deploy.Namespace).Status.Phase = core.NamespaceTerminating
		}, "× the namespace istio-system can be used\n    it is being deleted"},
		{"installed", func(*stage) {}, "‼ Lateen is not installed yet\n    Deployment istio-system/lateend is there"},
		{"Istio's webhook", func(s *stage) {
			s.put(&admission.MutatingWebhookConfiguration{ObjectMeta: named("", "istio-sidecar-injector-1-20", nil)})
		}, "× no control plane of Istio runs here\n    MutatingWebhookConfiguration istio-sidecar-injector-1-20 is there"},
		{"Istio's other webhook", func(s *stage) {
			s.put(&admission.ValidatingWebhookConfiguration{ObjectMeta: named("", "istiod-default-validator", nil)})
		}, "ValidatingWebhookConfiguration istiod-default-validator is there"},
		{"Istio's server", func(s *stage) {
			s.put(&apps.Deployment{ObjectMeta: named("mesh", "istiod-canary", map[string]string{"app": "istiod"})})
		}, "    Deployment mesh/istiod-canary is there"},
		{"another mesh", func(s *stage) {
			s.put(&admission.MutatingWebhookConfiguration{ObjectMeta: named("", "linkerd-proxy-injector-webhook-config", nil)})
		}, "‼ no other mesh puts proxies into pods\n    Linkerd: "},
		{"old definitions", func(s *stage) {
			u := s.custom["virtualservices.networking.istio.io"].Object
			_ = unstructured.SetNestedSlice(u, []any{map[string]any{"name": "v1beta1", "served": true, "storage": true}}, "spec", "versions")
		}, "virtualservices.networking.istio.io does not serve v1"},
		{"a RequestAuthentication", func(s *stage) {
			s.store("security.istio.io", "requestauthentications", "RequestAuthentication", map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": "web"}}})
		}, "× no policy closes its workloads\n    RequestAuthentication shop/it: "},
		{"what that does", func(s *stage) {
			s.store("security.istio.io", "requestauthentications", "RequestAuthentication", map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": "web"}}})
		}, "there is no good version of it, so every request to the workloads that it selects is denied; mend or delete it\n    → correct"},
		{"a policy that cannot be read", func(s *stage) {
			s.store("security.istio.io", "authorizationpolicies", "AuthorizationPolicy", map[string]any{"action": "ALLOW", "rules": []any{map[string]any{"from": "x"}}})
		}, "× no policy closes its workloads\n    AuthorizationPolicy shop/it: spec.rules[0].from: "},
		{"a route that is refused", func(s *stage) {
			_ = unstructured.SetNestedField(s.custom["web"].Object, "fast", "spec", "speed")
		}, "× every object is taken as it is\n    VirtualService shop/web: spec.speed: "},
		{"a Sidecar", func(s *stage) {
			s.store("networking.istio.io", "sidecars", "Sidecar", map[string]any{"egress": []any{map[string]any{"hosts": []any{"./*"}}}})
		}, "‼ every object is acted on whole\n    Sidecar shop/it: "},
		{"an EnvoyFilter", func(s *stage) {
			s.store("networking.istio.io", "envoyfilters", "EnvoyFilter", map[string]any{})
		}, "    EnvoyFilter shop/it: kind: EnvoyFilter is accepted but not acted on yet; it has no effect"},
		{"a WasmPlugin", func(s *stage) {
			s.store("extensions.istio.io", "wasmplugins", "WasmPlugin", map[string]any{"url": "oci://x/y"})
		}, "    WasmPlugin shop/it: kind: WasmPlugin is accepted"},
		{"a WorkloadGroup", func(s *stage) {
			s.store("networking.istio.io", "workloadgroups", "WorkloadGroup", map[string]any{"template": map[string]any{"serviceAccount": "x"}})
		}, "    WorkloadGroup shop/it: "},
		{"Istio's class", func(s *stage) {
			s.store(api.GroupGateway, "gatewayclasses", "GatewayClass", map[string]any{"controllerName": "istio.io/gateway-controller"}).SetName("istio")
		}, "    GatewayClass istio is of the controller istio.io/gateway-controller"},
		{"Istio's MeshConfig", func(s *stage) {
			s.put(&core.ConfigMap{ObjectMeta: named(deploy.Namespace, "istio", nil), Data: map[string]string{"mesh": "ingressClass: x"}})
		}, "‼ every object is acted on whole\n    ConfigMap istio-system/istio is there: an installation writes its own"},
		{"its settings", func(s *stage) {
			s.put(&core.ConfigMap{ObjectMeta: named(deploy.Namespace, "istio", nil), Data: map[string]string{"mesh": "ingressClass: x"}})
		}, "    ConfigMap istio-system/istio: data.mesh.ingressClass: is accepted but not acted on yet"},
		{"Windows", func(s *stage) { get[*core.Node](s, "", "n1").Status.NodeInfo.OperatingSystem = "windows" }, "× the nodes run Linux, on amd64 or arm64\n    node n1 has windows on amd64"},
		{"some Windows", func(s *stage) {
			n := get[*core.Node](s, "", "n1").DeepCopy()
			n.Name, n.Status.NodeInfo.OperatingSystem = "n2", "windows"
			s.put(n)
		}, "‼ the nodes run Linux, on amd64 or arm64\n    node n2 has windows"},
		{"an old kernel", func(s *stage) { get[*core.Node](s, "", "n1").Status.NodeInfo.KernelVersion = "4.19.0" }, "(Linux 5.2)\n    node n1 has the kernel 4.19.0"},
		{"an old kubelet", func(s *stage) { get[*core.Node](s, "", "n1").Status.NodeInfo.KubeletVersion = "v1.28.0" }, "‼ their kubelets have native sidecars (1.29)\n    node n1 has the kubelet v1.28.0"},
		{"another runtime", func(s *stage) { get[*core.Node](s, "", "n1").Status.NodeInfo.ContainerRuntimeVersion = "docker://27" }, "node n1 has the container runtime docker://27"},
		{"Cilium", func(s *stage) {
			s.put(&core.ConfigMap{ObjectMeta: named("kube-system", "cilium-config", nil), Data: map[string]string{"kube-proxy-replacement": "true"}})
		}, "    Cilium translates Services' addresses in the pods' sockets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			tt.spoil(s)
			if out, good := checkIt(t, s, checkOptions{pre: true, failOn: "warning"}); good || !strings.Contains(out, tt.line) {
				t.Errorf("no %q in\n%s", tt.line, out)
			}
		})
	}
}

// TestAfter: what is broken is named by its own line.
func TestAfter(t *testing.T) {
	web := func(s *stage) *core.Pod { return get[*core.Pod](s, "shop", "web-1") }
	own := func(text string) func(*stage) {
		return func(s *stage) { s.pages["web-1:15000"]["/status"] = text }
	}
	known := func(text string) func(*stage) {
		return func(s *stage) { s.pages["lateend-1:15014"]["/proxies"] = text }
	}
	for _, tt := range []struct {
		name  string
		spoil func(*stage)
		line  string
	}{
		{"not installed", func(s *stage) { drop[*apps.Deployment](s, deploy.Namespace, "lateend") }, "× lateend is installed\n    no Deployment"},
		{"scaled down", func(s *stage) { *get[*apps.Deployment](s, deploy.Namespace, "lateend").Spec.Replicas = 0 }, "× all its replicas are ready\n    Deployment lateend has been scaled to 0 replicas"},
		{"crashing", func(s *stage) {
			get[*apps.Deployment](s, deploy.Namespace, "lateend").Status.ReadyReplicas = 0
			p := get[*core.Pod](s, deploy.Namespace, "lateend-1")
			p.Status.Conditions = nil
			p.Status.ContainerStatuses = []core.ContainerStatus{{
				Name: "lateend", RestartCount: 7, State: core.ContainerState{Waiting: &core.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off"}},
				LastTerminationState: core.ContainerState{Terminated: &core.ContainerStateTerminated{ExitCode: 1, Reason: "Error"}},
			}}
		}, "0 of 1 replicas ready\n    pod lateend-1: lateend waits: CrashLoopBackOff: back-off; it ended 7 times, the last time with exit code 1 Error\n"},
		{"waiting", func(s *stage) {
			get[*apps.Deployment](s, deploy.Namespace, "lateend").Status.ReadyReplicas = 0
			get[*core.Pod](s, deploy.Namespace, "lateend-1").Status.Conditions = nil
			s.pages["lateend-1:15014"]["/status"] = `{"version": "v1", "faults": [{"object": "nodes", "message": "may not be read"}]}`
		}, "0 of 1 replicas ready\n    pod lateend-1 is not ready: nodes: may not be read\n"},
		{"two images", func(s *stage) {
			p := get[*core.Pod](s, deploy.Namespace, "lateend-1").DeepCopy()
			p.Name, p.Spec.Containers[0].Image, p.Status.Conditions = "lateend-2", "lateend:2", nil
			s.put(p)
		}, "‼ the replicas of each revision are of one image\n    revision default: lateend:1, lateend:2"},
		{"another version", func(s *stage) { s.pages["lateend-1:15014"]["/status"] = `{"version": "v2"}` }, "‼ lateend and this program are of one version\n    pod lateend-1 is v2; this program is v1"},
		{"no answer", func(s *stage) { delete(s.pages, "lateend-1:15014") }, "this needs the right to create pods/portforward"},
		{"no leader", func(s *stage) { *get[*lease.Lease](s, deploy.Namespace, leaseName).Spec.HolderIdentity = "" }, "× one of them leads, and writes statuses\n    nobody holds the Lease"},
		{"a dead leader", func(s *stage) {
			get[*lease.Lease](s, deploy.Namespace, leaseName).Spec.RenewTime = &meta.MicroTime{Time: s.now.Add(-time.Hour)}
		}, "holds the Lease and renewed it 1h0m0s ago; it lasts 15s"},
		{"never a leader", func(s *stage) { drop[*lease.Lease](s, deploy.Namespace, leaseName) }, "no lateend has ever led"},
		{"no definition", func(s *stage) { delete(s.custom, "gateways.networking.istio.io") }, "    gateways.networking.istio.io is not installed"},
		{"a broken definition", func(s *stage) {
			unstructured.RemoveNestedField(s.custom["gateways.networking.istio.io"].Object, "status")
		}, "    gateways.networking.istio.io is not established"},
		{"no roots", func(s *stage) { drop[*core.ConfigMap](s, "shop", rootsName) }, "× every namespace has the mesh's roots\n    namespace shop has none"},
		{"other roots", func(s *stage) { get[*core.ConfigMap](s, "shop", rootsName).Data[rootsKey] = "x" }, "    namespace shop has others than istio-system"},
		{"no webhook", func(s *stage) {
			drop[*admission.MutatingWebhookConfiguration](s, "", "lateen-sidecar-injector")
		}, "× each revision's injection webhook is registered\n    revision default (Deployment lateend) has none"},
		{"no caBundle", func(s *stage) { s.hook().Webhooks[0].ClientConfig.CABundle = nil }, "× the API server believes them: their caBundle is the mesh's roots\n    lateen-sidecar-injector rev.namespace.inject.lateen.dev: its caBundle is empty"},
		{"another caBundle", func(s *stage) { s.hook().Webhooks[1].ClientConfig.CABundle = []byte(newStage(s.t).roots) }, "rev.object.inject.lateen.dev: its caBundle is others"},
		{"no endpoints", func(s *stage) { drop[*discovery.EndpointSlice](s, deploy.Namespace, "lateend-x") }, "Service istio-system/lateend has no endpoint that is ready"},
		{"no endpoints for what may go unjudged", func(s *stage) {
			drop[*discovery.EndpointSlice](s, deploy.Namespace, "lateend-x")
			hook := s.hook().Webhooks[0]
			s.put(&admission.ValidatingWebhookConfiguration{
				ObjectMeta: named("", "lateen-validator", map[string]string{labelInstallation: "default"}),
				Webhooks:   []admission.ValidatingWebhook{{Name: "judge", ClientConfig: hook.ClientConfig, FailurePolicy: new(admission.Ignore)}},
			})
		}, "lateen-validator judge: Service istio-system/lateend has no endpoint that is ready: what it is asked about is let in unjudged"},
		{"slow", func(s *stage) { *s.hook().Webhooks[0].TimeoutSeconds = 30 }, "timeoutSeconds is 30"},
		{"lenient", func(s *stage) { *s.hook().Webhooks[0].FailurePolicy = admission.Ignore }, "failurePolicy is Ignore"},
		{"greedy", func(s *stage) { s.hook().Webhooks[2].NamespaceSelector = &meta.LabelSelector{} }, "it is asked about pods of kube-system, too"},
		{"roots that are none", func(s *stage) {
			for _, namespace := range []string{deploy.Namespace, "shop"} {
				get[*core.ConfigMap](s, namespace, rootsName).Data[rootsKey] = "x"
			}
		}, "× the mesh's roots are good now, and for --cert-days more\n    the ConfigMap istio-ca-root-cert has no certificate"},
		{"roots of somebody else", func(s *stage) {
			other := newStage(s.t).roots
			for _, namespace := range []string{deploy.Namespace, "shop"} {
				get[*core.ConfigMap](s, namespace, rootsName).Data[rootsKey] = other
			}
		}, "× lateend's certificates are of these roots\n    pod lateend-1: x509: certificate signed by unknown authority"},
		{"a later time", func(s *stage) { s.now = s.now.Add(20 * 365 * day) }, "× the mesh's roots are good now, and for --cert-days more\n    "},
		{"refused", func(s *stage) {
			_ = unstructured.SetNestedSlice(s.custom["web"].Object, []any{map[string]any{"type": "Accepted", "status": "False", "message": "torn"}}, "status", "conditions")
		}, "× no object is refused\n    VirtualService shop/web: torn"},
		{"a Gateway that waits", func(s *stage) { s.listened("True", "False", "True") }, "× Gateways and routes of the Gateway API are in force\n    Gateway shop/it: Programmed: is not\n"},
		{"a listener that is closed", func(s *stage) { s.listened("True", "True", "False") }, "Gateway shop/it: listener http: Accepted: is not\n"},
		{"a Gateway that is refused", func(s *stage) { s.listened("False", "False", "False") }, "\n    Gateway shop/it: Accepted: is not\n    → "},
		{"a route that is refused", func(s *stage) {
			status := func(controller, accepted string) any {
				return map[string]any{"controllerName": controller, "parentRef": map[string]any{"name": "it"}, "conditions": []any{saying("Accepted", accepted)}}
			}
			o := s.store("gateway.networking.k8s.io", "grpcroutes", "GRPCRoute", nil)
			_ = unstructured.SetNestedSlice(o.Object, []any{status("other.dev/controller", "False"), status("lateen.dev/gateway-controller", "True")}, "status", "parents")
		}, "× Gateways and routes of the Gateway API are in force\n    GRPCRoute shop/it: the status does not say yet whether it is ResolvedRefs\n    → "},
		{"odd", func(s *stage) {
			s.pages["lateend-1:15014"]["/status"] = `{"version": "v1", "warnings": [{"object": "VirtualService shop/web", "message": "odd", "code": "IST0101"}]}`
		}, "‼ lateend finds nothing odd in them\n    VirtualService shop/web: odd [IST0101]"},
		{"a pod without its proxy", func(s *stage) {
			s.put(&core.Pod{ObjectMeta: named("shop", "bare", nil), Status: core.PodStatus{Phase: core.PodRunning}})
		}, "× every pod that should have a proxy has one\n    pod shop/bare has none ("},
		{"a dead init", func(s *stage) {
			web(s).Status.InitContainerStatuses[0] = core.ContainerStatus{
				Name: inject.InitContainer, State: core.ContainerState{Waiting: &core.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
				LastTerminationState: core.ContainerState{Terminated: &core.ContainerStateTerminated{ExitCode: 126, Message: "no rules"}},
			}
		}, "    pod shop/web-1: lateen-init waits (CrashLoopBackOff) after it ended with exit code 126  no rules"},
		{"an init that hangs", func(s *stage) {
			web(s).Status.InitContainerStatuses[0].State = core.ContainerState{Running: &core.ContainerStateRunning{}}
		}, "lateen-init has run for 1h0m0s"},
		{"no image", func(s *stage) {
			web(s).Status.InitContainerStatuses[1] = core.ContainerStatus{
				Name: proxyContainer, State: core.ContainerState{Waiting: &core.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}},
			}
		}, "× every proxy's container is ready\n    pod shop/web-1: istio-proxy waits: ImagePullBackOff: no such image"},
		{"a silent proxy", func(s *stage) { delete(s.pages, "web-1:15000") }, "‼ every proxy can be asked\n    pod shop/web-1 does not answer: ask pod shop/web-1 for /status: connection refused"},
		{"an old certificate", own(`{"version": "v1", "connected": true, "certificate_expires": "2020-01-01T00:00:00Z"}`), "× every proxy's certificate is good\n    pod shop/web-1 has one that ended at 2020-01-01T00:00:00Z"},
		{"no certificate", own(`{"version": "v1", "connected": true}`), "    pod shop/web-1 has no certificate"},
		{"an older proxy", own(`{"version": "v0", "connected": true, "certificate_expires": "2200-01-01T00:00:00Z"}`), "‼ every proxy is of the control plane's version\n    pod shop/web-1 is v0; lateend is v1"},
		{"orders refused", own(`{"version": "v1", "connected": true, "refused": "no", "certificate_expires": "2200-01-01T00:00:00Z"}`), "refused its orders, and goes on with the last good ones: no"},
		{"alone", own(`{"version": "v1", "connected": false, "certificate_expires": "2200-01-01T00:00:00Z"}`), "pod shop/web-1 has lost the control plane"},
		{"unknown", known(`[]`), "pod shop/web-1 is known to no lateend"},
		{"behind", known(`[{"name": "web-1", "namespace": "shop", "connected": true, "synced": false}]`), "pod shop/web-1 has not taken its newest orders yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			tt.spoil(s)
			if out, good := checkIt(t, s, checkOptions{proxy: true, failOn: "warning"}); good || !strings.Contains(out, tt.line) {
				t.Errorf("no %q in\n%s", tt.line, out)
			}
		})
	}
}

// TestCertDays: the threshold is the user's, and a warning is a failure only where that is asked for.
func TestCertDays(t *testing.T) {
	s := newStage(t)
	for _, tt := range []struct {
		days   int
		failOn string
		good   bool
		mark   string
	}{{3000, "warning", true, "√"}, {4000, "failed", true, "‼"}, {4000, "warning", false, "‼"}} {
		out, good := checkIt(t, s, checkOptions{certDays: tt.days, failOn: tt.failOn})
		if good != tt.good || !strings.Contains(out, tt.mark+" the mesh's roots are good now") {
			t.Errorf("%d days, --fail-on %s:\n%s", tt.days, tt.failOn, out)
		}
	}
}

// TestCheckJSON: programs get the same, whole.
func TestCheckJSON(t *testing.T) {
	s := newStage(t)
	for i := range 30 {
		s.put(&core.Pod{ObjectMeta: named("shop", fmt.Sprintf("bare-%d", i), nil), Status: core.PodStatus{Phase: core.PodRunning}})
	}
	out, good := checkIt(t, s, checkOptions{proxy: true, output: "json"})
	var got report
	if err := json.Unmarshal([]byte(out), &got); err != nil || good || got.Result != failed || len(got.Groups) != 6 {
		t.Fatalf("%v\n%s", err, out)
	}
	if c := got.Groups[5].Checks[0]; c.Result != failed || len(c.Why) != 30 || c.Next == "" {
		t.Errorf("%+v", c)
	}
	if out, _ = checkIt(t, s, checkOptions{proxy: true}); strings.Count(out, "pod shop/bare") != reasonsMax || !strings.Contains(out, "and 20 more") {
		t.Error(out)
	}
}

// TestOwn: what an installation is made of is read.
func TestOwn(t *testing.T) {
	known, err := ownDefinitions()
	if d := known["virtualservices.networking.istio.io"]; err != nil || d.storage == "" || !slices.Contains(d.versions, "v1") {
		t.Errorf("%+v, %v", d, err)
	}
	objects, err := wantedObjects()
	if err != nil || !slices.ContainsFunc(objects, func(o deploy.Object) bool { return o.Kind == "MutatingWebhookConfiguration" }) {
		t.Errorf("%d objects, %v", len(objects), err)
	}
}

// TestWait: what fails is tried again until it holds.
func TestWait(t *testing.T) {
	s := newStage(t)
	w := s.world()
	began := time.Now()
	w.now = time.Now
	tries := 0
	r := runner{world: w, until: began.Add(time.Hour)}
	got := r.run(t.Context(), []group{{"g", []check{{name: "c", judge: checkFunc(func() verdict {
		if tries++; tries < 2 {
			return verdict{level: failed}
		}
		return ok()
	})}}}})
	if got.Result != passed || tries != 2 {
		t.Errorf("%+v after %d tries", got, tries)
	}
}

func TestCheckFlags(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		errs string
	}{
		{"check --pre --proxy", 2, "choose one"},
		{"check --fail-on never", 2, `--fail-on "never": choose failed or warning`},
		{"check -o xml", 2, `--output "xml": choose text, json`},
		{"check --cert-days=-1", 2, "--cert-days -1"},
		{"check x", 2, "unknown command"},
		{"check --kubeconfig /no/such", 1, "name one with --kubeconfig or --context"},
	} {
		t.Setenv("HOME", t.TempDir())
		var out, errs strings.Builder
		if code := Execute(t.Context(), strings.Fields(tt.args), strings.NewReader(""), &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.errs) {
			t.Errorf("%s: exit code %d: %s", tt.args, code, errs.String())
		}
	}
}

// checkFunc is a check that looks at nothing.
func checkFunc(judge func() verdict) func(context.Context, *look) verdict {
	return func(context.Context, *look) verdict { return judge() }
}

// saying is a condition.
func saying(kind, status string) any {
	return map[string]any{"type": kind, "status": status, "reason": kind, "message": "is not", "lastTransitionTime": "2026-01-01T00:00:00Z"}
}

// listened puts a Gateway of the Gateway API into the cluster, with the conditions Accepted and Programmed and the
// conditions of its listener.
func (s *stage) listened(accepted, programmed, listener string) {
	class := s.store("gateway.networking.k8s.io", "gatewayclasses", "GatewayClass", map[string]any{"controllerName": "lateen.dev/gateway-controller"})
	class.SetName("lateen")
	s.custom["class"] = class
	o := s.store("gateway.networking.k8s.io", "gateways", "Gateway", map[string]any{"gatewayClassName": "lateen"})
	_ = unstructured.SetNestedSlice(o.Object, []any{saying("Accepted", accepted), saying("Programmed", programmed)}, "status", "conditions")
	_ = unstructured.SetNestedSlice(o.Object, []any{map[string]any{
		"name": "http", "attachedRoutes": int64(0), "conditions": []any{saying("Accepted", listener), saying("ResolvedRefs", "True")},
	}}, "status", "listeners")
}
