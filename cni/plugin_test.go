package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// capture is an annotation as package inject writes it.
const capture = `{"noDNS":true}`

// prevResult is what the plugins before ours have made.
const prevResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.1.2.3/24","interface":0}],"dns":{}}`

// call calls the plugin. The error is what the runtime is told.
func call(t *testing.T, command, network, stdin string) (out, log string, err error) {
	t.Helper()
	var stdout, stderr strings.Builder
	err = Plugin{
		Getenv: func(name string) string {
			return map[string]string{
				"CNI_COMMAND": command, "CNI_NETNS": network, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0",
				"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=1",
			}[name]
		},
		Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr,
	}.Run()
	return strings.TrimSpace(stdout.String()), stderr.String(), err
}

// stdin is a configuration; annotations is a JSON object or empty.
func stdin(version, annotations string) string {
	runtime := ""
	if annotations != "" {
		runtime = `"runtimeConfig":{"io.kubernetes.cri.pod-annotations":` + annotations + `},`
	}
	return `{"cniVersion":"` + version + `","name":"n","type":"lateen-cni",` + runtime + `"prevResult":` + prevResult + `}`
}

// annotated is a configuration of a pod with that capture annotation.
func annotated(text string) string {
	return stdin("1.0.0", fmt.Sprintf(`{"a":"b",%q:%q}`, redirect.CaptureAnnotation, text))
}

// TestPluginAnswers: what the runtime gets to read where no network is touched.
func TestPluginAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, command, network, stdin string
		want                          string // standard output
		log                           string // part of what is logged
	}{
		{"version", "VERSION", "", `{"cniVersion":"1.0.0"}`, `{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`, ""},
		{"version, of nothing", "VERSION", "", "", `{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`, ""},
		{"a pod without a proxy", "ADD", "/nowhere", stdin("1.0.0", `{"a":"b"}`), prevResult, ""},
		{"a runtime without annotations", "ADD", "/nowhere", stdin("1.0.0", ""), prevResult, "pod shop/cart-0 is not captured, as the container runtime"},
		{"check of a pod without a proxy", "CHECK", "/nowhere", stdin("1.0.0", `{}`), "", ""},
		{"del", "DEL", "/nowhere", annotated(capture), "", ""},
		{"del without network", "DEL", "", annotated(capture), "", ""},
		{"gc", "GC", "", `{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[]}`, "", ""},
		{"status", "STATUS", "", `{"cniVersion":"1.1.0","name":"n"}`, "", ""},
		{
			"a newer specification", "ADD", "/nowhere", stdin("9.0.0", `{}`),
			`{"cniVersion":"1.1.0","code":1,"msg":"version \"9.0.0\" of the CNI specification is not spoken: want one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"}`, "",
		},
		{
			"another command", "DANCE", "", stdin("1.0.0", `{}`),
			`{"cniVersion":"1.0.0","code":4,"msg":"CNI_COMMAND is \"DANCE\": want ADD, CHECK, DEL, GC, STATUS or VERSION"}`, "",
		},
		{
			"not chained", "ADD", "/nowhere", `{"cniVersion":"0.4.0"}`,
			`{"cniVersion":"0.4.0","code":7,"msg":"there is no prevResult: lateen-cni must stand behind the plugin that makes the network, in the same list"}`, "",
		},
		{"no JSON", "ADD", "/nowhere", "{", `{"cniVersion":"1.1.0","code":6,"msg":"read the configuration: unexpected end of JSON input"}`, ""},
		{
			"too much", "ADD", "/nowhere", strings.Repeat(" ", stdinMax+1),
			`{"cniVersion":"1.1.0","code":6,"msg":"read the configuration: more than 2048 KiB"}`, "",
		},
		{
			"an annotation of a newer control plane", "ADD", "/nowhere", annotated(`{"newer":1}`),
			`{"cniVersion":"1.0.0","code":7,"msg":"pod shop/cart-0: annotation lateen.dev/capture: read the capture configuration: ` +
				`json: unknown field \"newer\" (is the plugin of this node older than the control plane?)"}`, "",
		},
		{
			"no network", "ADD", "", annotated(capture),
			`{"cniVersion":"1.0.0","code":4,"msg":"pod shop/cart-0: CNI_NETNS: no network namespace is named"}`, "",
		},
		{
			"the network of the node", "ADD", "/proc/thread-self/ns/net", annotated(capture),
			`{"cniVersion":"1.0.0","code":4,"msg":"pod shop/cart-0: CNI_NETNS: /proc/thread-self/ns/net is the network namespace of the node: its traffic is not for a pod's proxy"}`, "",
		},
		{
			"a network that is gone", "ADD", "/nowhere", annotated(capture),
			`{"cniVersion":"1.0.0","code":4,"msg":"pod shop/cart-0: CNI_NETNS: open /nowhere: no such file or directory"}`, "",
		},
		{
			"a file that is no network", "ADD", "/dev/null", annotated(capture),
			`{"cniVersion":"1.0.0","code":100,"msg":"capture the traffic of pod shop/cart-0: enter a network namespace (needs CAP_SYS_ADMIN over it): invalid argument"}`, "",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, log, err := call(t, tt.command, tt.network, tt.stdin)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if failed := strings.Contains(tt.want, `"code"`); failed != (err != nil) {
				t.Errorf("error %v", err)
			}
			if (tt.log == "") != (log == "") || !strings.Contains(log, tt.log) {
				t.Errorf("log %q, want %q", log, tt.log)
			}
		})
	}
}

// TestPluginCaptures: ADD sets the rules of a pod that wants them, CHECK misses them, DEL lets them be.
func TestPluginCaptures(t *testing.T) {
	ns := pod(t)
	path := fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
	config, err := Read(capture)
	if err != nil {
		t.Fatal(err)
	}
	step := func(command, want string) {
		t.Helper()
		out, _, err := call(t, command, path, annotated(capture))
		if (err == nil) != (want != "fails") || command == "ADD" && out != prevResult {
			t.Errorf("%s %s: %v\n%s", command, want, err, out)
		}
	}
	step("CHECK", "fails")
	step("ADD", "works")
	step("CHECK", "works")
	step("ADD", "works") // a runtime may repeat what it does not know the end of
	step("DEL", "works")
	step("CHECK", "works")
	if err := netns.Do(ns, func() error { return Validate(t.Context(), config) }); err != nil {
		t.Error(err)
	}
	if err := netns.Do(ns, redirect.Remove); err != nil {
		t.Fatal(err)
	}
	step("CHECK", "fails")
}

// rolePlugin is that of a process which a container runtime starts.
const rolePlugin = "plugin"

// plugin is ours, or by another name one that makes a network of nothing.
func plugin() error {
	if filepath.Base(os.Args[0]) == Name {
		return Plugin{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}.Run()
	}
	answer := map[string]string{"ADD": prevResult, "VERSION": `{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}`}
	_, err := io.WriteString(os.Stdout, answer[os.Getenv("CNI_COMMAND")])
	return err
}

// node is what a container runtime finds on a node, and the runtime: libcni, as containerd and CRI-O have it.
type node struct {
	t          *testing.T
	config     InstallConfig
	list       string // the file
	runtime    *libcni.CNIConfig
	attachment libcni.RuntimeConf
}

func newNode(t *testing.T, ns *os.File) *node {
	t.Helper()
	t.Setenv("LATEEN_NSTEST_ROLE", rolePlugin) // of the processes that libcni starts
	t.Setenv("GORACE", "atexit_sleep_ms=0")    // they would each wait a second at their end
	keep := t.TempDir()
	n := &node{t: t, config: InstallConfig{
		Program: os.Args[0], Lists: t.TempDir(), Programs: t.TempDir(), Results: filepath.Join(keep, "results"),
	}}
	n.list = filepath.Join(n.config.Lists, "10-net.conflist")
	put(t, n.list, `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "network"}]}`)
	if err := os.Symlink(os.Args[0], filepath.Join(n.config.Programs, "network")); err != nil {
		t.Fatal(err)
	}
	n.runtime = libcni.NewCNIConfigWithCacheDir([]string{n.config.Programs}, keep, nil)
	n.attachment = libcni.RuntimeConf{
		ContainerID: "c1", NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "cart-0"}},
		CapabilityArgs: map[string]any{
			"portMappings":        []string{},
			annotationsCapability: map[string]string{redirect.CaptureAnnotation: capture},
		},
	}
	return n
}

// networks is the list as the runtime reads it now.
func (n *node) networks() *libcni.NetworkConfigList {
	n.t.Helper()
	list, err := libcni.ConfListFromFile(n.list)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// TestPluginByRuntime has libcni call the plugin by the list that the installer has written.
func TestPluginByRuntime(t *testing.T) {
	ns := pod(t)
	n := newNode(t, ns)
	if err := NewInstaller(n.config).installProgram(); err != nil {
		t.Fatal(err)
	}
	if err := edit(n.list, chain); err != nil {
		t.Fatal(err)
	}
	config, err := Read(capture)
	if err != nil {
		t.Fatal(err)
	}
	list := n.networks()
	if _, err := n.runtime.ValidateNetworkList(t.Context(), list); err != nil {
		t.Error(err)
	}
	result, err := n.runtime.AddNetworkList(t.Context(), list, &n.attachment)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(result); err != nil || !bytes.Contains(text, []byte("10.1.2.3/24")) {
		t.Errorf("the result is %s %v", text, err)
	}
	if err := netns.Do(ns, func() error { return check(config) }); err != nil {
		t.Error(err)
	}
	if err := n.runtime.CheckNetworkList(t.Context(), list, &n.attachment); err != nil {
		t.Error(err)
	}
	if err := n.runtime.DelNetworkList(t.Context(), list, &n.attachment); err != nil {
		t.Error(err)
	}
	n.attachment.CapabilityArgs[annotationsCapability] = map[string]string{redirect.CaptureAnnotation: "{"}
	if _, err := n.runtime.AddNetworkList(t.Context(), list, &n.attachment); err == nil || !strings.Contains(err.Error(), "pod shop/cart-0: annotation") {
		t.Errorf("a pod that cannot be captured is let through: %v", err)
	}
}

// FuzzPlugin: whatever comes, the runtime is told either a result or an error, as JSON.
func FuzzPlugin(f *testing.F) {
	f.Add("ADD", stdin("1.0.0", `{"a":"b"}`))
	f.Add("CHECK", annotated(capture))
	f.Add("VERSION", "{}")
	f.Add("STATUS", `{"cniVersion":"1.1.0"}`)
	f.Fuzz(func(t *testing.T, command, stdin string) {
		out, _, err := call(t, command, "/nowhere", stdin)
		var told struct {
			Version string `json:"cniVersion"`
			Code    int    `json:"code"`
		}
		if err != nil {
			if json.Unmarshal([]byte(out), &told) != nil || told.Code == 0 || told.Version == "" {
				t.Fatalf("%v is told as %q", err, out)
			}
		} else if out != "" && !json.Valid([]byte(out)) {
			t.Fatalf("the result is %q", out)
		}
		if command == "ADD" && err == nil && strings.Contains(stdin, redirect.CaptureAnnotation) {
			var r request
			_ = json.Unmarshal([]byte(stdin), &r) // as the plugin has
			if _, ok := r.RuntimeConfig.Annotations[redirect.CaptureAnnotation]; ok {
				t.Fatal("a pod that should be captured is let through")
			}
		}
	})
}
