package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/redirect"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

// Name is the plugin's: of its program, and in lists of plugins.
const Name = "lateen-cni"

// annotationsCapability has containerd and CRI-O tell a plugin the annotations of the pod.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// stdinMax bounds in bytes what the runtime says. Kubernetes allows 256 KiB of annotations, whose characters JSON may
// write with six each.
const stdinMax = 2 << 20

// The codes of errors (CNI specification, "Error"); from 100 on they are the plugin's own.
const (
	codeVersion     = 1
	codeEnvironment = 4
	codeInput       = 5
	codeDecode      = 6
	codeConfig      = 7
	codeRules       = 100
)

// versions are those of the CNI specification that are spoken, the newest last: all in which plugins are chained.
func versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

func newest() string { return versions()[len(versions())-1] }

// Plugin is one call by a container runtime, as the CNI specification has it. ADD sets the capture rules in the network
// of a pod that has the annotation redirect.CaptureAnnotation, and CHECK looks whether they are there. DEL leaves them
// to end with the network, as what the pod still sends must not go around its proxy; GC and STATUS have nothing to do.
type Plugin struct {
	Getenv         func(string) string // os.Getenv: the parameters.
	Stdin          io.Reader           // The configuration.
	Stdout, Stderr io.Writer           // The result or the error as JSON; what the runtime may log.
}

// request is the configuration: the plugin's entry in the list, and what the runtime adds to it.
type request struct {
	Version       string `json:"cniVersion"`
	RuntimeConfig struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// fault is an error as the runtime reads it.
type fault struct {
	Version string `json:"cniVersion"`
	Code    int    `json:"code"`
	Message string `json:"msg"`
}

func (f *fault) Error() string { return f.Message }

func faultf(code int, format string, args ...any) error {
	return &fault{Code: code, Message: fmt.Errorf(format, args...).Error()}
}

// Run does what CNI_COMMAND says. An error has been told the runtime; the caller only has to end with a code of failure.
func (p Plugin) Run() error {
	r, err := p.read()
	if err == nil {
		err = p.obey(r)
	}
	if err == nil {
		return nil
	}
	told, ok := errors.AsType[*fault](err)
	if !ok {
		told = &fault{Code: codeInput, Message: err.Error()}
	}
	told.Version = newest()
	if slices.Contains(versions(), r.Version) {
		told.Version = r.Version
	}
	return errors.Join(err, p.print(told))
}

// read reads the configuration.
func (p Plugin) read() (r request, err error) {
	text, err := io.ReadAll(io.LimitReader(p.Stdin, stdinMax+1))
	switch {
	case err != nil:
		return r, faultf(codeInput, "read the configuration: %w", err)
	case len(text) > stdinMax:
		return r, faultf(codeDecode, "read the configuration: more than %d KiB", stdinMax>>10)
	case p.Getenv("CNI_COMMAND") == "VERSION" && len(text) == 0:
		return r, nil
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, faultf(codeDecode, "read the configuration: %w", err)
	}
	return r, nil
}

// obey does what the command says.
func (p Plugin) obey(r request) error {
	command := p.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		asked := cmp.Or(r.Version, newest())
		return p.print(map[string]any{"cniVersion": asked, "supportedVersions": versions()})
	}
	if !slices.Contains(versions(), r.Version) {
		return faultf(codeVersion, "version %q of the CNI specification is not spoken: want one of %s", r.Version, strings.Join(versions(), ", "))
	}
	switch command {
	case "ADD":
		if !bytes.HasPrefix(bytes.TrimSpace(r.PrevResult), []byte("{")) {
			return faultf(codeConfig, "there is no prevResult: %s must stand behind the plugin that makes the network, in the same list", Name)
		}
		if err := p.inside(r, Init); err != nil {
			return err
		}
		return p.print(r.PrevResult)
	case "CHECK":
		return p.inside(r, check)
	case "DEL", "GC", "STATUS":
		return nil
	}
	return faultf(codeEnvironment, "CNI_COMMAND is %q: want ADD, CHECK, DEL, GC, STATUS or VERSION", command)
}

// check looks whether the rules are there, exactly.
func check(config redirect.Config) error {
	rules, err := redirect.Rules(config)
	if err != nil {
		return err
	}
	return redirect.Verify(rules)
}

// inside runs do in the network of the pod, if it is to be captured. Where the runtime tells no annotations the pod is
// left alone: it may be one that the cluster cannot do without. If it should have been captured, its container
// lateen-validation keeps it from running.
func (p Plugin) inside(r request, do func(redirect.Config) error) error {
	pod := podName(p.Getenv("CNI_ARGS"))
	if r.RuntimeConfig.Annotations == nil && pod != "" {
		_, _ = fmt.Fprintf(p.Stderr, "%s: pod %s is not captured, as the container runtime does not tell its annotations: "+
			"see whether the runtime knows the CNI capability %s, or do without the plugin\n", Name, pod, annotationsCapability)
	}
	text, ok := r.RuntimeConfig.Annotations[redirect.CaptureAnnotation]
	if !ok {
		return nil
	}
	config, err := Read(text)
	if err != nil {
		return faultf(codeConfig, "pod %s: annotation %s: %w (is the plugin of this node older than the control plane?)",
			pod, redirect.CaptureAnnotation, err)
	}
	ns, err := openNetwork(p.Getenv("CNI_NETNS"))
	if err != nil {
		return faultf(codeEnvironment, "pod %s: CNI_NETNS: %w", pod, err)
	}
	defer func() { _ = ns.Close() }()
	if err := netns.Do(ns, func() error { return do(config) }); err != nil {
		return faultf(codeRules, "capture the traffic of pod %s: %w", pod, err)
	}
	return nil
}

// openNetwork opens a pod's network namespace. That of the caller, which is the node's, is refused.
func openNetwork(path string) (*os.File, error) {
	if path == "" {
		return nil, errors.New("no network namespace is named")
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	home, err := netns.Current()
	if err == nil {
		defer func() { _ = home.Close() }()
		err = differ(ns, home, path)
	}
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return ns, nil
}

func differ(ns, home *os.File, path string) error {
	a, err := ns.Stat()
	if err != nil {
		return err
	}
	b, err := home.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(a, b) {
		return fmt.Errorf("%s is the network namespace of the node: its traffic is not for a pod's proxy", path)
	}
	return nil
}

// podName is the pod of which the kubelet's arguments tell, as namespace/name; empty if they tell of none.
func podName(args string) string {
	var namespace, name string
	for pair := range strings.SplitSeq(args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		}
	}
	if name == "" {
		return ""
	}
	return namespace + "/" + name
}

func (p Plugin) print(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if _, err := p.Stdout.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
