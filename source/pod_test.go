package source

import (
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/mesh"
)

// TestDeployment: a pod is known by what a user has made, not by what has made it.
func TestDeployment(t *testing.T) {
	yes := true
	for _, tt := range []struct{ kind, owner, hash, want string }{
		{"", "", "", "pod"},
		{"ReplicaSet", "web-5f4d", "5f4d", "web"},
		{"ReplicaSet", "by-hand", "", "by-hand"},
		{"StatefulSet", "db", "", "db"},
		{"Job", "nightly-28123456", "", "nightly"},
		{"Job", "once", "", "once"},
	} {
		p := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: "pod", Labels: map[string]string{labelTemplateHash: tt.hash}}}
		if tt.kind != "" {
			p.OwnerReferences = []meta.OwnerReference{{Kind: "Other", Name: "other"}, {Kind: tt.kind, Name: tt.owner, Controller: &yes}}
		}
		if got := deployment(p); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.kind, tt.owner, got, tt.want)
		}
	}
}

func TestLocality(t *testing.T) {
	for _, tt := range []struct {
		want   string
		labels map[string]string
	}{
		{"", nil},
		{"eu", map[string]string{core.LabelTopologyRegion: "eu"}},
		{"eu/a", map[string]string{core.LabelTopologyRegion: "eu", core.LabelTopologyZone: "a"}},
		{"eu/a/rack", map[string]string{core.LabelTopologyRegion: "eu", core.LabelTopologyZone: "a", labelSubzone: "rack"}},
		{"/a", map[string]string{core.LabelTopologyZone: "a"}},
	} {
		if got := Locality(tt.labels); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.labels, got, tt.want)
		}
	}
}

// TestAmbient: a pod whose traffic the node's proxy takes is reached by tunnels, without a sidecar.
func TestAmbient(t *testing.T) {
	always := core.ContainerRestartPolicyAlways
	p := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: "p", Annotations: map[string]string{annotationRedirect: redirectEnabled, "proxy.istio.io/config": "gatewayTopology: {numTrustedProxies: 3}"}},
		Spec: core.PodSpec{
			Containers: []core.Container{{Ports: []core.ContainerPort{{Name: "dns", Protocol: core.ProtocolUDP, ContainerPort: 53}, {Name: "web", ContainerPort: 80}}}},
			InitContainers: []core.Container{
				{Ports: []core.ContainerPort{{Name: "gone", ContainerPort: 1}}},
				{RestartPolicy: &always, Ports: []core.ContainerPort{{Name: "side", ContainerPort: 2}, {Name: "web", ContainerPort: 3}}},
			},
		},
		Status: core.PodStatus{PodIP: "::ffff:10.0.0.1"},
	}
	w := Pod(p)
	if !w.HBONE() || w.Health != mesh.Unhealthy || w.ServiceAccount != "default" || w.Addresses[0].String() != "10.0.0.1" || w.Proxy.TrustedProxies != 3 {
		t.Errorf("workload %+v", w)
	}
	if len(w.Targets) != 2 || w.Targets["web"] != 80 || w.Targets["side"] != 2 {
		t.Errorf("targets %v", w.Targets)
	}
	p.Status.PodIP = ""
	if Pod(p) != nil {
		t.Error("a pod without an address is a workload")
	}
}
