package source

import (
	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

func telemetryOf(o *api.Object, t *telemetry.Telemetry) *mesh.Telemetry {
	out := &mesh.Telemetry{Origin: origin(o), Namespace: o.Namespace, Name: o.Name, Selector: selector(t.Selector.GetMatchLabels())}
	for _, a := range t.AccessLogging {
		l := mesh.AccessLogging{Mode: mode(a.Match.GetMode()), Providers: providers(a.Providers), Filter: a.Filter.GetExpression()}
		if a.Disabled != nil {
			l.Disabled = &a.Disabled.Value
		}
		out.AccessLogs = append(out.AccessLogs, l)
	}
	for _, r := range t.Tracing {
		rule := mesh.TracingRule{Mode: mode(r.Match.GetMode()), Providers: providers(r.Providers)}
		if r.RandomSamplingPercentage != nil {
			rule.Sampling = &r.RandomSamplingPercentage.Value
		}
		if r.DisableSpanReporting != nil {
			rule.Disabled = &r.DisableSpanReporting.Value
		}
		for name, tag := range r.CustomTags {
			switch {
			case tag.GetLiteral() != nil:
				if rule.Tags == nil {
					rule.Tags = map[string]string{}
				}
				rule.Tags[name] = tag.GetLiteral().Value
			case tag.GetHeader() != nil:
				if rule.HeaderTag == nil {
					rule.HeaderTag = map[string]string{}
				}
				rule.HeaderTag[name] = tag.GetHeader().Name
			}
		}
		out.Tracing = append(out.Tracing, rule)
	}
	for _, m := range t.Metrics {
		for _, v := range m.Overrides {
			all := v.Match.GetCustomMetric() == "" && v.Match.GetMetric() == telemetry.MetricSelector_ALL_METRICS
			if all && v.Disabled != nil {
				out.Metrics = append(out.Metrics, mesh.MetricsRule{Mode: mode(v.Match.GetMode()), Disabled: &v.Disabled.Value})
			}
		}
	}
	return out
}

func mode(m telemetry.WorkloadMode) mesh.Mode {
	switch m {
	case telemetry.WorkloadMode_CLIENT:
		return mesh.ClientSide
	case telemetry.WorkloadMode_SERVER:
		return mesh.ServerSide
	}
	return mesh.ClientAndServer
}

func providers(list []*telemetry.ProviderRef) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.Name)
	}
	return out
}

// meshConfig is the mesh's configuration as far as it is understood; api has warned of the rest.
func meshConfig(o *api.Object, m *meshconfig.MeshConfig) *mesh.Config {
	out := &mesh.Config{
		Origin: origin(o), TrustDomain: m.TrustDomain, TrustDomainAliases: m.TrustDomainAliases, RootNamespace: m.RootNamespace,
		RegistryOnly: m.OutboundTrafficPolicy.GetMode() == meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY,
		NoAutoMTLS:   !m.EnableAutoMtls.GetValue(), AccessLogFile: m.AccessLogFile, AccessLogFormat: m.AccessLogFormat,
		AccessLogJSON: m.AccessLogEncoding == meshconfig.MeshConfig_JSON, NoTracing: !m.EnableTracing,
		Sampling: m.DefaultConfig.GetTracing().GetSampling(), DefaultRetry: retry(m.DefaultHttpRetryPolicy),
		DefaultTracing: m.DefaultProviders.GetTracing(), DefaultAccessLogs: m.DefaultProviders.GetAccessLogging(),
		DefaultMetrics: m.DefaultProviders.GetMetrics(), H2Upgrade: m.H2UpgradePolicy == meshconfig.MeshConfig_UPGRADE,
		Proxy: proxySettings(m.DefaultConfig),
	}
	if m.PathNormalization != nil {
		out.PathNormalization = m.PathNormalization.Normalization.String()
	}
	for _, e := range m.ExtensionProviders {
		if p, ok := provider(e); ok {
			if out.Providers == nil {
				out.Providers = map[string]mesh.Provider{}
			}
			out.Providers[e.Name] = p
		}
	}
	return out
}

// proxySettings are those of a ProxyConfig, which may be nil. As in Istio, ISTIO_META_HTTP10 is on by "1".
func proxySettings(p *meshconfig.ProxyConfig) mesh.ProxySettings {
	out := mesh.ProxySettings{TrustedProxies: int(p.GetGatewayTopology().GetNumTrustedProxies())}
	if how := p.GetGatewayTopology().GetForwardClientCertDetails(); how != meshconfig.ForwardClientCertDetails_UNDEFINED {
		out.ClientCert = how.String()
	}
	if text, told := p.GetProxyMetadata()[api.MetadataHTTP10]; told {
		on := text == "1"
		out.HTTP10 = &on
	}
	return out
}

func provider(e *meshconfig.MeshConfig_ExtensionProvider) (mesh.Provider, bool) {
	switch {
	case e.GetZipkin() != nil:
		z := e.GetZipkin()
		return mesh.Provider{Kind: "zipkin", Service: z.Service, Port: uint16(z.Port), Path: z.Path}, true
	case e.GetOpentelemetry() != nil:
		t := e.GetOpentelemetry()
		return mesh.Provider{Kind: "opentelemetry", Service: t.Service, Port: uint16(t.Port), Path: t.Http.GetPath()}, true
	case e.GetPrometheus() != nil:
		return mesh.Provider{Kind: "prometheus"}, true
	case e.GetEnvoyFileAccessLog() != nil:
		f := e.GetEnvoyFileAccessLog()
		p := mesh.Provider{Kind: "envoyFileAccessLog", Path: f.Path, Format: f.LogFormat.GetText()}
		if labels := f.LogFormat.GetLabels(); labels != nil {
			p.JSON = true
			for name, v := range labels.Fields {
				if p.Labels == nil {
					p.Labels = map[string]string{}
				}
				p.Labels[name] = v.GetStringValue()
			}
		}
		return p, true
	}
	return mesh.Provider{}, false
}
