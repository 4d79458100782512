package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// endpoints lists the workloads behind a cluster.
func (a *asking) endpoints(name string) *plan.Endpoints {
	port, subset, host, ok := splitCluster(name)
	if !ok {
		return nil
	}
	s := a.Service(a.namespace, host)
	if s == nil {
		return nil
	}
	p, ok := s.Port(port)
	if !ok || p.Protocol == mesh.UDP {
		return nil
	}
	labels, known := a.subset(s, subset)
	if !known {
		return nil
	}
	out := &plan.Endpoints{Name: name}
	var selected map[netip.AddrPort]bool // a workload that a service selects counts before what lists it as well
	for _, w := range a.Workloads(s) {
		if !w.Labels.Match(labels) {
			continue
		}
		e, ok := a.endpoint(s, p, w)
		if !ok {
			continue
		}
		if w.Listed {
			if selected == nil {
				selected = placesOf(out.Endpoints)
			}
			if selected[e.Address] {
				continue
			}
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	slices.SortFunc(out.Endpoints, func(x, y plan.Endpoint) int {
		return cmp.Or(x.Address.Compare(y.Address), strings.Compare(x.Host, y.Host), cmp.Compare(x.Port, y.Port))
	})
	return out
}

func placesOf(list []plan.Endpoint) map[netip.AddrPort]bool {
	out := map[netip.AddrPort]bool{}
	for _, e := range list {
		if e.Address.IsValid() {
			out[e.Address] = true
		}
	}
	return out
}

// endpoint is a workload as the endpoint of a service's port.
func (a *asking) endpoint(s *mesh.Service, p mesh.Port, w *mesh.Workload) (plan.Endpoint, bool) {
	port, ok := targetPort(p, w)
	if !ok || w.Kind == mesh.OriginPod && w.Health == mesh.Unhealthy && !s.NotReady {
		return plan.Endpoint{}, false // what is not ready is not called, not even if nothing else is there (Kubernetes' rule)
	}
	e := plan.Endpoint{
		Weight: w.Weight, Health: health(w.Health), Locality: w.Locality, Network: w.Network,
		MTLS: w.MTLS && !s.External, Workload: workload(w),
	}
	if s.NotReady {
		e.Health = plan.Healthy
	}
	if e.MTLS && w.HBONE() {
		e.Tunnel = plan.TunnelHBONE
	}
	if w.ServiceAccount != "" {
		e.Identity = spiffe(a.config.TrustDomain, w.Namespace, w.ServiceAccount)
	}
	switch {
	case len(w.Addresses) > 0:
		e.Address = netip.AddrPortFrom(w.Addresses[0], port)
	case w.Host != "":
		e.Host, e.Port = w.Host, port
	default:
		return e, false
	}
	return e, true
}

// targetPort is the workload's port that stands for a service port. A pod that has no port of the name that the
// service gives does not serve it.
func targetPort(p mesh.Port, w *mesh.Workload) (port uint16, ok bool) {
	if n, ok := w.Ports[p.Name]; ok {
		return n, true
	}
	if p.TargetName != "" {
		if n, ok := w.Targets[p.TargetName]; ok {
			return n, true
		}
		if n, ok := w.Ports[p.TargetName]; ok {
			return n, true
		}
		return p.Number, w.Kind != mesh.OriginPod
	}
	return cmp.Or(p.Target, p.Number), true
}

func health(h mesh.Health) plan.Health {
	switch h {
	case mesh.Unhealthy:
		return plan.Unhealthy
	case mesh.Draining:
		return plan.Draining
	default:
		return plan.Healthy
	}
}

func workload(w *mesh.Workload) plan.Workload {
	return plan.Workload{
		Name: w.WorkloadName, Namespace: w.Namespace, App: w.Labels["app"], Version: w.Labels["version"],
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
	}
}

// spiffe is the SPIFFE ID of a service account.
func spiffe(domain, namespace, account string) string {
	return "spiffe://" + domain + "/ns/" + namespace + "/sa/" + account
}
