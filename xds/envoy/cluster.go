package envoy

import (
	"errors"
	"math"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	common "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	maglev "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	ringhash "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	upstream "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

var errDiscovery = errors.New("a gRPC client can only use endpoints that the control plane lists, or one DNS name")

// cluster writes how to reach a group of endpoints.
func (e *encoder) cluster(p *plan.Cluster) ([]Resource, error) {
	var m *cluster.Cluster
	if e.flavour == GRPC {
		var err error
		if m, err = e.grpcCluster(p); err != nil {
			return nil, err
		}
	} else {
		m = e.envoyCluster(p)
	}
	return []Resource{{TypeURL: TypeURL(plan.KindCluster), Name: p.Name, Message: m}}, nil
}

// grpcCluster is what a gRPC client understands (gRFC A27, A29, A32, A37, A42, A48). It has no algorithm of maglev or
// random, and no encryption that depends on the endpoint: with that the connection is plaintext, as in Istio.
func (e *encoder) grpcCluster(p *plan.Cluster) (*cluster.Cluster, error) {
	m := &cluster.Cluster{Name: p.Name, ConnectTimeout: orDuration(p.ConnectTimeout, connectTimeout)}
	switch {
	case p.Discovery == plan.DiscoverEndpoints:
		m.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_EDS}
		m.EdsClusterConfig = &cluster.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: p.Name}
	case (p.Discovery == plan.DiscoverDNS || p.Discovery == plan.DiscoverDNSFirst) && len(p.Addresses) > 0:
		m.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_LOGICAL_DNS}
		m.LoadAssignment = assignment(p.Name, p.Addresses[:1])
	default:
		return nil, errDiscovery
	}
	switch p.Balance.Algorithm {
	case plan.RingHash, plan.Maglev:
		m.LbPolicy = cluster.Cluster_RING_HASH
		if n := p.Balance.RingSize; n > 0 && p.Balance.Algorithm == plan.RingHash {
			m.LbConfig = &cluster.Cluster_RingHashLbConfig_{RingHashLbConfig: &cluster.Cluster_RingHashLbConfig{
				MinimumRingSize: wrapperspb.UInt64(uint64(min(n, ringMax))),
			}}
		}
	case plan.LeastRequest:
		m.LbPolicy = cluster.Cluster_LEAST_REQUEST
	default:
		m.LbPolicy = cluster.Cluster_ROUND_ROBIN
	}
	if n := p.Limits.Requests; n > 0 {
		m.CircuitBreakers = &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(n)}}}
	}
	if p.TLS.Mode == plan.ClientTLSMesh {
		m.TransportSocket = tlsSocket(e.grpcTLS(&p.TLS))
	}
	return m, nil
}

// Bounds and defaults.
const (
	ringMin        = 1024
	ringMax        = 8 << 20
	connectTimeout = 10e9 // nanoseconds, Istio's
	idleTimeout    = 3600e9
)

func (e *encoder) envoyCluster(p *plan.Cluster) *cluster.Cluster {
	m := &cluster.Cluster{
		Name: p.Name, ConnectTimeout: orDuration(p.ConnectTimeout, connectTimeout), CircuitBreakers: breakers(p.Limits),
		OutlierDetection: outlier(p.Outlier), Metadata: clusterMetadata(p),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{protocolOptions: pack(httpOptions(p))},
	}
	balance(m, &p.Balance)
	discovery(m, p)
	e.encrypt(m, p)
	if k := p.TCPKeepalive; k != (plan.Keepalive{}) {
		m.UpstreamConnectionOptions = &cluster.UpstreamConnectionOptions{TcpKeepalive: &core.TcpKeepalive{
			KeepaliveProbes: some(k.Probes), KeepaliveTime: some(uint32(k.Time.Seconds())), KeepaliveInterval: some(uint32(k.Interval.Seconds())),
		}}
	}
	if p.BindSource != "" {
		m.UpstreamBindConfig = &core.BindConfig{SourceAddress: &core.SocketAddress{
			Address: p.BindSource, PortSpecifier: &core.SocketAddress_PortValue{},
		}}
	}
	m.CommonLbConfig = &cluster.Cluster_CommonLbConfig{HealthyPanicThreshold: &envoytype.Percent{}}
	if o := p.Outlier; o != nil {
		m.CommonLbConfig.HealthyPanicThreshold.Value = float64(min(o.MinHealthPercent, 100))
	}
	return m
}

// discovery says where the endpoints come from.
func discovery(m *cluster.Cluster, p *plan.Cluster) {
	kind := cluster.Cluster_STATIC
	switch p.Discovery {
	case plan.DiscoverEndpoints:
		kind = cluster.Cluster_EDS
		m.EdsClusterConfig = &cluster.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: p.Name}
	case plan.DiscoverDNS, plan.DiscoverDNSFirst:
		kind = cluster.Cluster_STRICT_DNS
		if p.Discovery == plan.DiscoverDNSFirst && len(p.Addresses) == 1 {
			kind = cluster.Cluster_LOGICAL_DNS // which takes one name only
		}
		m.LoadAssignment = assignment(p.Name, p.Addresses)
		m.DnsLookupFamily = cluster.Cluster_V4_PREFERRED
		m.RespectDnsTtl = true //nolint:staticcheck // older Envoys do not know what replaces it
	case plan.DiscoverOriginalDst:
		kind = cluster.Cluster_ORIGINAL_DST
	default: // nowhere: a static cluster without endpoints
	}
	if p.Discovery != plan.DiscoverNothing && p.Balance.Algorithm == plan.OriginalDestination {
		kind, m.EdsClusterConfig, m.LoadAssignment = cluster.Cluster_ORIGINAL_DST, nil, nil
	}
	if kind == cluster.Cluster_ORIGINAL_DST {
		m.LbPolicy, m.LoadBalancingPolicy, m.LbConfig = cluster.Cluster_CLUSTER_PROVIDED, nil, nil
	}
	m.ClusterDiscoveryType = &cluster.Cluster_Type{Type: kind}
}

// assignment lists addresses that are resolved by whoever connects, grouped by locality in order of appearance.
func assignment(name string, list []plan.Address) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: name}
	byName := map[string]*endpoint.LocalityLbEndpoints{}
	for _, a := range list {
		l := byName[a.Locality]
		if l == nil {
			l = &endpoint.LocalityLbEndpoints{Locality: locality(a.Locality), LoadBalancingWeight: wrapperspb.UInt32(0)}
			byName[a.Locality] = l
			out.Endpoints = append(out.Endpoints, l)
		}
		l.LoadBalancingWeight.Value += max(a.Weight, 1)
		l.LbEndpoints = append(l.LbEndpoints, &endpoint.LbEndpoint{
			LoadBalancingWeight: wrapperspb.UInt32(max(a.Weight, 1)),
			HostIdentifier:      &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: socketHost(a.Host, a.Port)}},
		})
	}
	return out
}

// balance says how load is spread. The hash algorithms bring their inputs along, which Envoy prefers to the routes'.
func balance(m *cluster.Cluster, b *plan.Balance) {
	slow := slowStart(b)
	switch b.Algorithm {
	case plan.RoundRobin:
		m.LbPolicy = cluster.Cluster_ROUND_ROBIN
		if slow != nil {
			m.LbConfig = &cluster.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &cluster.Cluster_RoundRobinLbConfig{SlowStartConfig: slow}}
		}
	case plan.Random:
		m.LbPolicy = cluster.Cluster_RANDOM
	case plan.RingHash:
		m.LbPolicy = cluster.Cluster_RING_HASH
		size := uint64(ringMin)
		if b.RingSize > 0 {
			size = uint64(min(b.RingSize, ringMax))
		}
		m.LoadBalancingPolicy = policy("envoy.load_balancing_policies.ring_hash", &ringhash.RingHash{
			MinimumRingSize: wrapperspb.UInt64(size), ConsistentHashingLbConfig: hashing(b.HashOn),
		})
	case plan.Maglev:
		m.LbPolicy = cluster.Cluster_MAGLEV
		out := &maglev.Maglev{ConsistentHashingLbConfig: hashing(b.HashOn)}
		if b.RingSize > 0 {
			out.TableSize = wrapperspb.UInt64(uint64(b.RingSize))
		}
		m.LoadBalancingPolicy = policy("envoy.load_balancing_policies.maglev", out)
	default:
		m.LbPolicy = cluster.Cluster_LEAST_REQUEST
		if slow != nil {
			m.LbConfig = &cluster.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &cluster.Cluster_LeastRequestLbConfig{SlowStartConfig: slow}}
		}
	}
}

func slowStart(b *plan.Balance) *cluster.Cluster_SlowStartConfig {
	if b.Warmup == 0 {
		return nil
	}
	return &cluster.Cluster_SlowStartConfig{SlowStartWindow: duration(b.Warmup)}
}

func policy(name string, config proto.Message) *cluster.LoadBalancingPolicy {
	return &cluster.LoadBalancingPolicy{Policies: []*cluster.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &core.TypedExtensionConfig{Name: name, TypedConfig: pack(config)},
	}}}
}

// hashing is nil without inputs: then a route may bring them.
func hashing(list []plan.HashOn) *common.ConsistentHashingLbConfig {
	var out []*route.RouteAction_HashPolicy
	for _, h := range list {
		if x := hashOn(h); x != nil {
			out = append(out, x)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return &common.ConsistentHashingLbConfig{HashPolicy: out}
}

const protocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// httpOptions says what the endpoints speak.
func httpOptions(p *plan.Cluster) *upstream.HttpProtocolOptions {
	out := &upstream.HttpProtocolOptions{CommonHttpProtocolOptions: &core.HttpProtocolOptions{
		IdleTimeout: orDuration(p.IdleTimeout, idleTimeout), MaxRequestsPerConnection: some(p.Limits.RequestsPerConnection),
	}}
	if p.Limits.ConnectionDuration > 0 {
		out.CommonHttpProtocolOptions.MaxConnectionDuration = duration(p.Limits.ConnectionDuration)
	}
	h2 := &core.Http2ProtocolOptions{MaxConcurrentStreams: some(p.Limits.ConcurrentStreams)}
	explicit := &upstream.HttpProtocolOptions_ExplicitHttpConfig{}
	switch {
	case p.UseClientProtocol || p.Protocol == plan.ProtocolAuto:
		out.UpstreamProtocolOptions = &upstream.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &upstream.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: &core.Http1ProtocolOptions{}, Http2ProtocolOptions: h2,
			},
		}
		return out
	case p.Protocol == plan.ProtocolHTTP2 || p.Protocol == plan.ProtocolGRPC:
		explicit.ProtocolConfig = &upstream.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2}
	default:
		explicit.ProtocolConfig = &upstream.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &core.Http1ProtocolOptions{}}
	}
	out.UpstreamProtocolOptions = &upstream.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit}
	return out
}

// breakers bounds a cluster; what is unlimited is spelled out, as Envoy's own defaults are low.
func breakers(l plan.Limits) *cluster.CircuitBreakers {
	limit := func(n uint32) *wrapperspb.UInt32Value {
		if n == 0 {
			n = math.MaxUint32
		}
		return wrapperspb.UInt32(n)
	}
	t := &cluster.CircuitBreakers_Thresholds{
		MaxConnections: limit(l.Connections), MaxPendingRequests: limit(l.PendingRequests), MaxRequests: limit(l.Requests),
		MaxRetries: limit(l.Retries), TrackRemaining: true,
	}
	if l.RetryBudget > 0 {
		t.RetryBudget = &cluster.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent: &envoytype.Percent{Value: min(l.RetryBudget, 100)}, MinRetryConcurrency: some(l.RetryBudgetMin),
		}
	}
	return &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{t}}
}

// The defaults of Istio's outlier detection.
const (
	outlierInterval = 10e9 // nanoseconds
	outlierBase     = 30e9
	outlierEjected  = 10
)

// outlier ejects by counts of failures only: Envoy's statistical methods, on by default, are turned off as in Istio.
// It knows no status codes of one's own.
func outlier(o *plan.Outlier) *cluster.OutlierDetection {
	if o == nil {
		return nil
	}
	enforce := func(n uint32) *wrapperspb.UInt32Value {
		if n > 0 {
			n = 100
		}
		return wrapperspb.UInt32(n)
	}
	out := &cluster.OutlierDetection{
		Interval: orDuration(o.Interval, outlierInterval), BaseEjectionTime: orDuration(o.BaseEjection, outlierBase),
		MaxEjectionPercent: wrapperspb.UInt32(outlierEjected), EnforcingSuccessRate: wrapperspb.UInt32(0),
		Consecutive_5Xx: some(o.Consecutive5xx), EnforcingConsecutive_5Xx: enforce(o.Consecutive5xx),
		ConsecutiveGatewayFailure: some(o.ConsecutiveGateway), EnforcingConsecutiveGatewayFailure: enforce(o.ConsecutiveGateway),
	}
	// Envoy's ejection time must not exceed its maximum, of 300 s unless told otherwise.
	if b := out.BaseEjectionTime.AsDuration(); b > 300e9 {
		out.MaxEjectionTime = duration(b)
	}
	if o.MaxEjectionPercent > 0 {
		out.MaxEjectionPercent = wrapperspb.UInt32(min(o.MaxEjectionPercent, 100))
	}
	if o.SplitLocal {
		out.SplitExternalLocalOriginErrors = true
		out.ConsecutiveLocalOriginFailure = some(o.ConsecutiveLocal)
		out.EnforcingConsecutiveLocalOriginFailure = enforce(o.ConsecutiveLocal)
		out.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	return out
}

// clusterMetadata names the service, as Istio's proxies report it.
func clusterMetadata(p *plan.Cluster) *core.Metadata {
	if p.Service.Host == "" {
		return nil
	}
	list := []*structpb.Value{structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
		"host": structpb.NewStringValue(p.Service.Host), "name": structpb.NewStringValue(p.Service.Name),
		"namespace": structpb.NewStringValue(p.Service.Namespace),
	}})}
	values := map[string]*structpb.Value{"services": structpb.NewListValue(&structpb.ListValue{Values: list})}
	if p.Subset != "" {
		values["subset"] = structpb.NewStringValue(p.Subset)
	}
	return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataIstio: {Fields: values}}}
}
