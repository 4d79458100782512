package mesh

// Telemetry is an Istio Telemetry resource.
type Telemetry struct {
	Origin
	Namespace, Name string
	Selector        Labels // nil: the whole namespace, or the mesh in the root namespace
	AccessLogs      []AccessLogging
	Tracing         []TracingRule
	Metrics         []MetricsRule
}

// Ref names the resource.
func (t *Telemetry) Ref() Ref { return Ref{KindTelemetry, t.Namespace, t.Name} }

// Mode is the side on which a telemetry rule acts.
type Mode uint8

// The sides.
const (
	ClientAndServer Mode = iota
	ClientSide
	ServerSide
)

// AccessLogging turns access logs on or off.
type AccessLogging struct {
	Mode      Mode
	Providers []string // empty: the mesh's default
	Disabled  *bool
	Filter    string // CEL, as written; source refuses what we cannot judge
}

// TracingRule is a tracing setting.
type TracingRule struct {
	Mode      Mode
	Providers []string
	Sampling  *float64 // percent
	Disabled  *bool    // disableSpanReporting
	Tags      map[string]string
	HeaderTag map[string]string // tag name -> request header
}

// MetricsRule is a metrics setting; only turning all metrics off is supported so far.
type MetricsRule struct {
	Mode     Mode
	Disabled *bool
}

// Config is the mesh-wide setting: Istio's MeshConfig as far as it is understood.
type Config struct {
	Origin
	TrustDomain        string // default cluster.local
	TrustDomainAliases []string
	RootNamespace      string // default istio-system
	// RegistryOnly refuses traffic to destinations that the mesh does not know.
	RegistryOnly      bool
	NoAutoMTLS        bool
	AccessLogFile     string
	AccessLogFormat   string
	AccessLogJSON     bool
	NoTracing         bool
	Sampling          float64 // percent; source sets 1 by default
	PathNormalization string
	DefaultRetry      *Retry
	Providers         map[string]Provider
	DefaultTracing    []string
	DefaultAccessLogs []string
	DefaultMetrics    []string
	H2Upgrade         bool
	Proxy             ProxySettings
}

// ProxySettings are Istio's ProxyConfig as far as they are about requests. What a field leaves out, the wider setting
// says: a workload's go before the mesh's.
type ProxySettings struct {
	TrustedProxies int    // gatewayTopology.numTrustedProxies; 0: unset
	ClientCert     string // gatewayTopology.forwardClientCertDetails, as written; empty: unset
	HTTP10         *bool  // proxyMetadata's ISTIO_META_HTTP10
}

// Ref names the one configuration.
func (c *Config) Ref() Ref { return Ref{KindConfig, "", "mesh"} }

// Provider is an extension provider for telemetry.
type Provider struct {
	Kind    string // zipkin, opentelemetry, envoyFileAccessLog, prometheus
	Service string
	Port    uint16
	Path    string // of the log file, or of the HTTP endpoint
	Format  string
	JSON    bool
	Labels  map[string]string
}
