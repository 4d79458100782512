package kubegateway

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/test/kubemesh"
)

// conformance runs TestConformance, which takes minutes and gives the mesh thirty seconds for each change, whatever else the
// machine does.
var conformance = flag.Bool("conformance", false, "run the Gateway API's conformance suite, on a machine that does little else: make conformance")

// suite is the module that names the suite's version, module the package of the suite.
const (
	suite  = "../conformance"
	module = "sigs.k8s.io/gateway-api/conformance"
)

// profiles are those that must pass, with every feature that the GatewayClass says is supported.
const profiles = "GATEWAY-HTTP,GATEWAY-GRPC,MESH-HTTP,MESH-GRPC"

// TestConformance runs the official suite, from the cluster's network. Its report is among the test's artifacts.
func TestConformance(t *testing.T) {
	if !*conformance {
		t.Skip("it takes minutes on a machine that does little else: make conformance")
	}
	m := kubemesh.Up(t, kubemesh.Config{Nodes: 1, Set: []string{"secretNamespaces={*}"}})
	folder := t.TempDir()
	do := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	at := func(name string) string { return filepath.Join(folder, name) }
	m.Step("build the suite and its servers", func() {
		do("go", "build", "-trimpath", "-o", folder, "./echo")
		do("go", "build", "-C", suite, "-trimpath", "-o", folder, module+"/echo-basic")
		do("go", "test", "-C", suite, "-trimpath", "-c", "-o", at("suite"), module)
	})
	m.Step("load its images", func() {
		const registry = "registry.k8s.io/"
		cluster := filepath.Join("..", "..", "bin", "cluster")
		do(cluster, "image", "-o", at("basic.tar"), "-t", registry+"gateway-api/echo-basic:v1.5.1", "-t", registry+"gateway-api/echo-basic:v1.6.0-dev.2",
			"-t", registry+"gateway-api/echo-basic:v1.6.0-dev.3",
			"-t", registry+"coredns/coredns:v1.12.2", // only runs: UDPRoutes are not tested
			at("echo-basic"))
		do(cluster, "image", "-o", at("advanced.tar"), "-t", registry+"gateway-api/echo-advanced:v1.5.1", at("echo"), at("echo")+":/bin/client")
		if err := m.LoadArchives(t.Context(), at("basic.tar"), at("advanced.tar")); err != nil {
			t.Fatal(err)
		}
	})
	var features string
	m.Await("the class tells what is supported", func() string {
		features = strings.Join(strings.Fields(m.Do("get", "gatewayclass", "lateen", "-o", "jsonpath={.status.supportedFeatures[*].name}")), ",")
		if features == "" {
			return "it does not"
		}
		return ""
	})
	report := filepath.Join(t.ArtifactDir(), "report.yaml")
	m.Step("run the suite", func() {
		cmd := m.Command(t.Context(), at("suite"), "-test.run=^TestConformance$", "-test.v", "-test.timeout=30m", "--gateway-class=lateen",
			"--conformance-profiles="+profiles, "--supported-features="+features, "--namespace-labels=istio-injection=enabled",
			"--organization=lateen-mesh", "--project=lateen", "--url=https://github.com/lateen-mesh/lateen", "--version=dev",
			"--contact=https://github.com/lateen-mesh/lateen/issues", "--report-output="+report)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+m.Kubeconfig)
		out, err := cmd.CombinedOutput()
		if err := os.WriteFile(filepath.Join(t.ArtifactDir(), "suite.log"), out, 0o600); err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "--- FAIL") {
				t.Log(strings.TrimRight(line, "\n"))
			}
		}
		if err != nil {
			t.Errorf("%v; see suite.log among the artifacts, which -artifacts keeps", err)
		}
	})
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the report:\n%s", text)
}
