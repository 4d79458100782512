package plan

import "net/netip"

// Endpoints is where a cluster's instances are; it bears the cluster's name.
type Endpoints struct {
	Name      string
	Endpoints []Endpoint
}

// ResourceName is the cluster's name.
func (e *Endpoints) ResourceName() string { return e.Name }

// ResourceKind is KindEndpoints.
func (e *Endpoints) ResourceKind() Kind { return KindEndpoints }

// Endpoint is one instance.
type Endpoint struct {
	Address netip.AddrPort
	// Host is set instead of Address for an endpoint known by name only.
	Host string
	Port uint16
	// Weight is relative; 0 is 1.
	Weight   uint32
	Health   Health
	Locality string // region/zone/subzone
	Network  string
	// MTLS: the instance has a proxy that speaks mesh mTLS.
	MTLS bool
	// Tunnel is what mesh mTLS connections to the instance are carried by.
	Tunnel TunnelProtocol
	// Identity is the instance's SPIFFE ID; empty if unknown.
	Identity string
	Workload Workload
}

// TunnelProtocol is what carries connections between two proxies.
type TunnelProtocol uint8

// The tunnel protocols.
const (
	TunnelNone  TunnelProtocol = iota // each connection is a TLS connection of its own
	TunnelHBONE                       // streams of shared HTTP/2 connections over mesh mTLS, to PortHBONE
)

// PortHBONE is where proxies take HBONE tunnels.
const PortHBONE = 15008

var tunnelNames = [...]string{"none", "hbone"}

// String returns the protocol's name in lower case.
func (t TunnelProtocol) String() string { return tunnelNames[t] }

// Health is what the control plane knows of an endpoint.
type Health uint8

// The states of health.
const (
	Healthy Health = iota
	Unhealthy
	Draining // finish what is open, send nothing new
)

var healthNames = [...]string{"healthy", "unhealthy", "draining"}

// String returns the state's name in lower case.
func (h Health) String() string { return healthNames[h] }

// Workload describes an instance in telemetry.
type Workload struct {
	Name              string // workload (deployment) name
	Namespace         string
	App, Version      string
	CanonicalName     string
	CanonicalRevision string
	Cluster           string
}
