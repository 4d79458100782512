package mesh

import "net/netip"

// Service is something that can be called: a Kubernetes Service or one host of a ServiceEntry.
type Service struct {
	Origin
	Host      string // fully qualified, lower case: reviews.default.svc.cluster.local; may start with "*."
	ShortName string // reviews
	Namespace string
	// Addresses are the virtual addresses; CIDR ranges are kept as prefixes. Never empty for a service that
	// workloads call by name: source allocates one where the user gave none.
	Addresses []netip.Prefix
	// Allocated: the addresses were chosen by us, not by the user.
	Allocated bool
	Ports     []Port
	// Selector picks workloads of Namespace; nil: only Endpoints. An empty non-nil selector picks nothing.
	Selector Labels
	// Listed picks, beside these, workloads of Namespace that somebody else lists for a Kubernetes Service: the label by
	// which their EndpointSlices name it; nil: none.
	Listed Labels
	// Endpoints are workloads that the object lists itself (ServiceEntry endpoints).
	Endpoints  []*Workload
	Resolution Resolution
	// External: MESH_EXTERNAL, outside of the mesh: no mTLS, other telemetry.
	External bool
	Headless bool
	// NotReady: workloads that are not ready get traffic, too (publishNotReadyAddresses).
	NotReady        bool
	SubjectAltNames []string
	Visibility      Visibility
	Labels          Labels
	// ServiceAccounts are extra SPIFFE IDs that may serve the host.
	ServiceAccounts []string
}

// Ref names the service by namespace and host: two namespaces may define one host.
func (s *Service) Ref() Ref { return Ref{KindService, s.Namespace, s.Host} }

// Port returns the port of that number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}

// Port is a service port.
type Port struct {
	Name     string
	Number   uint16
	Protocol Protocol
	// Target is the workload's port; 0: by TargetName, else Number.
	Target     uint16
	TargetName string
}

// Resolution is how a service's endpoints are found.
type Resolution uint8

// The resolutions, those of ServiceEntry; a Kubernetes Service is Static.
const (
	Static Resolution = iota
	None              // the address the client dialled
	DNS
	DNSRoundRobin
	DynamicDNS
)
