package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/test/cluster/pki"
)

const (
	// patience bounds each wait: for a machine that does much else.
	patience = 3 * time.Minute
	glance   = 100 * time.Millisecond
)

// rig is a cluster that runs as a child of the test.
type rig struct {
	t    *testing.T
	at   place
	rec  record
	cmd  *exec.Cmd
	in   io.Closer
	logs string
}

// programs builds what a cluster is made of, and says where it is.
func programs(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster takes its time: not with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("a cluster needs root")
	}
	// Touch every file, so that the test cache notices an edit anywhere: it cannot see what the go command reads.
	if err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			_, err = os.Stat(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "make", "-C", root, "bin/cluster").CombinedOutput(); err != nil {
		t.Fatalf("make bin/cluster: %v\n%s", err, out)
	}
	folder := filepath.Join(root, "bin/kube")
	if err := check(folder); err != nil {
		t.Skip(err)
	}
	return folder
}

// bring brings a cluster up, which ends with the test, even if that is killed.
func bring(t *testing.T, programs, name string, nodes int) *rig {
	t.Helper()
	began := time.Now()
	r := &rig{t: t, at: place{name: name, folder: t.TempDir()}, logs: filepath.Join(t.ArtifactDir(), name)}
	r.cmd = exec.Command(filepath.Join(programs, "cluster"), "run", "--attached", "--name="+name, "--folder="+r.at.folder,
		"--logs="+r.logs, fmt.Sprintf("--nodes=%d", nodes))
	var stderr bytes.Buffer
	r.cmd.Stderr = &stderr
	in, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.in = in
	t.Cleanup(r.down)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text, ok := strings.CutPrefix(lines.Text(), "ready ")
		if !ok {
			t.Log(name, lines.Text())
			continue
		}
		if err := json.Unmarshal([]byte(text), &r.rec); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s is up after %.1f s", name, time.Since(began).Seconds())
		return r
	}
	_ = r.cmd.Wait()
	t.Fatal(stderr.String())
	return nil
}

// on is the same cluster for a part of the test.
func (r *rig) on(t *testing.T) *rig {
	part := *r
	part.t = t
	return &part
}

// down ends the cluster; it may have been ended.
func (r *rig) down() {
	if r.cmd.ProcessState != nil {
		return
	}
	began := time.Now()
	r.in.Close()
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("cluster %s: %v", r.at.name, err)
	}
	r.t.Logf("%s is down after %.1f s", r.at.name, time.Since(began).Seconds())
}

// try runs one of the programs with the cluster's kubeconfig.
func (r *rig) try(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.rec.Programs, program), args...)
	if program == "kubectl" {
		cmd.Path = filepath.Join(r.rec.Programs, "kubeall")
		cmd.Args[0] = "kubectl"
	}
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.rec.Kubeconfig)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func (r *rig) must(program string, args ...string) string {
	r.t.Helper()
	out, err := r.try(program, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) kubectl(args ...string) string {
	r.t.Helper()
	return r.must("kubectl", args...)
}

// cluster gives the cluster's own command.
func (r *rig) cluster(args ...string) string {
	r.t.Helper()
	return r.must("cluster", append([]string{"--name=" + r.at.name, "--folder=" + r.at.folder}, args...)...)
}

// get asks a URL from the cluster's network.
func (r *rig) get(url string) (string, error) {
	return r.try("cluster", "--name="+r.at.name, "--folder="+r.at.folder, "exec", filepath.Join(r.rec.Programs, "toolbox"), "get", url)
}

func (r *rig) apply(manifest string) {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.kubectl("apply", "-f", path)
}

// eventually tries until it succeeds.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := try()
		if err == nil {
			t.Logf("%s: after %.1f s", what, time.Since(began).Seconds())
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(what, t.Context().Err())
		case <-time.After(glance):
		}
	}
}

func TestCluster(t *testing.T) {
	folder := programs(t)
	before := settings(t)
	name := fmt.Sprintf("t%d", os.Getpid())
	r := bring(t, folder, name, 3)
	traces := r.traces()
	archive := filepath.Join(t.TempDir(), "toolbox.tar")
	r.cluster("image", "-o", archive, "-t", "lateen.test/toolbox:1", filepath.Join(folder, "toolbox"))
	r.cluster("load", archive)
	manifest, err := os.ReadFile("testdata/workloads.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.apply(string(manifest))
	r.kubectl("-n", "smoke", "rollout", "status", "ds/web", "ds/agent", "--timeout=2m")

	t.Run("three nodes are ready", func(t *testing.T) { r.on(t).testNodes() })
	t.Run("a Service is found by name, on all nodes", func(t *testing.T) { r.on(t).testService() })
	t.Run("node ports and load balancers", func(t *testing.T) { r.on(t).testOutside() })
	t.Run("a job with a sidecar completes", func(t *testing.T) { r.on(t).testSidecar() })
	t.Run("a webhook is called", func(t *testing.T) { r.on(t).testWebhook() })
	t.Run("a node's agent sees its node alone", func(t *testing.T) { r.on(t).testAgent() })
	t.Run("another cluster beside it", func(t *testing.T) {
		other := bring(t, folder, name+"b", 1)
		if other.rec.Number == r.rec.Number {
			t.Errorf("both have number %d", r.rec.Number)
		}
		if got := other.kubectl("get", "nodes", "-o", "name"); got != "node/node1" {
			t.Errorf("its nodes are %q", got)
		}
	})
	t.Run("a node fails and comes back", func(t *testing.T) { r.on(t).testFailure() })
	t.Run("nothing stays", func(t *testing.T) {
		r.down()
		r.on(t).testNothing(traces, before)
	})
}

func (r *rig) testNodes() {
	t := r.t
	out := r.kubectl("get", "nodes", "--no-headers")
	if strings.Count(out, " Ready ") != 3 {
		t.Errorf("nodes:\n%s", out)
	}
	if !strings.Contains(out, "v1.36") {
		t.Errorf("not the version that was asked for:\n%s", out)
	}
}

// pod is the name of the pod of a DaemonSet on a node.
func (r *rig) pod(app, node string) string {
	r.t.Helper()
	name := r.kubectl("-n", "smoke", "get", "pods", "-l", "app="+app, "--field-selector", "spec.nodeName="+node, "-o", "name")
	if name == "" || strings.Contains(name, "\n") {
		r.t.Fatalf("pods of %s on %s: %q", app, node, name)
	}
	return name
}

func (r *rig) testService() {
	t := r.t
	pod := r.pod("web", "node1")
	for _, url := range []string{"http://web/", "http://web.smoke.svc.cluster.local/"} {
		answers := map[string]bool{}
		eventually(t, "all pods answer at "+url, func() error {
			out, err := r.try("kubectl", "-n", "smoke", "exec", pod, "--", "/toolbox", "get", url)
			if err != nil {
				return err
			}
			if answers[out] = true; len(answers) < 3 {
				return fmt.Errorf("only %v answered", answers)
			}
			return nil
		})
	}
	if out := r.kubectl("-n", "smoke", "logs", pod); !strings.Contains(out, "serving on :8080") || !strings.Contains(out, "request / from") {
		t.Errorf("logs of %s:\n%s", pod, out)
	}
	eventually(t, "a name outside of the cluster is of no host", func() error {
		_, err := r.try("kubectl", "-n", "smoke", "exec", pod, "--", "/toolbox", "get", "http://nobody.example/")
		if err == nil || !strings.Contains(err.Error(), "no such host") {
			return fmt.Errorf("what came is %w", err)
		}
		return nil
	})
}

// balancer is the address of a LoadBalancer.
func (r *rig) balancer(service string) string {
	r.t.Helper()
	var address string
	eventually(r.t, "address of "+service, func() error {
		if address = r.kubectl("-n", "smoke", "get", "service", service, "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"); address == "" {
			return errors.New("none yet")
		}
		return nil
	})
	return address
}

func (r *rig) testOutside() {
	t := r.t
	urls := []string{"http://" + r.balancer("outside") + "/", "http://" + r.balancer("local") + "/"}
	for n := 1; n <= 3; n++ {
		urls = append(urls, fmt.Sprintf("http://%s:30080/", r.rec.Node(n)))
	}
	for _, url := range urls {
		eventually(t, url, func() error { _, err := r.get(url); return err })
	}
	pod := r.pod("web", "node1")
	eventually(t, "a pod reaches a load balancer", func() error {
		_, err := r.try("kubectl", "-n", "smoke", "exec", pod, "--", "/toolbox", "get", urls[0])
		return err
	})
}

func (r *rig) testSidecar() {
	r.kubectl("-n", "smoke", "wait", "--for=condition=Complete", "job/sidecar", "--timeout=2m")
}

func (r *rig) testWebhook() {
	t := r.t
	authority, err := pki.New("webhook")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(pki.Subject{Name: "webhook", Hosts: []string{"webhook.smoke.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("testdata/webhook.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString
	r.apply(strings.NewReplacer("CERTIFICATE", text(pair.Certificate), "KEY", text(pair.Key),
		"AUTHORITY", text(authority.PEM.Certificate)).Replace(string(manifest)))
	r.kubectl("-n", "smoke", "rollout", "status", "deploy/webhook", "--timeout=2m")
	eventually(t, "an object is changed by the webhook", func() error {
		out, err := r.try("kubectl", "-n", "smoke", "create", "-o", "jsonpath={.metadata.labels.webhook}", "-f", "testdata/hooked.yaml")
		if err == nil && out != "called" {
			t.Errorf("the label is %q", out)
		}
		return err
	})
}

func (r *rig) testAgent() {
	t := r.t
	pod := r.pod("agent", "node2")
	for url, want := range map[string]string{"http://127.0.0.1:18080/": "node2", "http://" + r.rec.Node(3).String() + ":18080/": "node3"} {
		out := r.kubectl("-n", "smoke", "exec", pod, "--", "/toolbox", "get", url)
		if out != want {
			t.Errorf("at %s answers %q, want %s", url, out, want)
		}
	}
}

func (r *rig) testFailure() {
	t := r.t
	url := "http://" + r.balancer("outside") + "/"
	ready := func(want string) func() error {
		return func() error {
			out, err := r.try("kubectl", "get", "node", "node1", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			if err == nil && out != want {
				err = fmt.Errorf("it is %q", out)
			}
			return err
		}
	}
	r.cluster("node", "kill", "1")
	eventually(t, "the killed node is not ready", ready("Unknown"))
	eventually(t, "the load balancer goes on without it", func() error { _, err := r.get(url); return err })
	r.cluster("node", "start", "1")
	eventually(t, "the node is ready again", ready("True"))
	eventually(t, "its pod answers again", func() error {
		pod := r.pod("web", "node1")
		_, err := r.try("kubectl", "-n", "smoke", "exec", pod, "--", "/toolbox", "get", "http://web/")
		return err
	})
}
