package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func validateService(c *check) {
	s := c.Spec.(*core.Service).Spec
	if !dnsLabel.MatchString(c.Name) {
		c.fault("metadata.name", "%q is not a service's name; use up to 63 lower-case letters, digits and -", c.Name)
	}
	switch s.Type {
	case "", core.ServiceTypeClusterIP:
	case core.ServiceTypeNodePort, core.ServiceTypeLoadBalancer:
		c.warn("spec.type", "%s is treated as ClusterIP; nothing opens ports to the outside, use a Gateway", s.Type)
	case core.ServiceTypeExternalName:
		if !isHost(s.ExternalName, false) {
			c.fault("spec.externalName", "%q is not a host; type ExternalName needs one", s.ExternalName)
		}
	default:
		c.fault("spec.type", "%q is not a type of Service; write ClusterIP or ExternalName", s.Type)
	}
	if len(s.Ports) == 0 && s.ClusterIP != core.ClusterIPNone && s.Type != core.ServiceTypeExternalName {
		c.fault("spec", "ports is missing; add the ports that clients call")
	}
	for i, ip := range s.ClusterIPs {
		if ip != core.ClusterIPNone && !isIP(ip) {
			c.fault(in("spec.clusterIPs", i), "%q is neither an address nor None", ip)
		}
	}
	if s.ClusterIP != "" && s.ClusterIP != core.ClusterIPNone && !isIP(s.ClusterIP) {
		c.fault("spec.clusterIP", "%q is neither an address nor None", s.ClusterIP)
	}
	c.labels("spec.selector", s.Selector)
	c.servicePorts(s.Ports)
}

func (c *check) servicePorts(ports []core.ServicePort) {
	names, numbers := map[string]bool{}, map[string]bool{}
	for i, port := range ports {
		p := in("spec.ports", i)
		c.port(in(p, "port"), uint32(max(port.Port, 0)))
		switch {
		case port.Name == "" && len(ports) > 1:
			c.fault(p, "name is missing; a service with several ports names each")
		case port.Name != "" && !dnsLabel.MatchString(port.Name):
			c.fault(in(p, "name"), "%q is not a port's name; use lower-case letters, digits and -", port.Name)
		case names[port.Name]:
			c.fault(in(p, "name"), "two ports are named %q; rename one", port.Name)
		}
		names[port.Name] = true
		protocol := string(port.Protocol)
		switch protocol {
		case "", "TCP", "UDP":
		case "SCTP":
			c.warn(in(p, "protocol"), "SCTP is accepted but not acted on; the port is left out")
		default:
			c.fault(in(p, "protocol"), "%q is not TCP or UDP; what TCP carries is told by appProtocol or the port's name", protocol)
		}
		if protocol == "" {
			protocol = "TCP"
		}
		key := fmt.Sprintf("%s %d", protocol, port.Port)
		if numbers[key] {
			c.fault(in(p, "port"), "port %d is listed twice; remove one", port.Port)
		}
		numbers[key] = true
		target := port.TargetPort
		switch {
		case target.Type == intstr.Int && c.has(in(p, "targetPort")) && (target.IntVal < 0 || target.IntVal > 65535):
			c.fault(in(p, "targetPort"), "%d is not a port; write a number from 1 to 65535", target.IntVal)
		case target.Type == intstr.String && !portName.MatchString(target.StrVal):
			c.fault(in(p, "targetPort"), "%q is neither a number nor the name of a port", target.StrVal)
		}
	}
}

// entryProtocols are the protocols of a ServiceEntry's port.
var entryProtocols = []string{"HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "MYSQL", "REDIS", "TCP", "TLS", "UDP", "HBONE"}

func validateEntry(c *check) {
	e := c.Spec.(*networking.ServiceEntry)
	c.entryHosts(e)
	c.entryPorts(e)
	c.exportTo("spec.exportTo", e.ExportTo)
	c.labels("spec.workloadSelector.labels", e.WorkloadSelector.GetLabels())
	for i, a := range e.Addresses {
		p := in("spec.addresses", i)
		switch {
		case !isPrefix(a):
			c.fault(p, "%q is neither an address nor a range such as 10.0.0.0/8", a)
		case strings.Contains(a, "/") && e.Resolution != networking.ServiceEntry_NONE && e.Resolution != networking.ServiceEntry_STATIC:
			c.fault(p, "a range cannot stand with resolution %s; write addresses, or resolution NONE or STATIC", e.Resolution)
		}
	}
	if e.WorkloadSelector != nil && len(e.Endpoints) > 0 {
		c.fault("spec.endpoints", "stands beside workloadSelector; keep one of them")
	}
	c.entryResolution(e)
	for i, w := range e.Endpoints {
		p := in("spec.endpoints", i)
		c.workload(p, w)
		for name := range w.Ports {
			if !slices.ContainsFunc(e.Ports, func(s *networking.ServicePort) bool { return s.Name == name }) {
				c.fault(in(p, "ports", name), "the service has no port named %q; use a name from spec.ports", name)
			}
		}
	}
}

func (c *check) entryHosts(e *networking.ServiceEntry) {
	if len(e.Hosts) == 0 {
		c.fault("spec.hosts", "is empty; name at least one host")
	}
	for i, h := range e.Hosts {
		p := in("spec.hosts", i)
		switch {
		case h == "*":
			c.fault(p, "* is too wide for a service; write *.a.name")
		case slices.Contains(e.Hosts[:i], h):
			c.fault(p, "%q is listed twice; remove one", h)
		case !isHost(h, true):
			c.fault(p, "%q is not a host; write a DNS name or *.a.name", h)
		}
	}
}

func (c *check) entryPorts(e *networking.ServiceEntry) {
	if len(e.Ports) == 0 {
		c.fault("spec", "ports is missing; add the ports that clients call")
	}
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, s := range e.Ports {
		p := in("spec.ports", i)
		c.port(in(p, "number"), s.Number)
		c.optionalPort(in(p, "targetPort"), s.TargetPort)
		if numbers[s.Number] {
			c.fault(in(p, "number"), "port %d is listed twice; remove one", s.Number)
		}
		if names[s.Name] {
			c.fault(in(p, "name"), "two ports are named %q; rename one", s.Name)
		}
		names[s.Name], numbers[s.Number] = true, true
		if !portName.MatchString(s.Name) {
			c.fault(in(p, "name"), "%q is not a port's name; use letters, digits and -", s.Name)
		}
		if s.Protocol != "" && !slices.Contains(entryProtocols, strings.ToUpper(s.Protocol)) {
			c.fault(in(p, "protocol"), "%q is not a protocol; write one of %s", s.Protocol, strings.Join(entryProtocols, ", "))
		}
	}
}

func (c *check) entryResolution(e *networking.ServiceEntry) {
	wild := slices.ContainsFunc(e.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
	unix := func(w *networking.WorkloadEntry) bool { return strings.HasPrefix(w.Address, unixScheme) }
	switch e.Resolution {
	case networking.ServiceEntry_NONE:
		if len(e.Endpoints) > 0 {
			c.fault("spec.endpoints", "resolution NONE sends traffic to the address that the client dialled; remove endpoints, or write resolution STATIC")
		}
	case networking.ServiceEntry_STATIC:
		for i, w := range e.Endpoints {
			if w.Address != "" && !isIP(w.Address) && !unix(w) {
				c.fault(in("spec.endpoints", i, "address"), "%q is not an address; names need resolution DNS", w.Address)
			}
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		if len(e.Endpoints) == 0 && e.WorkloadSelector == nil && wild {
			c.fault("spec.hosts", "a wildcard cannot be looked up; write the host in full, add endpoints, or write resolution NONE or DYNAMIC_DNS")
		}
		for i, w := range e.Endpoints {
			if unix(w) {
				c.fault(in("spec.endpoints", i, "address"), "a Unix socket cannot be looked up; write resolution STATIC")
			}
		}
		if e.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN && len(e.Endpoints) > 1 {
			c.fault("spec.endpoints", "resolution DNS_ROUND_ROBIN takes one endpoint; keep one, or write resolution DNS")
		}
	case networking.ServiceEntry_DYNAMIC_DNS:
		if len(e.Endpoints) > 0 || e.WorkloadSelector != nil {
			c.fault("spec", "resolution DYNAMIC_DNS looks up what each request asks for; remove endpoints and workloadSelector")
		}
	}
}

const unixScheme = "unix://"

func validateWorkload(c *check) {
	c.workload("spec", c.Spec.(*networking.WorkloadEntry))
	c.proxyConfig()
}

func validateGroup(c *check) {
	g := c.Spec.(*networking.WorkloadGroup)
	c.labels("spec.metadata.labels", g.Metadata.GetLabels())
	if g.Template != nil {
		c.workload("spec.template", g.Template)
	}
	c.warn("spec", "is accepted but not acted on yet; workloads join by WorkloadEntry")
	p := g.Probe
	c.optionalPort("spec.probe.grpc.port", p.GetGrpc().GetPort())
	c.optionalPort("spec.probe.httpGet.port", p.GetHttpGet().GetPort())
	c.optionalPort("spec.probe.tcpSocket.port", p.GetTcpSocket().GetPort())
	if scheme := p.GetHttpGet().GetScheme(); !slices.Contains([]string{"", "HTTP", "HTTPS"}, scheme) {
		c.fault("spec.probe.httpGet.scheme", "%q is neither HTTP nor HTTPS", scheme)
	}
}

// Bounds of Istio's schemas, in bytes.
const (
	maxAddress  = 256
	maxLocality = 2048
	maxAccount  = 253
)

func (c *check) workload(p string, w *networking.WorkloadEntry) {
	c.address(p, w)
	for name, number := range w.Ports {
		if len(name) >= 63 || !portName.MatchString(name) {
			c.fault(in(p, "ports", name), "%q is not a port's name; use up to 62 letters, digits and -", name)
		}
		c.port(in(p, "ports", name), number)
	}
	c.labels(in(p, "labels"), w.Labels)
	for name, limit := range map[string]struct {
		value string
		limit int
	}{"locality": {w.Locality, maxLocality}, "network": {w.Network, maxLocality}, "serviceAccount": {w.ServiceAccount, maxAccount}} {
		if len(limit.value) > limit.limit {
			c.fault(in(p, name), "has %d bytes, more than the %d allowed", len(limit.value), limit.limit)
		}
	}
}

func (c *check) address(p string, w *networking.WorkloadEntry) {
	ap := in(p, "address")
	path, unix := strings.CutPrefix(w.Address, unixScheme)
	switch {
	case w.Address == "" && w.Network == "" && c.Kind != KindWorkloadGroup:
		c.fault(p, "address is missing; write an address, a host or unix:///path")
	case w.Address == "":
	case len(w.Address) > maxAddress:
		c.fault(ap, "has %d bytes, more than the %d allowed", len(w.Address), maxAddress)
	case unix && !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@"):
		c.fault(ap, "%q must be an absolute path or an abstract socket: unix:///path or unix://@name", w.Address)
	case unix && strings.HasSuffix(path, "/"):
		c.fault(ap, "%q is a folder; name the socket in it", w.Address)
	case unix && len(w.Ports) > 0:
		c.fault(in(p, "ports"), "a Unix socket has no ports; remove them")
	case unix:
	default:
		if a, err := netip.ParseAddr(w.Address); err == nil {
			if a.IsUnspecified() || a.IsMulticast() {
				c.fault(ap, "%s is not the address of a workload", w.Address)
			}
		} else if !isHost(w.Address, false) {
			c.fault(ap, "%q is neither an address nor a host", w.Address)
		}
	}
}
