package api

import (
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// required are the fields that Istio's schemas demand of a message.
var required = map[string][]string{
	"Attribute":             {"name"},
	"Condition":             {"key"},
	"Destination":           {"host"},
	"DestinationRule":       {"host"},
	"EnvVar":                {"name"},
	"ExecHealthCheckConfig": {"command"},
	"GrpcHealthCheckConfig": {"port"},
	"HTTPCookie":            {"name"},
	"HTTPDirectResponse":    {"status"},
	"HTTPHealthCheckConfig": {"port"},
	"HTTPMirrorPolicy":      {"destination"},
	"HTTPRouteDestination":  {"destination"},
	"IstioEgressListener":   {"hosts"},
	"IstioIngressListener":  {"port"},
	"LuaConfig":             {"inlineCode"},
	"Port":                  {"number", "protocol", "name"},
	"PolicyTargetReference": {"kind", "name"},
	"PortSelector":          {"number"},
	"ProviderRef":           {"name"},
	"RouteDestination":      {"destination"},
	"Server":                {"port", "hosts"},
	"ServiceEntry":          {"hosts"},
	"ServicePort":           {"number", "name"},
	"Subset":                {"name"},
	"TCPHealthCheckConfig":  {"port"},
	"TLSMatchAttributes":    {"sniHosts"},
	"TLSRoute":              {"match"},
	"TunnelSettings":        {"targetHost", "targetPort"},
	"WarmupConfiguration":   {"duration"},
	"WasmConfig":            {"url"},
	"WasmPlugin":            {"url"},
	"WorkloadGroup":         {"template"},
}

// maxItems are the lengths that Istio's schemas allow a list, by message and field.
var maxItems = map[string]int{
	"ServiceEntry.hosts":                256,
	"ServiceEntry.addresses":            256,
	"ServiceEntry.ports":                256,
	"ServiceEntry.endpoints":            4096,
	"TrafficPolicy.portLevelSettings":   4096,
	"AuthorizationPolicy.rules":         512,
	"AuthorizationPolicy.targetRefs":    16,
	"Telemetry.targetRefs":              16,
	"EnvoyFilter.targetRefs":            16,
	"TrafficExtension.targetRefs":       16,
	"WasmPlugin.targetRefs":             16,
	"VmConfig.env":                      256,
	"Rule.from":                         512,
	"Source.serviceAccounts":            16,
	"Source.notServiceAccounts":         16,
	"ServerTLSSettings.credentialNames": 2,
	"ServerTLSSettings.tlsCertificates": 2,
}

// idle are the fields that are accepted and, so far, not acted on.
var idle = map[string]bool{
	"HTTPMatchRequest.statPrefix":             true,
	"Delay.exponentialDelay":                  true,
	"Abort.http2Error":                        true,
	"L4MatchAttributes.sourceSubnet":          true,
	"LoadBalancerSettings.zoneAwareLbSetting": true,
	"WarmupConfiguration.aggression":          true,
	"WarmupConfiguration.minimumPercent":      true,
	"HTTPSettings.http2KeepAlive":             true,
	"ClientTLSSettings.caCrl":                 true,
	"HTTPCookie.attributes":                   true,
	"RetryBudget.budgetInterval":              true,
	"Server.defaultEndpoint":                  true,
	"Port.targetPort":                         true,
	"ServerTLSSettings.caCrl":                 true,
	"ServerTLSSettings.credentialNames":       true,
	"ServerTLSSettings.caCertCredentialName":  true,
	"ServerTLSSettings.tlsCertificates":       true,
	"ServerTLSSettings.verifyCertificateSpki": true,
	"ServerTLSSettings.verifyCertificateHash": true,
	"ServerTLSSettings.insecureSkipVerify":    true,
	"Telemetry.targetRef":                     true,
	"Telemetry.targetRefs":                    true,
	"Metrics.reportingInterval":               true,
	"Metrics.providers":                       true,
	"MetricsOverrides.tagOverrides":           true,
	"Tracing.enableIstioTags":                 true,
	"Tracing.useRequestIdForTraceSampling":    true,
	"Tracing.disableContextPropagation":       true,
	"CustomTag.environment":                   true,
	"CustomTag.formatter":                     true,
	"RequestHeader.defaultValue":              true,
	"ServiceSpec.externalIPs":                 true,
	"ServiceSpec.loadBalancerIP":              true,
	"ServiceSpec.loadBalancerClass":           true,
	"ServiceSpec.loadBalancerSourceRanges":    true,
	"ServiceSpec.sessionAffinity":             true,
	"ServiceSpec.sessionAffinityConfig":       true,
	"ServiceSpec.externalTrafficPolicy":       true,
	"ServiceSpec.internalTrafficPolicy":       true,
	"ServiceSpec.trafficDistribution":         true,
	"ServiceSpec.healthCheckNodePort":         true,
	"ServicePort.nodePort":                    true,
}

// idleUnless are values of idle fields that ask for what happens anyway.
var idleUnless = []string{"None", "Cluster", "false", "0"}

// acted are, for the messages of MeshConfig, the fields that are acted on; the others are not so far.
var acted = map[string][]string{
	"MeshConfig": {
		"trustDomain", "trustDomainAliases", "rootNamespace", "outboundTrafficPolicy", "enableAutoMtls", "accessLogFile",
		"accessLogFormat", "accessLogEncoding", "enableTracing", "defaultConfig", "pathNormalization",
		"defaultHttpRetryPolicy", "extensionProviders", "defaultProviders", "h2UpgradePolicy", "defaultServiceExportTo",
		"defaultVirtualServiceExportTo", "defaultDestinationRuleExportTo",
	},
	"ProxyConfig":                  {"tracing", "gatewayTopology", "proxyMetadata"},
	"Topology":                     {"numTrustedProxies", "forwardClientCertDetails"},
	"OutboundTrafficPolicy":        {"mode"},
	"ExtensionProvider":            {"name", "zipkin", "opentelemetry", "envoyFileAccessLog", "prometheus"},
	"ZipkinTracingProvider":        {"service", "port", "path"},
	"OpenTelemetryTracingProvider": {"service", "port", "http"},
	"HttpService":                  {"path"},
	"EnvoyFileAccessLogProvider":   {"path", "logFormat"},
	"ProxyTracing":                 {"sampling"},
}

// deprecated are fields that Istio keeps for old objects, and what to write instead.
var deprecated = map[string]string{
	"HTTPRoute.mirror_percent":                "mirrorPercentage",
	"HTTPRoute.mirrorPercent":                 "mirrorPercentage",
	"CorsPolicy.allowOrigin":                  "allowOrigins",
	"Delay.percent":                           "percentage",
	"OutlierDetection.consecutiveErrors":      "consecutive5xxErrors",
	"LoadBalancerSettings.warmupDurationSecs": "warmup",
	"ConsistentHashLB.minimumRingSize":        "ringHash.minimumRingSize",
}

// remark warns of a field that is deprecated, or accepted without effect.
func (r *reader) remark(owner string, f field, path string) {
	key := owner + "." + f.name
	if instead := deprecated[key]; instead != "" {
		r.warn(r.at(f.key), path, "is deprecated; write %s instead", instead)
	}
	if r.unjudged {
		return
	}
	fields, listed := acted[owner]
	if listed = listed && !slices.Contains(fields, f.name); !listed && !idle[key] {
		return
	}
	if f.value.Kind == yaml.ScalarNode && slices.Contains(idleUnless, f.value.Value) {
		return
	}
	r.warn(r.at(f.key), path, "is accepted but not acted on yet; it has no effect")
}

// noun is a message's name in plain words: HTTPRouteDestination is "http route destination".
func noun(message string) string {
	var b strings.Builder
	runes := []rune(message)
	for i, c := range runes {
		if i > 0 && unicode.IsUpper(c) && (unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
