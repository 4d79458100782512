package native

import (
	"reflect"
	"strings"

	"github.com/lateen-mesh/lateen/plan"
)

// schema lists, for each type of the plan, its fields in the order of their
// numbers in native.proto, from 1. New fields go to the end; none is ever taken
// out or moved.
var schema = compileSchema(map[reflect.Type]string{
	reflect.TypeFor[plan.Origin]():          "Kind Namespace Name File Line",
	reflect.TypeFor[plan.StringMatch]():     "Kind Value IgnoreCase",
	reflect.TypeFor[plan.Listener]():        "Name Direction Bind Chains Telemetry",
	reflect.TypeFor[plan.Chain]():           "Name Match TLS Protocol HTTP TCP Authz Service Origin",
	reflect.TypeFor[plan.ChainMatch]():      "Ports SNI Destinations Sources",
	reflect.TypeFor[plan.ServerTLS]():       "Mode Secret SubjectAltNames MinVersion MaxVersion CipherSuites RedirectHTTPS ALPN CertFile KeyFile CAFile",
	reflect.TypeFor[plan.HTTP]():            "Route ByHost Inline ServerName ForwardClientCert AppendForwardedFor TrustedHops PathNormalization IdleTimeout Peers HTTP10",
	reflect.TypeFor[plan.TCP]():             "Clusters IdleTimeout Tunnel",
	reflect.TypeFor[plan.Tunnel]():          "Target Post",
	reflect.TypeFor[plan.WeightedCluster](): "Cluster Weight Request Response",
	reflect.TypeFor[plan.ServiceName]():     "Host Name Namespace",
	reflect.TypeFor[plan.Telemetry]():       "AccessLogs Tracing NoMetrics",
	reflect.TypeFor[plan.AccessLog]():       "Path Format JSON Labels MinStatus ErrorsOnly",
	reflect.TypeFor[plan.Tracing]():         "Provider Endpoint Sampling Tags HeaderTag",
	reflect.TypeFor[plan.Route]():           "Name Hosts",
	reflect.TypeFor[plan.VirtualHost]():     "Name Domains Rules RequireTLS Service",
	reflect.TypeFor[plan.Rule]():            "Name Match Origin Clusters Redirect Direct Rewrite Request Response Timeout Retry Fault Mirrors CORS HashOn Operation",
	reflect.TypeFor[plan.RequestMatch]():    "Path Method Scheme Authority Headers Query",
	reflect.TypeFor[plan.HeaderMatch]():     "Name Value Invert",
	reflect.TypeFor[plan.Rewrite]():         "Path Prefix Authority Regex Substitution",
	reflect.TypeFor[plan.Redirect]():        "Scheme Authority Path Prefix MatchedPrefix Port PortFromRequest Code",
	reflect.TypeFor[plan.DirectResponse]():  "Code Body",
	reflect.TypeFor[plan.HeaderEdits]():     "Set Add Remove",
	reflect.TypeFor[plan.Header]():          "Name Value",
	reflect.TypeFor[plan.Retry]():           "Attempts PerTryTimeout On StatusCodes AvoidPrevious Backoff",
	reflect.TypeFor[plan.Fault]():           "Delay DelayPercent AbortStatus AbortGRPC AbortPercent",
	reflect.TypeFor[plan.Mirror]():          "Cluster Percent",
	reflect.TypeFor[plan.CORS]():            "AllowOrigins AllowMethods AllowHeaders ExposeHeaders MaxAge AllowCredentials ForwardUnmatched",
	reflect.TypeFor[plan.HashOn]():          "Header Cookie CookieTTL CookiePath SourceIP Query",
	reflect.TypeFor[plan.Cluster](): "Name Discovery Addresses Balance Protocol UseClientProtocol TLS ConnectTimeout Limits Outlier BindSource IdleTimeout " +
		"TCPKeepalive ProxyProtocol Service External Subset Origin",
	reflect.TypeFor[plan.Address]():    "Host Port Weight Locality",
	reflect.TypeFor[plan.Balance]():    "Algorithm RingSize HashOn Locality Failover From Distribute Warmup",
	reflect.TypeFor[plan.ClientTLS]():  "Mode SNI Identities Secret CAFile CertFile KeyFile InsecureSkipVerify ALPN",
	reflect.TypeFor[plan.Limits]():     "Connections PendingRequests Requests Retries RequestsPerConnection ConcurrentStreams ConnectionDuration RetryBudget RetryBudgetMin",
	reflect.TypeFor[plan.Keepalive]():  "Time Interval Probes",
	reflect.TypeFor[plan.Outlier]():    "Consecutive5xx ConsecutiveGateway ConsecutiveLocal SplitLocal Interval BaseEjection MaxEjectionPercent MinHealthPercent StatusCodes",
	reflect.TypeFor[plan.Endpoints]():  "Name Endpoints",
	reflect.TypeFor[plan.Endpoint]():   "Address Host Port Weight Health Locality Network MTLS Identity Workload Tunnel",
	reflect.TypeFor[plan.Workload]():   "Name Namespace App Version CanonicalName CanonicalRevision Cluster",
	reflect.TypeFor[plan.Authz]():      "Policies",
	reflect.TypeFor[plan.Policy]():     "Name Action DryRun Rules Origin",
	reflect.TypeFor[plan.PolicyRule](): "From To When",
	reflect.TypeFor[plan.Source](): "Principals NotPrincipals RequestPrincipals NotRequestPrincipals Namespaces NotNamespaces TrustDomains NotTrustDomains " +
		"ServiceAccounts NotServiceAccounts IPs NotIPs RemoteIPs NotRemoteIPs",
	reflect.TypeFor[plan.Operation](): "Hosts NotHosts Ports NotPorts Methods NotMethods Paths NotPaths",
	reflect.TypeFor[plan.Condition](): "Key Values NotValues Prefixes NotPrefixes Ports NotPorts",
	reflect.TypeFor[plan.Name]():      "Name Addresses",
	reflect.TypeFor[plan.Secret]():    "Name Chain Key Roots",
})

// enums holds the last value of each enumeration that this version knows.
var enums = map[reflect.Type]uint64{
	reflect.TypeFor[plan.Protocol]():          uint64(plan.ProtocolTLS),
	reflect.TypeFor[plan.MatchKind]():         uint64(plan.MatchPath),
	reflect.TypeFor[plan.Direction]():         uint64(plan.Gateway),
	reflect.TypeFor[plan.TLSMode]():           uint64(plan.TLSMesh),
	reflect.TypeFor[plan.ClientCert]():        uint64(plan.ClientCertForward),
	reflect.TypeFor[plan.PathNormalization](): uint64(plan.PathDecodeAndMergeSlashes),
	reflect.TypeFor[plan.TracingProvider]():   uint64(plan.TracingOTLP),
	reflect.TypeFor[plan.Discovery]():         uint64(plan.DiscoverNothing),
	reflect.TypeFor[plan.Algorithm]():         uint64(plan.OriginalDestination),
	reflect.TypeFor[plan.ClientTLSMode]():     uint64(plan.ClientTLSMutual),
	reflect.TypeFor[plan.Health]():            uint64(plan.Draining),
	reflect.TypeFor[plan.TunnelProtocol]():    uint64(plan.TunnelHBONE),
	reflect.TypeFor[plan.Action]():            uint64(plan.ActionAudit),
}

// compileSchema turns names into field indexes. That it knows every field of the plan is the business of a test.
func compileSchema(names map[reflect.Type]string) map[reflect.Type][]int {
	out := map[reflect.Type][]int{}
	for t, list := range names {
		for name := range strings.FieldsSeq(list) {
			f, ok := t.FieldByName(name)
			if !ok {
				panic("native: " + t.String() + " has no field " + name)
			}
			out[t] = append(out[t], f.Index[0])
		}
	}
	return out
}
