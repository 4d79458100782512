// Package kubemesh gives tests a real Kubernetes cluster in which Lateen of this checkout is installed.
//
// In comes how the cluster and the installation are to be, and which programs of this module are wanted as images beside
// Lateen's own; out comes a cluster whose control plane and gateways are ready. The package must not know what is tested.
// All methods may be called concurrently, as far as those of the test that it reports to may.
//
// While one works on a test, the flag -cluster NAME takes a cluster that is up already (`bin/cluster up --name NAME`),
// brings its images and its installation up to date, and leaves it up; -asis does not even bring them up to date.
package kubemesh

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubetest"
)

const (
	module = "github.com/lateen-mesh/lateen/"
	// Hub is where the images of this checkout are: lateen.test/NAME:dev.
	Hub = "lateen.test"
	// patience bounds each wait, on a machine that does much else.
	patience = "--timeout=5m"
	// pause is between two looks at what tells of no event.
	pause = 200 * time.Millisecond
)

// See the package comment.
var (
	existing = flag.String("cluster", "", "use the cluster of this `name`, which is up and stays up")
	asIs     = flag.Bool("asis", false, "leave the images and the installation of -cluster as they are")
)

// Config is how the cluster and the installation are to be. The zero value is three nodes and the profile default.
type Config struct {
	// Nodes is how many; zero: three.
	Nodes int
	// Set are values of the chart as `lateen manifest generate --set` takes them, beside those that name the images.
	Set []string
	// Programs are packages below the root of this module, such as "examples/bookinfo", of which images are made that are
	// named by the last part of the path: lateen.test/bookinfo:dev.
	Programs []string
	// Bare leaves the installation to the test, by Install.
	Bare bool
}

// Mesh is a cluster with Lateen in it.
type Mesh struct {
	*kubetest.Cluster
	testing.TB

	set []string
}

// Up brings up a cluster that ends with the test, and installs Lateen in it. The test is skipped where there can be no
// cluster. What each step took is in the test's log.
func Up(t testing.TB, cfg Config) *Mesh {
	t.Helper()
	m := &Mesh{TB: t, set: cfg.Set}
	m.Step("bring the cluster up", func() { m.Cluster = cluster(t, cfg.Nodes) })
	if *asIs {
		return m
	}
	m.Step("build and load the images", func() { m.load(append([]string{"cmd/lateend", "cmd/lateen-proxy", "cmd/lateen-cni"}, cfg.Programs...)) })
	if !cfg.Bare {
		m.Step("install Lateen", func() { m.Install() })
	}
	return m
}

func cluster(t testing.TB, nodes int) *kubetest.Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a cluster takes its time: not with -short")
	}
	var c *kubetest.Cluster
	var err error
	if *existing != "" {
		c, err = kubetest.Existing(*existing)
	} else {
		c, err = kubetest.New(t.Context(), kubetest.Config{Nodes: nodes, Logs: filepath.Join(t.ArtifactDir(), "cluster"), Progress: t.Output()})
	}
	if errors.Is(err, kubetest.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// load builds programs, and gives them to all nodes as images.
func (m *Mesh) load(packages []string) {
	m.Helper()
	folder := m.TempDir()
	build := exec.CommandContext(m.Context(), "go", "build", "-trimpath", "-ldflags=-s", "-o", folder)
	images := map[string]string{}
	for _, p := range packages {
		name := path.Base(p)
		build.Args = append(build.Args, module+p)
		images[Hub+"/"+name+":dev"] = filepath.Join(folder, name)
	}
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		m.Fatalf("%v\n%s", err, out)
	}
	if err := m.Load(m.Context(), images); err != nil {
		m.Fatal(err)
	}
}

// For is the same mesh, which reports to a subtest.
func (m *Mesh) For(t testing.TB) *Mesh { return &Mesh{Cluster: m.Cluster, TB: t, set: m.set} }

// Step does something and logs how long it took.
func (m *Mesh) Step(what string, do func()) {
	m.Helper()
	began := time.Now()
	do()
	m.Logf("%6.1fs %s", time.Since(began).Seconds(), what)
}

// Install applies what `lateen manifest generate` writes with the values of Config.Set and these, the later ones first,
// and waits until the control plane and the gateways are ready.
func (m *Mesh) Install(set ...string) {
	m.Helper()
	definitions, err := deploy.Definitions()
	if err != nil {
		m.Fatal(err)
	}
	m.Put("{apiVersion: v1, kind: Namespace, metadata: {name: " + deploy.Namespace + "}}")
	m.put(deploy.Manifest(definitions, nil))
	m.Change(set...)
}

// Change is Install where Lateen is installed: with other values, but without the definitions of kinds, which are most of it.
func (m *Mesh) Change(set ...string) {
	m.Helper()
	values := append([]string{"hub=" + Hub, "imagePullPolicy=IfNotPresent"}, m.set...)
	objects, err := deploy.Render(deploy.Config{Set: append(values, set...)})
	if err != nil {
		m.Fatal(err)
	}
	m.put(deploy.Manifest(nil, objects))
	if *existing != "" {
		m.Do("rollout", "restart", "-n", deploy.Namespace, "deploy")
	}
	// The control plane first: it makes the containers of the gateways.
	m.Ready(deploy.Namespace, "deploy/lateend")
	for deployment := range strings.FieldsSeq(m.Do("get", "deploy", "-n", deploy.Namespace, "-o", "name")) {
		m.Ready(deploy.Namespace, deployment)
	}
}

// put applies what is too long for kubectl to write down on the objects.
func (m *Mesh) put(manifest []byte) {
	m.Helper()
	file := filepath.Join(m.TempDir(), "lateen.yaml")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		m.Fatal(err)
	}
	m.Do("apply", "--server-side", "--force-conflicts", "-f", file)
}

// Do runs kubectl and returns what it printed; it ends the test if it cannot be done.
func (m *Mesh) Do(args ...string) string {
	m.Helper()
	out, err := m.Kubectl(m.Context(), args...)
	if err != nil {
		m.Broken(err)
	}
	return out
}

// Put applies YAML.
func (m *Mesh) Put(yaml string) {
	m.Helper()
	if err := m.Apply(m.Context(), yaml); err != nil {
		m.Broken(err)
	}
}

// Ready waits until workloads of a namespace, such as "deploy/web", are rolled out.
func (m *Mesh) Ready(namespace string, workloads ...string) {
	m.Helper()
	for _, w := range workloads {
		m.Do("rollout", "status", "-n", namespace, w, patience)
	}
}

// Await waits until something is so, and ends the test if it does not come to be; look says what is missing, or "".
func (m *Mesh) Await(what string, look func() string) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 5*time.Minute)
	defer cancel()
	for {
		missing := look()
		if missing == "" {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			m.Broken(errors.New("wait until " + what + ": " + missing))
		}
	}
}

// Address is that of a Service of type LoadBalancer.
func (m *Mesh) Address(namespace, service string) string {
	m.Helper()
	const path = "{.status.loadBalancer.ingress[0].ip}"
	m.Do("wait", "-n", namespace, "service/"+service, "--for=jsonpath="+path, patience)
	return m.Do("get", "-n", namespace, "service", service, "-o", "jsonpath="+path)
}

// Client makes requests from the cluster's own network, where pods and LoadBalancers are reached, until the test ends.
func (m *Mesh) Client() *http.Client {
	transport := m.Transport()
	transport.MaxIdleConnsPerHost = 64
	m.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// Broken ends the test with what the cluster says of itself.
func (m *Mesh) Broken(err error) {
	m.Helper()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"logs", "-n", deploy.Namespace, "deploy/lateend", "--tail=50"},
	} {
		out, _ := m.Kubectl(context.WithoutCancel(m.Context()), args...)
		m.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	}
	m.Fatal(err)
}
