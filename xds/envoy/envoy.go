// Package envoy is the wire of the data planes that are not ours: it writes a
// plan in Envoy's v3 types, for Envoy itself and for gRPC clients that do
// without a proxy.
//
// In: a plan.Resource, who it is for (Flavour) and Options. Out: one or more
// Resources, ready to be sent over xDS. It only encodes; it knows no streams,
// no mesh and no clock, and reads no file. Equal resources give equal bytes. The
// functions may be called from any goroutine.
//
// # Names
//
// A plan names what it orders by what captured traffic is bound for; Envoy's
// resources are named as Istio names them. Name and PlanName translate.
//
//	plan                                    Envoy (sidecar, gateway)              gRPC
//	listener "inbound"                      virtualInbound and virtualOutbound    -
//	listener "10.0.0.7:9080"                10.0.0.7_9080                         -
//	listener "[fd00::7]:9080"               fd00::7_9080                          -
//	listener "reviews.default...:9080"      -                                     the same
//	listener "gateway|8080"                 0.0.0.0_8080                          -
//	route "reviews.default...:9080"         the same                              the same
//	route "gateway|8080"                    http.8080                             -
//	route "gateway|443|ns/gw/0"             https.443.ns/gw/0                     -
//	cluster, endpoints                      the same                              the same
//	secret "kubernetes://ns/name"           the same, and with -cacert its roots  -
//
// A plan's inline route bears the name of its cluster. A plan.Name has no
// counterpart here.
package envoy

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

// Flavour is what kind of data plane a resource is for.
type Flavour uint8

// The flavours.
const (
	Sidecar Flavour = iota // Envoy beside a workload, which traffic is redirected to
	Gateway                // Envoy on ports of its own
	GRPC                   // a gRPC client's own xDS support (gRFC A27 and its successors)
)

// Options are what a plan does not say. The zero value is for a mesh with Istio's defaults.
type Options struct {
	// TrustDomain is that of the mesh. Empty: cluster.local.
	TrustDomain string
	// AgentSocket is the path of the Unix socket on which an agent beside Envoy serves the workload's certificate
	// ("default") and the mesh's roots ("ROOTCA") as SDS. Empty: where Istio's agent puts it.
	AgentSocket string
	// OutboundPort and InboundPort are what traffic is redirected to. 0: 15001 and 15006.
	OutboundPort, InboundPort uint16
	// RegistryOnly refuses connections to destinations that the mesh does not know, instead of passing them on.
	RegistryOnly bool
	// SystemRoots is the file with the roots of the machine that Envoy runs on, for TLS without roots of its own.
	// Empty: where Debian and Istio's images have it.
	SystemRoots string
}

// The defaults of Options.
const (
	trustDomain  = "cluster.local"
	agentSocket  = "./var/run/secrets/workload-spiffe-uds/socket"
	outboundPort = 15001
	inboundPort  = 15006
	systemRoots  = "/etc/ssl/certs/ca-certificates.crt"
)

func (o Options) withDefaults() Options {
	if o.TrustDomain == "" {
		o.TrustDomain = trustDomain
	}
	if o.AgentSocket == "" {
		o.AgentSocket = agentSocket
	}
	if o.OutboundPort == 0 {
		o.OutboundPort = outboundPort
	}
	if o.InboundPort == 0 {
		o.InboundPort = inboundPort
	}
	if o.SystemRoots == "" {
		o.SystemRoots = systemRoots
	}
	return o
}

// Resource is one of Envoy's.
type Resource struct {
	TypeURL string
	Name    string
	Message proto.Message
}

// Body returns the encoded message, the value of the Any that carries it. Equal messages give equal bytes within one
// build of the program.
func (r Resource) Body() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", r.TypeURL, r.Name, err)
	}
	return b, nil
}

const typePrefix = "type.googleapis.com/"

// types lists the kinds that Envoy knows, in the order in which a change is carried.
var types = [...]struct {
	kind plan.Kind
	url  string
}{
	{plan.KindCluster, typePrefix + "envoy.config.cluster.v3.Cluster"},
	{plan.KindEndpoints, typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"},
	{plan.KindSecret, typePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret"},
	{plan.KindListener, typePrefix + "envoy.config.listener.v3.Listener"},
	{plan.KindRoute, typePrefix + "envoy.config.route.v3.RouteConfiguration"},
}

// TypeURL is the type URL of a kind; empty for one that Envoy does not know.
func TypeURL(kind plan.Kind) string {
	for _, t := range types {
		if t.kind == kind {
			return t.url
		}
	}
	return ""
}

// KindOf undoes TypeURL.
func KindOf(typeURL string) (plan.Kind, bool) {
	for _, t := range types {
		if t.url == typeURL {
			return t.kind, true
		}
	}
	return 0, false
}

// TypeURLs lists all type URLs in the order in which a change is carried.
func TypeURLs() []string {
	out := make([]string, len(types))
	for i, t := range types {
		out[i] = t.url
	}
	return out
}

// The names of Envoy's resources that stand for a sidecar's "inbound".
const (
	virtualInbound  = "virtualInbound"
	virtualOutbound = "virtualOutbound"
)

// rootsSuffix ends the name of the secret that holds the roots beside a secret's own certificate.
const rootsSuffix = "-cacert"

// Names lists the names that one resource of a plan has on the wire.
func Names(f Flavour, kind plan.Kind, name string) []string {
	if f == GRPC {
		return []string{name}
	}
	switch kind {
	case plan.KindListener:
		return listenerNames(name)
	case plan.KindRoute:
		return []string{routeName(name)}
	case plan.KindSecret:
		return []string{name, name + rootsSuffix}
	default:
		return []string{name}
	}
}

func listenerNames(name string) []string {
	if name == plan.ListenerInbound {
		return []string{virtualInbound, virtualOutbound}
	}
	if port, ok := strings.CutPrefix(name, plan.ListenerGateway); ok {
		return []string{"0.0.0.0_" + port}
	}
	if at, err := netip.ParseAddrPort(name); err == nil {
		return []string{at.Addr().String() + "_" + strconv.Itoa(int(at.Port()))}
	}
	return []string{name}
}

// routeName is what Envoy calls a route.
func routeName(name string) string {
	rest, ok := strings.CutPrefix(name, plan.ListenerGateway)
	if !ok {
		return name
	}
	if port, server, tls := strings.Cut(rest, "|"); tls {
		return "https." + port + "." + server
	}
	return "http." + rest
}

// PlanName is the name in the plan of what a client of that flavour asks for.
func PlanName(f Flavour, kind plan.Kind, name string) string {
	if f == GRPC {
		return name
	}
	switch kind {
	case plan.KindListener:
		return planListener(f, name)
	case plan.KindRoute:
		if port, ok := strings.CutPrefix(name, "http."); ok && number(port) {
			return plan.ListenerGateway + port
		}
		if rest, ok := strings.CutPrefix(name, "https."); ok {
			if port, server, ok := strings.Cut(rest, "."); ok && number(port) {
				return plan.ListenerGateway + port + "|" + server
			}
		}
	case plan.KindSecret:
		return strings.TrimSuffix(name, rootsSuffix)
	default: // the same on both sides
	}
	return name
}

func number(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func planListener(f Flavour, name string) string {
	if name == virtualInbound || name == virtualOutbound {
		return plan.ListenerInbound
	}
	i := strings.LastIndexByte(name, '_')
	if i < 0 {
		return name
	}
	if f == Gateway {
		return plan.ListenerGateway + name[i+1:]
	}
	return net.JoinHostPort(name[:i], name[i+1:])
}

// encoder is one encoding under way.
type encoder struct {
	Options
	flavour Flavour
}

// Encode writes one resource of a plan for a data plane of that flavour: usually as one resource of Envoy's, as none
// if the plan's says nothing that Envoy must be told. An error says what cannot be said in that flavour, and that
// resource must not be sent: half of an order is worse than none.
func Encode(f Flavour, r plan.Resource, o Options) ([]Resource, error) {
	e := &encoder{Options: o.withDefaults(), flavour: f}
	var out []Resource
	var err error
	switch r := r.(type) {
	case *plan.Listener:
		out, err = e.listener(r)
	case *plan.Route:
		out, err = e.route(r)
	case *plan.Cluster:
		out, err = e.cluster(r)
	case *plan.Endpoints:
		out = e.endpoints(r)
	case *plan.Secret:
		out = e.secret(r)
	}
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", r.ResourceKind(), r.ResourceName(), err)
	}
	return out, nil
}

// pack puts a message into an Any, always as the same bytes.
func pack(m proto.Message) *anypb.Any {
	out := &anypb.Any{}
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(fmt.Sprintf("xds/envoy: pack %T: %v", m, err)) // of our own making, and only invalid UTF-8 can fail
	}
	return out
}

// ads is the configuration source of everything that travels on the stream that carried the reference.
func ads() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		InitialFetchTimeout:   duration(0),
	}
}

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// orDuration is d, or otherwise if d is 0.
func orDuration(d, otherwise time.Duration) *durationpb.Duration {
	if d == 0 {
		d = otherwise
	}
	return durationpb.New(d)
}

// some is nil for 0, for what Envoy has its own default.
func some(n uint32) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(n)
}

func socket(addr netip.Addr, port uint16) *core.Address {
	return socketHost(addr.String(), port)
}

func socketHost(host string, port uint16) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func cidrs(list []netip.Prefix) []*core.CidrRange {
	var out []*core.CidrRange
	for _, p := range list {
		out = append(out, &core.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))})
	}
	return out
}
