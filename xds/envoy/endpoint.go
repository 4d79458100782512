package envoy

import (
	"cmp"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

// The metadata that Istio's proxies look for.
const (
	metadataIstio  = "istio"
	metadataSocket = "envoy.transport_socket_match"
	tlsModeKey     = "tlsMode"
	tlsModeIstio   = "istio"
)

// endpoints writes a cluster's endpoints, grouped by locality in the order of the localities' names.
func (e *encoder) endpoints(p *plan.Endpoints) []Resource {
	return []Resource{{
		TypeURL: TypeURL(plan.KindEndpoints), Name: p.Name,
		Message: &endpoint.ClusterLoadAssignment{ClusterName: p.Name, Endpoints: e.localities(p.Endpoints)},
	}}
}

func (e *encoder) localities(list []plan.Endpoint) []*endpoint.LocalityLbEndpoints {
	var out []*endpoint.LocalityLbEndpoints
	byName := map[string]*endpoint.LocalityLbEndpoints{}
	seen := map[string]bool{}
	sorted := slices.SortedStableFunc(slices.Values(list), func(a, b plan.Endpoint) int { return cmp.Compare(a.Locality, b.Locality) })
	for i := range sorted {
		p := &sorted[i]
		if !p.Address.IsValid() || seen[p.Address.String()] {
			continue // what is known by name only is resolved by a cluster of a DNS kind; a double is refused by gRPC
		}
		seen[p.Address.String()] = true
		l := byName[p.Locality]
		if l == nil {
			l = &endpoint.LocalityLbEndpoints{Locality: locality(p.Locality), LoadBalancingWeight: wrapperspb.UInt32(0)}
			byName[p.Locality] = l
			out = append(out, l)
		}
		l.LbEndpoints = append(l.LbEndpoints, e.endpoint(p))
		l.LoadBalancingWeight.Value += max(p.Weight, 1)
	}
	return out
}

// locality reads "region/zone/subzone".
func locality(s string) *core.Locality {
	region, rest, _ := strings.Cut(s, "/")
	zone, sub, _ := strings.Cut(rest, "/")
	return &core.Locality{Region: region, Zone: zone, SubZone: sub}
}

func (e *encoder) endpoint(p *plan.Endpoint) *endpoint.LbEndpoint {
	out := &endpoint.LbEndpoint{
		HealthStatus:        health(p.Health),
		LoadBalancingWeight: wrapperspb.UInt32(max(p.Weight, 1)),
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
			Address: socket(p.Address.Addr(), p.Address.Port()),
		}},
	}
	if e.flavour == GRPC {
		return out
	}
	meta := map[string]*structpb.Struct{}
	if w := p.Workload; w.Name != "" {
		meta[metadataIstio] = fields("workload",
			strings.Join([]string{w.Name, w.Namespace, w.CanonicalName, w.CanonicalRevision, w.Cluster}, ";"))
	}
	// A sidecar's Envoy reaches HBONE endpoints by their own mTLS port, which serves both: Tunnel is for our own proxies.
	if p.MTLS {
		meta[metadataSocket] = fields(tlsModeKey, tlsModeIstio)
	}
	if len(meta) > 0 {
		out.Metadata = &core.Metadata{FilterMetadata: meta}
	}
	return out
}

func fields(key, value string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}
}

func health(h plan.Health) core.HealthStatus {
	switch h {
	case plan.Unhealthy:
		return core.HealthStatus_UNHEALTHY
	case plan.Draining:
		return core.HealthStatus_DRAINING
	default:
		return core.HealthStatus_HEALTHY
	}
}
