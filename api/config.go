package api

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	core "k8s.io/api/core/v1"
)

// ConfigName is the name of the ConfigMap that holds the mesh's configuration, in RootNamespace.
const ConfigName = "istio"

// configKey is the key of that ConfigMap under which MeshConfig stands.
const configKey = "mesh"

// defaultConfig is MeshConfig with Istio's defaults.
func defaultConfig() *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{
		EnableTracing: true, TrustDomain: "cluster.local", RootNamespace: RootNamespace,
		EnableAutoMtls:        wrapperspb.Bool(true),
		OutboundTrafficPolicy: &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY},
		DefaultConfig:         &meshconfig.ProxyConfig{Tracing: &meshconfig.Tracing{Sampling: 1}},
	}
}

// validateConfig reads the configuration in the ConfigMap and puts it into Spec.
func validateConfig(c *check) {
	if c.Name != ConfigName || c.Namespace != RootNamespace {
		c.fault("metadata", "only ConfigMap %s/%s, the mesh's configuration, is read; keep others out of this folder", RootNamespace, ConfigName)
		return
	}
	m := c.Spec.(*core.ConfigMap)
	config := defaultConfig()
	c.Spec = config
	for name := range m.Data {
		if name != configKey {
			c.warn(in("data", name), "is accepted but not acted on yet; it has no effect")
		}
	}
	text := m.Data[configKey]
	if strings.TrimSpace(text) == "" {
		return
	}
	c.r.nested(c, in("data", configKey), text, config)
	c.sanity(config)
	c.metadata(in("data", configKey, "defaultConfig"), config.DefaultConfig)
}

// annotationProxy holds the ProxyConfig of one workload.
const annotationProxy = "proxy.istio.io/config"

// The keys of ProxyConfig's proxyMetadata that are acted on; all but the first in the annotation of pods alone, as injection
// makes variables of the proxy of them.
const (
	MetadataHTTP10    = "ISTIO_META_HTTP10"      // "1" makes a proxy accept HTTP/1.0
	MetadataDNS       = "ISTIO_META_DNS_CAPTURE" // "true" has a pod's DNS captured
	MetadataAuthority = "CA_ADDR"                // the authority of certificates, host:port, if not the control plane
	MetadataLifetime  = "SECRET_TTL"             // the certificates', a duration
)

// proxyConfig reads the annotation of a workload and puts it into Proxy. What is unknown in it is a warning: a workload
// is not to be lost for it.
func (c *check) proxyConfig() {
	text := c.Annotations[annotationProxy]
	if strings.TrimSpace(text) == "" {
		return
	}
	path := "metadata.annotations." + annotationProxy
	c.Proxy = &meshconfig.ProxyConfig{}
	c.r.nested(c, path, text, c.Proxy)
	c.metadata(path, c.Proxy)
	if c.Proxy.Tracing != nil {
		c.warn(in(path, "tracing"), "is acted on in MeshConfig's defaultConfig only; here it has no effect")
	}
}

// ReadProxyConfig reads the text of a pod's annotation proxy.istio.io/config. What is unknown in it is a warning. It does
// not judge which fields are acted on.
func ReadProxyConfig(text string) (config *meshconfig.ProxyConfig, faults, warnings []Fault) {
	r := &reader{data: []byte(text), places: map[string]place{}, unjudged: true}
	config = &meshconfig.ProxyConfig{}
	r.nested(&check{&Object{}, r}, "", text, config)
	return config, r.faults, r.warnings
}

// metadata judges proxyMetadata where it is not a pod's.
func (c *check) metadata(path string, p *meshconfig.ProxyConfig) {
	for _, key := range slices.Sorted(maps.Keys(p.GetProxyMetadata())) {
		switch key {
		case MetadataHTTP10:
		case MetadataDNS, MetadataAuthority, MetadataLifetime:
			c.warn(in(path, "proxyMetadata", key), "is acted on in pods' annotation %s only; here it has no effect", annotationProxy)
		default:
			c.warn(in(path, "proxyMetadata", key), "is accepted but not acted on yet; it has no effect")
		}
	}
}

// nested reads a YAML text that stands at a path. Unknown fields in it are warnings, as in Istio.
func (r *reader) nested(c *check, path, text string, config proto.Message) {
	outer := c.place(path)
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(text), &root); err != nil {
		c.fault(path, "this is not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if len(root.Content) == 0 || isNull(root.Content[0]) {
		return
	}
	n := root.Content[0]
	if !shallow(n, 0) {
		c.fault(path, "is nested more than %d deep", maxDepth)
		return
	}
	offset := r.offset
	r.lenient = true
	if path != "" {
		r.prefix = path + "."
	}
	// The lines of a block ("mesh: |") stand one for one below the key; those of other texts cannot be told.
	if strings.Contains(text, "\n") {
		r.offset = place{outer.line, r.indent(outer.line + 1)}
	} else {
		r.fixed = &outer
	}
	r.message(n, "", config.ProtoReflect())
	r.prefix, r.lenient, r.fixed, r.offset = "", false, nil, offset
}

// indent is the number of spaces before a line of the file.
func (r *reader) indent(line int) int {
	n := 1
	for text := range bytes.Lines(r.data) {
		if n == line {
			return len(text) - len(bytes.TrimLeft(text, " "))
		}
		n++
	}
	return 0
}

func (c *check) sanity(m *meshconfig.MeshConfig) {
	if !isHost(m.TrustDomain, false) {
		c.fault(in("data", configKey, "trustDomain"), "%q is not a trust domain; write a DNS name", m.TrustDomain)
	}
	if !dnsLabel.MatchString(m.RootNamespace) {
		c.fault(in("data", configKey, "rootNamespace"), "%q is not a namespace", m.RootNamespace)
	}
	c.retries(in("data", configKey, "defaultHttpRetryPolicy"), m.DefaultHttpRetryPolicy)
	c.percent(in("data", configKey, "defaultConfig", "tracing", "sampling"), m.GetDefaultConfig().GetTracing().GetSampling())
	seen := map[string]bool{}
	for i, e := range m.ExtensionProviders {
		p := in("data", configKey, "extensionProviders", i)
		switch {
		case e.Name == "":
			c.fault(p, "name is missing; objects refer to a provider by its name")
		case seen[e.Name]:
			c.fault(p, "two providers are named %q; rename one", e.Name)
		case e.Provider == nil:
			c.fault(p, "does not say what kind of provider it is; add zipkin, opentelemetry, envoyFileAccessLog or prometheus")
		}
		seen[e.Name] = true
	}
}
