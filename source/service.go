package source

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// Labels and annotations that are read.
const (
	annotationExport   = "networking.istio.io/exportTo"
	annotationAccounts = "alpha.istio.io/canonical-serviceaccounts"
	annotationGroup    = "istio.io/autoRegistrationGroup"
	labelMTLS          = "security.istio.io/tlsMode"
	labelNetwork       = "topology.istio.io/network"
	labelLocality      = "istio-locality"
	labelWorkload      = "service.istio.io/workload-name"
	labelNoAddress     = "networking.istio.io/enable-autoallocate-ip"
)

func (s *Set) service(o *api.Object, k *core.Service) *mesh.Service {
	out := &mesh.Service{
		Origin: origin(o), Host: s.fqdn(o.Namespace, o.Name), ShortName: o.Name, Namespace: o.Namespace, Labels: o.Labels,
		Selector: k.Spec.Selector, Listed: mesh.Labels{discovery.LabelServiceName: o.Name}, Resolution: mesh.Static, Headless: k.Spec.ClusterIP == core.ClusterIPNone, NotReady: k.Spec.PublishNotReadyAddresses,
	}
	for _, p := range k.Spec.Ports {
		if p.Protocol == core.ProtocolSCTP {
			continue
		}
		app := ""
		if p.AppProtocol != nil {
			app = *p.AppProtocol
		}
		number := uint16(p.Port)
		port := mesh.Port{Name: p.Name, Number: number, Protocol: protocol(string(p.Protocol), app, p.Name, number)}
		if p.TargetPort.Type == intstr.String {
			port.TargetName = p.TargetPort.StrVal
		} else {
			port.Target = uint16(p.TargetPort.IntVal)
		}
		out.Ports = append(out.Ports, port)
	}
	var export []string
	if list := o.Annotations[annotationExport]; list != "" {
		export = strings.Split(list, ",")
	}
	out.Visibility = visibility(o.Namespace, export, s.exports.service)
	for a := range strings.SplitSeq(o.Annotations[annotationAccounts], ",") {
		if a = strings.TrimSpace(a); a != "" {
			out.ServiceAccounts = append(out.ServiceAccounts, a)
		}
	}
	if k.Spec.Type == core.ServiceTypeExternalName {
		name := strings.ToLower(strings.TrimSuffix(k.Spec.ExternalName, "."))
		out.Resolution, out.Selector, out.Listed, out.Headless = mesh.DNS, nil, nil, false
		out.External = !strings.HasSuffix(name, ".svc."+s.domain)
		out.Endpoints = []*mesh.Workload{{Origin: origin(o), Namespace: o.Namespace, ID: o.Name + "/0", Host: name}}
	}
	for _, ip := range slices.Compact(append([]string{k.Spec.ClusterIP}, k.Spec.ClusterIPs...)) {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(out.Addresses, single(a)) {
			out.Addresses = append(out.Addresses, single(a))
		}
	}
	if len(out.Addresses) == 0 && !out.Headless {
		s.allocate(out)
	}
	return out
}

// allocate gives a service addresses of our own; without any left it stays without, which is a finding.
func (s *Set) allocate(svc *mesh.Service) {
	list, err := s.addresses.Addresses(svc.Namespace, svc.Host)
	if err != nil {
		return
	}
	for _, a := range list {
		svc.Addresses = append(svc.Addresses, single(a))
	}
	svc.Allocated = true
}

// entry makes one service for each host of a ServiceEntry.
func (s *Set) entry(o *api.Object, e *networking.ServiceEntry) []mesh.Object {
	var out []mesh.Object
	for _, h := range e.Hosts {
		svc := &mesh.Service{
			Origin: origin(o), Host: strings.ToLower(strings.TrimSuffix(h, ".")), ShortName: o.Name, Namespace: o.Namespace, Labels: o.Labels,
			Addresses: prefixes(e.Addresses), Resolution: resolution(e.Resolution), External: e.Location == networking.ServiceEntry_MESH_EXTERNAL,
			SubjectAltNames: e.SubjectAltNames, Visibility: visibility(o.Namespace, e.ExportTo, s.exports.service),
		}
		if e.WorkloadSelector != nil {
			svc.Selector = mesh.Labels{}
			maps.Copy(svc.Selector, e.WorkloadSelector.Labels)
		}
		for _, p := range e.Ports {
			number := uint16(p.Number)
			svc.Ports = append(svc.Ports, mesh.Port{
				Name: p.Name, Number: number, Target: uint16(p.TargetPort),
				Protocol: protocol(p.Protocol, p.Protocol, p.Name, number),
			})
		}
		svc.Endpoints = endpoints(o, e, svc)
		wild := strings.HasPrefix(svc.Host, "*")
		if len(svc.Addresses) == 0 && !wild && svc.Resolution != mesh.None && o.Labels[labelNoAddress] != "false" {
			s.allocate(svc)
		}
		out = append(out, svc)
	}
	return out
}

func resolution(r networking.ServiceEntry_Resolution) mesh.Resolution {
	switch r {
	case networking.ServiceEntry_STATIC:
		return mesh.Static
	case networking.ServiceEntry_DNS:
		return mesh.DNS
	case networking.ServiceEntry_DNS_ROUND_ROBIN:
		return mesh.DNSRoundRobin
	case networking.ServiceEntry_DYNAMIC_DNS:
		return mesh.DynamicDNS
	}
	return mesh.None
}

// endpoints are the workloads that a ServiceEntry lists itself; for DNS without any, the host is the one endpoint.
func endpoints(o *api.Object, e *networking.ServiceEntry, svc *mesh.Service) []*mesh.Workload {
	var out []*mesh.Workload
	for i, w := range e.Endpoints {
		m := endpoint(o, w, w.Labels)
		m.ID = o.Name + "/" + strconv.Itoa(i)
		m.Line = o.LineOf("spec", "endpoints", i)
		name(m, cmp.Or(w.Labels[labelWorkload], o.Name))
		out = append(out, m)
	}
	if len(out) == 0 && svc.Selector == nil && (svc.Resolution == mesh.DNS || svc.Resolution == mesh.DNSRoundRobin) {
		out = append(out, &mesh.Workload{Origin: origin(o), Namespace: o.Namespace, ID: o.Name + "/0", Host: svc.Host})
	}
	return out
}

// workload makes the workload of a WorkloadEntry. Labels of the object win over those of its spec, as in Istio.
func workload(o *api.Object, w *networking.WorkloadEntry) *mesh.Workload {
	labels := maps.Clone(w.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, o.Labels)
	m := endpoint(o, w, labels)
	m.ID = o.Name
	name(m, cmp.Or(labels[labelWorkload], o.Annotations[annotationGroup], o.Name))
	m.Proxy = proxySettings(o.Proxy)
	return m
}

func endpoint(o *api.Object, w *networking.WorkloadEntry, labels map[string]string) *mesh.Workload {
	m := &mesh.Workload{
		Origin: origin(o), Namespace: o.Namespace, ServiceAccount: w.ServiceAccount, Weight: w.Weight,
		Locality: cmp.Or(w.Locality, strings.ReplaceAll(labels[labelLocality], ".", "/")),
		Network:  cmp.Or(w.Network, labels[labelNetwork]),
	}
	if len(labels) > 0 {
		m.Labels = labels
	}
	for n, number := range w.Ports {
		if m.Ports == nil {
			m.Ports = map[string]uint16{}
		}
		m.Ports[n] = uint16(number)
	}
	if path, ok := strings.CutPrefix(w.Address, "unix://"); ok {
		m.UnixPath = path
	} else if a, err := netip.ParseAddr(w.Address); err == nil {
		m.Addresses = []netip.Addr{a.Unmap()}
	} else {
		m.Host = strings.ToLower(strings.TrimSuffix(w.Address, "."))
	}
	// Istio takes a workload that names its account for one with a proxy, unless its label says otherwise.
	mode, told := labels[labelMTLS]
	m.MTLS = mode == "istio" || !told && w.ServiceAccount != ""
	return m
}

// name gives a workload the names by which telemetry knows it.
func name(m *mesh.Workload, workload string) {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := m.Labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	m.WorkloadName = workload
	m.CanonicalName = cmp.Or(first("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"), workload)
	m.CanonicalRevision = cmp.Or(first("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"), "latest")
}
