package kubelife

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubemesh"
)

const (
	// outage is how long a part that is away stays away; less than the 20 s after which Kubernetes takes nodes for dead here
	// that it does not hear of.
	outage = 10 * time.Second
	// lifetime is that of the proxies' certificates, which they renew at half of it, and of each half of the replacement of
	// their root: much more than an outage, also on a machine that does much else.
	lifetime = 40 * time.Second
	// inFlight is how many requests of one name may have been sent to a node when it dies, those of programs between
	// included (load sends two at a time).
	inFlight = 4
)

// TestLife goes through what happens to a mesh, in one cluster. All requests count, from the first step on.
func TestLife(t *testing.T) {
	r := &rig{Mesh: kubemesh.Up(t, kubemesh.Config{
		Set: []string{
			"lateend.replicas=3", "gateways.ingress.enabled=true", "gateways.ingress.replicas=2", "cni.enabled=true",
			"meshConfig.accessLogFile=/dev/stdout",
		},
		Programs: []string{"test/kubelife/load"},
	})}
	r.client = r.Client()
	r.Step("start the world", r.world)
	for _, part := range []struct {
		name string
		run  func(*rig)
	}{
		{"privileges", (*rig).privileges},
		{"memory", (*rig).memories},
		{"replicas", (*rig).replicas},
		{"server", (*rig).server},
		// From here to the last but one the root is replaced, and with it all certificates.
		{"root", (*rig).replaceRoot},
		{"roll", (*rig).roll},
		{"policy", (*rig).policy},
		{"certificates", (*rig).certificates},
		{"node", (*rig).node},
	} {
		t.Run(part.name, func(t *testing.T) {
			here := *r
			here.Mesh = r.For(t)
			part.run(&here)
		})
	}
}

// world starts the servers and the clients.
func (r *rig) world() {
	r.anchor, r.victim = "node1", "node3"
	// Addresses that Kubernetes leaves to those who choose them.
	address := func(n int) string { return fmt.Sprintf("10.%d.128.%d", 100+r.Number, n) }
	gateway := r.Do("get", "service", "-n", deploy.Namespace, "istio-ingressgateway", "-o", "jsonpath={.spec.clusterIP}")
	text, err := os.ReadFile(filepath.Join("testdata", "world.yaml"))
	if err != nil {
		r.Fatal(err)
	}
	r.Put(strings.NewReplacer("ANCHOR", r.anchor, "VICTIM", r.victim, "LIFETIME", lifetime.String(),
		"BACK", address(101), "MIDDLE", address(102), "GATEWAY", gateway).Replace(string(text)))
	// A balancer in front of the gateways would notice that one has died; kube-proxy does not.
	r.Do("patch", "-n", deploy.Namespace, "deploy/istio-ingressgateway", "--type=merge", "-p", fmt.Sprintf(`{"spec": {"template": {
		"metadata": {"annotations": {"proxy.istio.io/config": "proxyMetadata: {SECRET_TTL: %s}", "readiness.status.sidecar.istio.io/failureThreshold": "10"}},
		"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
			{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [%q]}]}]}}}}}}}`, lifetime, r.victim))
	r.Ready(deploy.Namespace, "deploy/istio-ingressgateway")
	r.Ready("shop", "deploy/back", "deploy/middle")
	r.Do("wait", "-n", "shop", "pod/inside", "--for=condition=Ready", "--timeout=5m")
	r.Do("wait", "-n", "outside", "pod/outside", "--for=condition=Ready", "--timeout=5m")
	r.root = r.roots()
	r.quiet()
}

// privileges: no container of ours has any, but the CNI plugin's installer on each node. That pods with a proxy run at all
// in a namespace that admits nothing with a privilege, the world shows.
func (r *rig) privileges() {
	var pods core.PodList
	if err := json.Unmarshal([]byte(r.Do("get", "pods", "-A", "-o", "json")), &pods); err != nil {
		r.Fatal(err)
	}
	seen := map[string]int{}
	for _, pod := range pods.Items {
		all := append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...)
		for _, c := range all {
			if !strings.HasPrefix(c.Image, kubemesh.Hub+"/lateen") || pod.Labels["app"] == "lateen-cni" {
				continue
			}
			seen[c.Name]++
			if faults := privileged(&pod, c.SecurityContext); len(faults) > 0 {
				r.Errorf("container %s of pod %s/%s: %s", c.Name, pod.Namespace, pod.Name, strings.Join(faults, ", "))
			}
		}
	}
	for _, name := range []string{"lateend", "istio-proxy", "lateen-validation"} {
		if seen[name] == 0 {
			r.Errorf("there is no container %s: %v", name, seen)
		}
	}
	if seen["lateen-init"] > 0 {
		r.Error("a pod sets its capture rules itself although the CNI plugin is there")
	}
	r.Logf("containers without privileges: %v", seen)
}

// privileged lists what a container may that it need not.
func privileged(pod *core.Pod, s *core.SecurityContext) (faults []string) {
	if s == nil {
		return []string{"it has no security context"}
	}
	p := pod.Spec.SecurityContext
	holds := func(what string, ok bool) {
		if !ok {
			faults = append(faults, what)
		}
	}
	is := func(b *bool, want bool) bool { return b != nil && *b == want }
	seccomp := s.SeccompProfile
	if seccomp == nil && p != nil {
		seccomp = p.SeccompProfile
	}
	holds("may be root", is(s.RunAsNonRoot, true) || p != nil && is(p.RunAsNonRoot, true))
	holds("its root file system can be written", is(s.ReadOnlyRootFilesystem, true))
	holds("may gain privileges", is(s.AllowPrivilegeEscalation, false))
	holds("has capabilities", s.Capabilities != nil && slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) && len(s.Capabilities.Add) == 0)
	holds("its system calls are not those of the runtime's default", seccomp != nil && seccomp.Type == core.SeccompProfileTypeRuntimeDefault)
	return faults
}

func (r *rig) memories() {
	r.Memory("lateend", deploy.Namespace, "app=lateend", "lateend")
	r.Memory("gateways under load", deploy.Namespace, "istio=ingressgateway", "lateen-proxy")
	r.Memory("sidecars under load", "shop", "", "lateen-proxy")
}

// replicas: each one of the control plane is killed, then all of them are away for a while.
func (r *rig) replicas() {
	r.during("kill the process of a control plane", func() {
		pids := r.Processes(deploy.Namespace, "app=lateend", "lateend")
		if len(pids) == 0 {
			r.Fatal("no process of lateend is found")
		}
		r.kill(pids[0])
		r.Await("it is started again", func() string {
			if slices.Contains(r.Processes(deploy.Namespace, "app=lateend", "lateend"), pids[0]) {
				return "it is still there"
			}
			return ""
		})
		r.Ready(deploy.Namespace, "deploy/lateend")
	}, nil)
	r.during("delete each control plane", func() {
		for pod := range strings.FieldsSeq(r.Do("get", "pods", "-n", deploy.Namespace, "-l", "app=lateend", "-o", "name")) {
			r.Do("delete", "-n", deploy.Namespace, pod, "--grace-period=0", "--force")
			r.Ready(deploy.Namespace, "deploy/lateend")
		}
	}, nil)
	r.during("leave the mesh without any control plane", func() {
		r.Do("scale", "-n", deploy.Namespace, "deploy/lateend", "--replicas=0")
		for _, pid := range r.Processes(deploy.Namespace, "app=lateend", "lateend") {
			r.kill(pid)
		}
		r.Do("delete", "pods", "-n", deploy.Namespace, "-l", "app=lateend", "--grace-period=0", "--force", "--ignore-not-found")
		<-time.After(outage)
		r.Do("scale", "-n", deploy.Namespace, "deploy/lateend", "--replicas=3")
		r.Ready(deploy.Namespace, "deploy/lateend")
	}, nil)
}

func (r *rig) kill(pid int) {
	r.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		r.Logf("kill %d: %v", pid, err) // it has ended
	}
}

// server: the API server says nothing for a while, and goes on.
func (r *rig) server() {
	pid := r.apiServer()
	r.during("stop the API server", func() {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			r.Fatal(err)
		}
		<-time.After(outage)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			r.Fatal(err)
		}
		r.Ready(deploy.Namespace, "deploy/lateend")
	}, nil)
}

// apiServer is this cluster's API server's process.
func (r *rig) apiServer() int {
	r.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		r.Fatal(err)
	}
	for _, path := range all {
		text, _ := os.ReadFile(path) // one that has ended is none
		args := strings.Split(string(text), "\x00")
		isServer := slices.ContainsFunc(args[:min(2, len(args))], func(a string) bool { return filepath.Base(a) == "kube-apiserver" })
		if isServer && strings.Contains(string(text), r.Folder+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	r.Fatalf("the API server of %s is not found", r.Folder)
	return 0
}

// roll: a new image of the proxy is brought to all pods with one.
func (r *rig) roll() {
	program := filepath.Join(r.TempDir(), "lateen-proxy")
	build := exec.CommandContext(r.Context(), "go", "build", "-trimpath", "-ldflags=-s", "-o", program, "github.com/lateen-mesh/lateen/cmd/lateen-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		r.Fatalf("%v\n%s", err, out)
	}
	image := kubemesh.Hub + "/lateen-proxy:new"
	if err := r.Load(r.Context(), map[string]string{image: program}); err != nil {
		r.Fatal(err)
	}
	r.during("have the control plane inject a new image", func() { r.Change("injection.config.proxyImage=" + image) }, nil)
	r.during("restart all pods with a proxy", func() {
		r.Do("rollout", "restart", "-n", "shop", "deploy/back", "deploy/middle")
		r.Do("rollout", "restart", "-n", deploy.Namespace, "deploy/istio-ingressgateway")
		r.Ready("shop", "deploy/back", "deploy/middle")
		r.Ready(deploy.Namespace, "deploy/istio-ingressgateway")
		r.gone("shop")
		r.gone(deploy.Namespace)
	}, nil)
	for _, of := range [][2]string{{"shop", "app=back"}, {"shop", "app=middle"}, {deploy.Namespace, "istio=ingressgateway"}} {
		images := r.Do("get", "pods", "-n", of[0], "-l", of[1], "-o", "jsonpath={.items[*].spec['containers','initContainers'][?(@.name=='istio-proxy')].image}")
		if images == "" || strings.Trim(strings.ReplaceAll(images, image, ""), " ") != "" {
			r.Errorf("pods %s have the images %s", of[1], images)
		}
	}
}

// gone waits until no pod of a namespace is ending any more.
func (r *rig) gone(namespace string) {
	r.Helper()
	r.Await("pods have ended", func() string {
		return r.Do("get", "pods", "-n", namespace, "-o", "jsonpath={.items[?(@.metadata.deletionTimestamp)].metadata.name}")
	})
}

const policy = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: %s}}
`

// policy: the namespace takes mutual TLS only and, while it does, the CNI plugin's installer is restarted and pods start,
// which are ready when a call of their own has come through, for which they have to be captured.
func (r *rig) policy() {
	r.during("take nothing but mutual TLS", func() {
		r.Put(fmt.Sprintf(policy, "PERMISSIVE"))
		r.Put(fmt.Sprintf(policy, "STRICT"))
	}, nil)
	r.during("restart the CNI plugin's installer while pods start", func() {
		r.Do("scale", "-n", "shop", "deploy/middle", "--replicas=4")
		r.Do("rollout", "restart", "-n", deploy.Namespace, "daemonset/lateen-cni")
		r.Do("delete", "pods", "-n", deploy.Namespace, "-l", "app=lateen-cni", "--grace-period=0", "--force")
		r.Ready(deploy.Namespace, "daemonset/lateen-cni")
		r.Ready("shop", "deploy/middle")
	}, nil)
	r.during("take plaintext again", func() {
		r.Put(fmt.Sprintf(policy, "PERMISSIVE"))
		r.Do("scale", "-n", "shop", "deploy/middle", "--replicas=2")
		r.gone("shop")
	}, nil)
}

// roots are those that pods are given.
func (r *rig) roots() string {
	r.Helper()
	return r.Do("get", "configmap", "-n", "shop", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
}

// replaceRoot begins to replace the root, and with it the certificates of all proxies, of the control plane and of the
// webhook, which takes two lifetimes.
func (r *rig) replaceRoot() {
	r.Do("annotate", "secret", "-n", deploy.Namespace, "lateen-ca", "lateen.dev/rotate="+lifetime.String())
}

// certificates: pods are created until the root is replaced.
func (r *rig) certificates() {
	r.during("create pods until the root is replaced", func() {
		n := 2
		r.Await("the root is another one", func() string {
			n = 6 - n
			r.Do("scale", "-n", "shop", "deploy/middle", "--replicas="+strconv.Itoa(n))
			r.Ready("shop", "deploy/middle")
			if now := r.roots(); strings.Count(now, "BEGIN CERTIFICATE") > 1 || now == r.root {
				return "it is replaced"
			}
			return ""
		})
		r.Do("scale", "-n", "shop", "deploy/middle", "--replicas=2")
		r.gone("shop")
	}, nil)
	refused := r.Do("get", "events", "-n", "shop", "--field-selector=reason=FailedCreate", "-o", "jsonpath={.items[*].message}")
	if strings.Contains(refused, "x509") {
		r.Errorf("pods were refused as the webhook's certificate was not believed: %s", refused)
	}
}

// node: one dies with all its pods, without a word. What had been sent to them and may not be sent twice fails; nothing else.
func (r *rig) node() {
	n, err := strconv.Atoi(strings.TrimPrefix(r.victim, "node"))
	if err != nil {
		r.Fatal(err)
	}
	began := time.Now()
	ready := func() string {
		return r.Do("get", "node", r.victim, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
	}
	r.during("kill "+r.victim, func() {
		if err := r.KillNode(r.Context(), n); err != nil {
			r.Fatal(err)
		}
		began = time.Now()
		r.Await("Kubernetes knows", func() string {
			if ready() == "True" {
				return "it takes the node for ready"
			}
			return ""
		})
	}, func(name string, of report) bool {
		sent := strings.HasSuffix(name, "post") || strings.HasSuffix(name, "grpc")
		for _, f := range []*failure{of.First, of.Last} {
			sent = sent && f.At.Before(began) && slices.Contains([]string{"upstream_closed", "upstream_reset"}, f.Reason)
		}
		return sent && of.Failures <= inFlight
	})
	r.Step("start it again", func() {
		if err := r.StartNode(r.Context(), n); err != nil {
			r.Fatal(err)
		}
		r.Ready("shop", "deploy/back")
	})
	r.quiet()
}

// TestPrivileged: each privilege is noticed.
func TestPrivileged(t *testing.T) {
	if got := privileged(&core.Pod{}, &core.SecurityContext{}); len(got) != 5 {
		t.Error(got)
	}
	if got := privileged(&core.Pod{}, nil); len(got) != 1 {
		t.Error(got)
	}
}
