package mesh

import "net/netip"

// OriginPod is the Kind of the Origin of a workload that is a Kubernetes pod.
const OriginPod = "Pod"

// Workload is one running instance: a WorkloadEntry, a pod, or an endpoint of a ServiceEntry.
type Workload struct {
	Origin
	Namespace string
	ID        string // unique in its namespace: the entry's or pod's name
	// Addresses are its IPs, the preferred one first; empty when Host is set.
	Addresses      []netip.Addr
	Host           string // an endpoint known only by DNS name
	UnixPath       string // an endpoint on a Unix socket; only a proxy beside it can reach it
	Labels         Labels
	Listed         bool              // an EndpointSlice lists it: only the Listed of a service picks it
	Ports          map[string]uint16 // by service port name
	Targets        map[string]uint16 // by name of a container's port, which a service's targetPort may be; a pod's only
	ServiceAccount string
	Locality       string // region/zone/subzone
	Network        string
	Weight         uint32 // 0 is 1
	// MTLS: a proxy of the mesh stands before it (label security.istio.io/tlsMode=istio).
	MTLS bool
	// Ambient: a proxy of its node takes its mesh connections, in tunnels.
	Ambient bool
	Health  Health
	// WorkloadName is the deployment it belongs to; CanonicalName and CanonicalRevision as Istio defines them.
	WorkloadName, CanonicalName, CanonicalRevision string
	// Proxy are the settings of its own proxy (annotation proxy.istio.io/config).
	Proxy ProxySettings
}

// labelTunnel says what a workload's proxy takes tunnels by; the one value that Istio knows is "http".
const labelTunnel = "networking.istio.io/tunnel"

// HBONE reports whether its proxy wants mesh connections in tunnels: that of its node, or its own by the label
// networking.istio.io/tunnel=http.
func (w *Workload) HBONE() bool { return w.MTLS && (w.Ambient || w.Labels[labelTunnel] == "http") }

// Ref names the workload.
func (w *Workload) Ref() Ref { return Ref{KindWorkload, w.Namespace, w.ID} }

// Health is whether a workload may get traffic.
type Health uint8

// The states of health.
const (
	Healthy Health = iota
	Unhealthy
	Draining
)
