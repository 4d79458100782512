package api

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	proxying "istio.io/api/networking/v1beta1"
	selecting "istio.io/api/type/v1beta1"
)

// Kinds of Istio's that are read and judged like the others, so that they can be applied with them, and are not acted on.
const (
	KindSidecar          = "Sidecar"
	KindEnvoyFilter      = "EnvoyFilter"
	KindProxyConfig      = "ProxyConfig"
	KindWasmPlugin       = "WasmPlugin"
	KindTrafficExtension = "TrafficExtension"
)

// unheeded warns of an object that has no effect, in words that say what is missing for it.
func (c *check) unheeded(lacks string) {
	c.warn("kind", "%s is accepted but not acted on yet; it has no effect: %s", c.Kind, lacks)
}

func validateSidecar(c *check) {
	s := c.Spec.(*networking.Sidecar)
	c.unheeded("proxies are told of what they use alone, and reach all that is exported to their namespace")
	c.labels("spec.workloadSelector.labels", s.WorkloadSelector.GetLabels())
	for i, l := range s.Ingress {
		p := in("spec.ingress", i)
		c.port(in(p, "port", "number"), l.GetPort().GetNumber())
		c.credentials(in(p, "tls"), l.Tls)
		c.pool(in(p, "connectionPool"), l.ConnectionPool)
	}
	for i, l := range s.Egress {
		p := in("spec.egress", i)
		if len(l.Hosts) == 0 {
			c.fault(in(p, "hosts"), "is empty; name hosts as namespace/host, \"*/*\" for all, \"~/*\" for none")
		}
		for j, h := range l.Hosts {
			namespace, host, found := strings.Cut(h, "/")
			if !found || !slices.Contains([]string{"*", ".", "~"}, namespace) && !dnsLabel.MatchString(namespace) || !isHost(host, true) && !isIP(host) {
				c.fault(in(p, "hosts", j), "%q is not a host with its namespace; write namespace/host, with . for this namespace, * for all, ~ for none", h)
			}
		}
	}
	c.pool("spec.inboundConnectionPool", s.InboundConnectionPool)
}

func validateFilter(c *check) {
	f := c.Spec.(*networking.EnvoyFilter)
	c.unheeded("it is made of parts of Envoy's, which the proxies do not have")
	c.labels("spec.workloadSelector.labels", f.WorkloadSelector.GetLabels())
	if f.WorkloadSelector != nil && len(f.TargetRefs) > 0 {
		c.fault("spec", "has more than one of workloadSelector and targetRefs; keep one")
	}
	c.references(nil, f.TargetRefs)
	for i, patch := range f.ConfigPatches {
		p := in("spec.configPatches", i, "match")
		m := patch.GetMatch()
		if w := m.GetWaypoint(); (w != nil) != (m.GetContext() == networking.EnvoyFilter_WAYPOINT) {
			c.fault(p, "waypoint and context: WAYPOINT belong together; write both or neither")
		}
		c.optionalPort(in(p, "waypoint", "portNumber"), m.GetWaypoint().GetPortNumber())
	}
}

func validateProxyConfig(c *check) {
	p := c.Spec.(*proxying.ProxyConfig)
	c.unheeded("write it into the pods' annotation " + annotationProxy + "; tracing, gatewayTopology and " + MetadataHTTP10 +
		" can stand in MeshConfig's defaultConfig for all")
	c.labels("spec.selector.matchLabels", p.Selector.GetMatchLabels())
	if p.Concurrency.GetValue() < 0 {
		c.fault("spec.concurrency", "is %d; it cannot be negative", p.Concurrency.GetValue())
	}
}

func validatePlugin(c *check) {
	w := c.Spec.(*extensions.WasmPlugin)
	c.unheeded("the proxies run no WebAssembly; do not rely on it for a check of what is allowed")
	c.targets(w.Selector, w.TargetRef, w.TargetRefs)
	c.module("spec.url", w.Url)
	c.variables("spec.vmConfig.env", w.VmConfig)
	c.portSelectors(len(w.Match), func(i int) []*selecting.PortSelector { return w.Match[i].GetPorts() })
}

func validateExtension(c *check) {
	t := c.Spec.(*extensions.TrafficExtension)
	c.unheeded("the proxies run neither WebAssembly nor Lua; do not rely on it for a check of what is allowed")
	c.targets(t.Selector, nil, t.TargetRefs)
	switch {
	case t.GetWasm() == nil && t.GetLua() == nil:
		c.fault("spec", "wasm or lua is missing; it says what the extension is")
	case t.GetWasm() != nil:
		c.module("spec.wasm.url", t.GetWasm().Url)
		c.variables("spec.wasm.vmConfig.env", t.GetWasm().VmConfig)
	case t.GetLua().InlineCode == "":
		c.fault("spec.lua.inlineCode", "is empty; write the code")
	}
	c.portSelectors(len(t.Match), func(i int) []*selecting.PortSelector { return t.Match[i].GetPorts() })
}

// module judges where a WebAssembly module is loaded from: oci:// is meant where there is no scheme.
func (c *check) module(path, text string) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" {
		u, err = url.Parse("http://" + text)
	}
	if text == "" || err != nil || !slices.Contains([]string{"http", "https", "oci", "file"}, u.Scheme) {
		c.fault(path, "%q is not where a module can be; write oci://, https://, http:// or file:// and the rest", text)
	}
}

func (c *check) variables(path string, vm *extensions.VmConfig) {
	for i, e := range vm.GetEnv() {
		if e.ValueFrom == extensions.EnvValueSource_HOST && e.Value != "" {
			c.fault(in(path, i), "value cannot stand beside valueFrom: HOST; keep one")
		}
	}
}

func (c *check) portSelectors(n int, of func(int) []*selecting.PortSelector) {
	for i := range n {
		for j, s := range of(i) {
			c.port(fmt.Sprintf("spec.match[%d].ports[%d].number", i, j), s.GetNumber())
		}
	}
}
