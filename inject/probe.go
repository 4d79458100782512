package inject

import (
	"encoding/json"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// appProbe is what the proxy is told of a probe or a lifecycle handler of the application: Istio's format of
// ISTIO_KUBE_APP_PROBERS (proxy/probe reads it). Ports are numbers.
type appProbe struct {
	HTTPGet        *core.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *core.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *core.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                 `json:"timeoutSeconds,omitempty"`
}

// rewriteProbes leads the probes of the application to the proxy's port 15020, which is not captured, and returns what
// the proxy is told about them; empty: nothing. The kubelet has no certificate of the mesh, and asks from outside: a
// probe of a TCP port would be answered by the proxy whatever the application does.
func (j *job) rewriteProbes(gateway bool) string {
	if gateway || !j.settings.rewrite {
		return ""
	}
	told := map[string]appProbe{}
	for i, c := range j.pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == core.ContainerRestartPolicyAlways {
			j.rewriteContainer(c, told, "spec", "initContainers", i)
		}
	}
	for i, c := range j.pod.Spec.Containers {
		j.rewriteContainer(c, told, "spec", "containers", i)
	}
	if len(told) == 0 {
		return ""
	}
	text, _ := json.Marshal(told) // of texts and numbers: never fails
	return string(text)
}

func (j *job) rewriteContainer(c core.Container, told map[string]appProbe, path ...any) {
	if isProxy(c) {
		return
	}
	at := func(more ...any) []any { return append(append([]any{}, path...), more...) }
	for _, p := range []struct {
		field, name string
		probe       *core.Probe
	}{{"livenessProbe", "livez", c.LivenessProbe}, {"readinessProbe", "readyz", c.ReadinessProbe}, {"startupProbe", "startupz", c.StartupProbe}} {
		if p.probe == nil {
			continue
		}
		url := "/app-health/" + c.Name + "/" + p.name
		if a, ok := readProbe(p.probe.ProbeHandler, c.Ports); ok {
			a.TimeoutSeconds = p.probe.TimeoutSeconds
			told[url] = a
			j.redirectHandler(a, url, at(p.field)...)
		}
	}
	if c.Lifecycle == nil {
		return
	}
	for _, h := range []struct {
		field, name string
		handler     *core.LifecycleHandler
	}{{"postStart", "poststartz", c.Lifecycle.PostStart}, {"preStop", "prestopz", c.Lifecycle.PreStop}} {
		if h.handler == nil {
			continue
		}
		url := "/app-lifecycle/" + c.Name + "/" + h.name
		if a, ok := readProbe(core.ProbeHandler{HTTPGet: h.handler.HTTPGet, TCPSocket: h.handler.TCPSocket}, c.Ports); ok {
			told[url] = a
			j.redirectHandler(a, url, at("lifecycle", h.field)...)
		}
	}
}

// redirectHandler has the kubelet ask the proxy.
func (j *job) redirectHandler(a appProbe, url string, path ...any) {
	patch := &j.result.Patch
	at := func(field string) []any { return append(append([]any{}, path...), field) }
	get := core.HTTPGetAction{Path: url, Port: intstr.FromInt32(portMetrics)}
	switch {
	case a.HTTPGet != nil:
		patch.replace(get, at("httpGet")...)
		return
	case a.TCPSocket != nil:
		patch.remove(at("tcpSocket")...)
	default:
		patch.remove(at("grpc")...)
	}
	patch.add(get, at("httpGet")...)
}

// readProbe returns what a handler asks for; not ok if it stays as it is: commands, probes of other hosts, those that
// already ask the proxy, and ports whose name nobody knows, which the kubelet will complain about.
func readProbe(h core.ProbeHandler, ports []core.ContainerPort) (a appProbe, ok bool) {
	switch {
	case h.HTTPGet != nil && h.HTTPGet.Host == "":
		get := *h.HTTPGet
		get.Port, ok = number(get.Port, ports)
		ok = ok && get.Port.IntVal != portMetrics && get.Port.IntVal != portHealth
		return appProbe{HTTPGet: &get}, ok
	case h.TCPSocket != nil && h.TCPSocket.Host == "":
		socket := *h.TCPSocket
		socket.Port, ok = number(socket.Port, ports)
		return appProbe{TCPSocket: &socket}, ok
	case h.GRPC != nil:
		return appProbe{GRPC: h.GRPC}, true
	}
	return appProbe{}, false
}

// number finds the port that a name means.
func number(port intstr.IntOrString, ports []core.ContainerPort) (intstr.IntOrString, bool) {
	if port.Type == intstr.Int {
		return port, port.IntVal > 0
	}
	for _, p := range ports {
		if p.Name == port.StrVal {
			return intstr.FromInt32(p.ContainerPort), true
		}
	}
	if n := port.IntValue(); n > 0 {
		return intstr.FromInt32(int32(n)), true
	}
	return port, false
}
