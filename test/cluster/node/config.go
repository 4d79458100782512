// Package node is a machine of a test cluster, made of namespaces: it has its own network, processes, host name, control
// groups and root folder, in which containerd, the kubelet and kube-proxy find everything where they expect it.
//
// Write puts the machine's files into its root folder. Prepare, in a process that was started in new namespaces, turns it
// into that machine and executes the same program anew, which calls Run: the machine's first process. In come a Config
// and, on the standard input, the word to go on; out go lines on the standard output. The package must not know who
// starts machines, nor of other machines. What it starts ends with the process that called Run, since that is the first
// of its process namespace.
package node

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
)

// Config is one machine.
type Config struct {
	// Name is the host name, and the node's name in Kubernetes.
	Name string `json:"name"`
	// Root is the folder that becomes its root.
	Root string `json:"root"`
	// Programs is the folder with kubeall; Logs the one for what the components write.
	Programs string `json:"programs"`
	Logs     string `json:"logs"`
	// Group is its control group.
	Group string `json:"group"`
	// Address is that of its network interface, eth0, which its maker has put there.
	Address netip.Prefix `json:"address"`
	// Gateway is the control plane. By way of it goes what Routes does not know.
	Gateway netip.Addr `json:"gateway"`
	// Routes lead to the pods of other nodes.
	Routes []Route `json:"routes"`
	// Pods is the network of its own pods, AllPods of all.
	Pods    netip.Prefix `json:"pods"`
	AllPods netip.Prefix `json:"all_pods"`
	// DNS is the address of the cluster's name server.
	DNS netip.Addr `json:"dns"`
}

// Route is a way to a network.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// Secrets are the documents by which it proves itself.
type Secrets struct {
	// Authority is the cluster's; Certificate and Key are the kubelet's as a server.
	Authority, Certificate, Key []byte
	// Kubelet and Proxy are kubeconfigs.
	Kubelet, Proxy []byte
}

// PauseImage is what every pod begins with.
const PauseImage = "lateen.test/pause:1"

// Paths in a machine.
const (
	programFolder = "/opt/lateen/bin"
	logFolder     = "/var/log/lateen"
	kubeFolder    = "/etc/kubernetes"
	runtimeSocket = "/run/containerd/containerd.sock"
)

//go:embed files/containerd.toml
var containerdFile string

//go:embed files/kubelet.yaml
var kubeletFile string

//go:embed files/kube-proxy.yaml
var proxyFile string

//go:embed files/network.conflist
var networkFile string

// Write puts the machine's files into its root. Files that a pod has put there meanwhile, such as a network plugin's, stay.
func Write(cfg Config, secrets Secrets) error {
	files := map[string][]byte{
		kubeFolder + "/ca.crt":          secrets.Authority,
		kubeFolder + "/kubelet.crt":     secrets.Certificate,
		kubeFolder + "/kubelet.key":     secrets.Key,
		kubeFolder + "/kubelet.conf":    secrets.Kubelet,
		kubeFolder + "/kube-proxy.conf": secrets.Proxy,
		"/etc/hostname":                 []byte(cfg.Name + "\n"),
		"/etc/hosts":                    fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n", cfg.Address.Addr(), cfg.Name),
		"/etc/resolv.conf":              []byte("# nothing outside of the cluster has a name\n"),
		// Machines are told apart by it (machine-id(5)).
		"/etc/machine-id": fmt.Appendf(nil, "%x\n", machineID(cfg.Group)),
		"/etc/passwd":     []byte("root:x:0:0:root:/root:/bin/sh\n"),
		"/etc/group":      []byte("root:x:0:\n"),
	}
	for path, text := range map[string]string{
		kubeFolder + "/containerd.toml":      containerdFile,
		kubeFolder + "/kubelet.yaml":         kubeletFile,
		kubeFolder + "/kube-proxy.yaml":      proxyFile,
		"/etc/cni/net.d/10-cluster.conflist": networkFile,
	} {
		parsed, err := template.New(filepath.Base(path)).Option("missingkey=error").Parse(text)
		if err != nil {
			return fmt.Errorf("read template of %s: %w", path, err)
		}
		var out bytes.Buffer
		if err := parsed.Execute(&out, struct {
			Config
			Pause string
		}{cfg, PauseImage}); err != nil {
			return fmt.Errorf("fill %s: %w", path, err)
		}
		files[path] = out.Bytes()
	}
	for path, text := range files {
		path = filepath.Join(cfg.Root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write files of %s: %w", cfg.Name, err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return fmt.Errorf("write files of %s: %w", cfg.Name, err)
		}
	}
	return nil
}

// machineID is a name's own, as 128 bits.
func machineID(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return sum[:16]
}

// Encode is how a Config reaches Prepare: one line on its standard input.
func Encode(cfg Config) ([]byte, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("encode machine %s: %w", cfg.Name, err)
	}
	return append(text, '\n'), nil
}
