package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The oldest kernel whose nftables have what the capture rules need: NAT in the family inet (see package redirect).
const (
	kernelMajor = 5
	kernelMinor = 2
)

// nodeChecks judge whether the nodes can run proxies, as far as the API server knows.
func nodeChecks() group {
	return group{"nodes", []check{
		{
			name: "the nodes run Linux, on amd64 or arm64", judge: perNode(failed, nodeSystem),
			next: "keep pods of the mesh away from the nodes that are named, by a nodeSelector",
		},
		{
			name: fmt.Sprintf("their kernels have the nftables that are needed (Linux %d.%d)", kernelMajor, kernelMinor), judge: perNode(failed, nodeKernel),
			next: "upgrade the nodes that are named; whether a module is missing is told by the first pod's lateen-init",
		},
		{
			name: fmt.Sprintf("their kubelets have native sidecars (1.%d)", minorNative), judge: perNode(warned, nodeKubelet),
			next: "upgrade the nodes that are named, or have pods get classic sidecars: --set injection.config.classicSidecars=true",
		},
		{
			name: "their container runtime is containerd or CRI-O", judge: perNode(warned, nodeRuntime),
			next: "leave the CNI plugin out (--set cni.enabled=false): it learns of pods' annotations from these two only",
		},
		{
			name: "the cluster's network leaves room for Lateen's capture", judge: networkFits,
			next: "change the setting that is named in the ConfigMap kube-system/cilium-config, and restart Cilium's agents",
		},
	}}
}

// perNode judges every node. What is wrong with some of them is odd; with all it is of the level that is given.
func perNode(all level, fault func(core.NodeSystemInfo) string) func(context.Context, *look) verdict {
	return func(ctx context.Context, l *look) verdict {
		nodes, err := l.nodes(ctx)
		if err != nil {
			return trouble(err)
		}
		if len(nodes) == 0 {
			return skip("there are no nodes yet")
		}
		var why []string
		for _, n := range nodes {
			if text := fault(n.Status.NodeInfo); text != "" {
				why = append(why, "node "+n.Name+" has "+text)
			}
		}
		if len(why) == len(nodes) {
			return verdict{all, why}
		}
		return unless(warned, why)
	}
}

func nodeSystem(i core.NodeSystemInfo) string {
	if i.OperatingSystem != "linux" || !slices.Contains([]string{"amd64", "arm64"}, i.Architecture) {
		return i.OperatingSystem + " on " + i.Architecture
	}
	return ""
}

func nodeKernel(i core.NodeSystemInfo) string {
	if i.OperatingSystem != "linux" {
		return ""
	}
	major, minor, err := twoNumbers(i.KernelVersion)
	if err != nil || major > kernelMajor || major == kernelMajor && minor >= kernelMinor {
		return "" // one that names itself oddly is believed
	}
	return "the kernel " + i.KernelVersion
}

func nodeKubelet(i core.NodeSystemInfo) string {
	major, minor, err := twoNumbers(strings.TrimPrefix(i.KubeletVersion, "v"))
	if err != nil || major > 1 || minor >= minorNative {
		return ""
	}
	return "the kubelet " + i.KubeletVersion
}

func nodeRuntime(i core.NodeSystemInfo) string {
	name, _, _ := strings.Cut(i.ContainerRuntimeVersion, ":")
	if slices.Contains([]string{"", "containerd", "cri-o"}, name) {
		return ""
	}
	return "the container runtime " + i.ContainerRuntimeVersion
}

// twoNumbers reads the first two numbers of a version, such as 6.1 of 6.1.0-13-amd64.
func twoNumbers(text string) (major, minor int, err error) {
	first, rest, _ := strings.Cut(text, ".")
	second := strings.FieldsFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if len(second) == 0 {
		return 0, 0, fmt.Errorf("version %q has no two numbers", text)
	}
	major, err = strconv.Atoi(first)
	minor, failed := strconv.Atoi(second[0])
	return major, minor, errors.Join(err, failed)
}

// networkFits looks at Cilium, whose settings can go before ours: it takes other CNI plugins away, and it can translate
// Services' addresses in the application's own socket, before the rules see them (Istio's platform notes on Cilium).
func networkFits(ctx context.Context, l *look) verdict {
	m, err := l.kube.CoreV1().ConfigMaps("kube-system").Get(ctx, "cilium-config", meta.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return ok()
	case err != nil:
		return skip(err.Error())
	}
	var why []string
	if m.Data["cni-exclusive"] != "false" {
		why = append(why, "Cilium takes other CNI plugins away: cni-exclusive is not false (this matters for the CNI plugin only)")
	}
	sockets := m.Data["bpf-lb-sock"] == "true" || slices.Contains([]string{"true", "strict"}, m.Data["kube-proxy-replacement"])
	if sockets && m.Data["bpf-lb-sock-hostns-only"] != "true" {
		why = append(why, "Cilium translates Services' addresses in the pods' sockets: bpf-lb-sock-hostns-only is not true")
	}
	return unless(warned, why)
}
