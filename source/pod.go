package source

import (
	"cmp"
	"maps"
	"net/netip"
	"regexp"
	"strings"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
)

// Labels and annotations of pods, nodes and slices that are read.
const (
	labelPodLocality   = "topology.istio.io/locality"
	labelTemplateHash  = "pod-template-hash"
	annotationRedirect = "ambient.istio.io/redirection" // set by Istio's CNI on pods whose traffic the node proxy carries
	redirectEnabled    = "enabled"
	annotationProxy    = "proxy.istio.io/config"
	labelSubzone       = "topology.istio.io/subzone"
)

// Pod makes the workload of a Kubernetes pod, without what its node and namespace say of it: see Place. It is nil for
// a pod that cannot be called: one without an address so far, or one that has ended.
//
// Health is what Kubernetes' own endpoint controller makes of a pod: ready, serving while it terminates, or neither.
func Pod(p *core.Pod) *mesh.Workload {
	if p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed {
		return nil
	}
	addresses := podAddresses(&p.Status)
	if len(addresses) == 0 {
		return nil
	}
	m := &mesh.Workload{
		Origin:    mesh.Origin{Kind: mesh.OriginPod, Namespace: p.Namespace, Name: p.Name, Created: p.CreationTimestamp.UnixNano()},
		Namespace: p.Namespace, ID: p.Name, Addresses: addresses, Labels: p.Labels, Targets: containerPorts(&p.Spec),
		ServiceAccount: cmp.Or(p.Spec.ServiceAccountName, "default"),
		Locality:       strings.ReplaceAll(cmp.Or(p.Labels[labelPodLocality], p.Labels[labelLocality]), ".", "/"),
		Network:        p.Labels[labelNetwork],
		Health:         podHealth(p),
	}
	m.Ambient = p.Annotations[annotationRedirect] == redirectEnabled
	m.MTLS = m.Ambient || p.Labels[labelMTLS] == "istio"
	if text := p.Annotations[annotationProxy]; text != "" {
		if config, faults, _ := api.ReadProxyConfig(text); len(faults) == 0 {
			m.Proxy = proxySettings(config)
		}
	}
	name(m, deployment(p))
	return m
}

func podAddresses(s *core.PodStatus) []netip.Addr {
	var out []netip.Addr
	for _, ip := range s.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	if a, err := netip.ParseAddr(s.PodIP); err == nil && len(out) == 0 {
		out = append(out, a.Unmap())
	}
	return out
}

// containerPorts are the named TCP ports of containers that run as long as the pod does.
func containerPorts(s *core.PodSpec) map[string]uint16 {
	var out map[string]uint16
	take := func(c *core.Container) {
		for _, p := range c.Ports {
			if _, twice := out[p.Name]; p.Name == "" || p.Protocol == core.ProtocolUDP || p.Protocol == core.ProtocolSCTP || twice {
				continue
			}
			if out == nil {
				out = map[string]uint16{}
			}
			out[p.Name] = uint16(p.ContainerPort)
		}
	}
	for i := range s.Containers {
		take(&s.Containers[i])
	}
	for i := range s.InitContainers {
		if r := s.InitContainers[i].RestartPolicy; r != nil && *r == core.ContainerRestartPolicyAlways {
			take(&s.InitContainers[i])
		}
	}
	return out
}

func podHealth(p *core.Pod) mesh.Health {
	ready := false
	for _, c := range p.Status.Conditions {
		if c.Type == core.PodReady {
			ready = c.Status == core.ConditionTrue
		}
	}
	switch {
	case !ready:
		return mesh.Unhealthy
	case p.DeletionTimestamp != nil:
		return mesh.Draining
	}
	return mesh.Healthy
}

// cronJob is the name of a Job that a CronJob has made: its own, and the minutes since 1970.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// deployment is the name of what has made a pod, as Istio tells it: the Deployment behind a ReplicaSet, the CronJob
// behind a Job, else the owner itself, else the pod.
func deployment(p *core.Pod) string {
	for _, o := range p.OwnerReferences {
		if o.Controller == nil || !*o.Controller {
			continue
		}
		switch o.Kind {
		case "ReplicaSet":
			if hash := p.Labels[labelTemplateHash]; hash != "" {
				return strings.TrimSuffix(o.Name, "-"+hash)
			}
		case "Job":
			if m := cronJob.FindStringSubmatch(o.Name); m != nil {
				return m[1]
			}
		}
		return o.Name
	}
	return p.Name
}

// Locality is region/zone/subzone of a node, as its labels tell them; empty if they do not.
func Locality(labels map[string]string) string {
	region := cmp.Or(labels[core.LabelTopologyRegion], labels[core.LabelFailureDomainBetaRegion])
	zone := cmp.Or(labels[core.LabelTopologyZone], labels[core.LabelFailureDomainBetaZone])
	if region == "" && zone == "" {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(region+"/"+zone+"/"+labels[labelSubzone], "/"), "/")
}

// Network is the network that labels of a namespace or pod name; empty if they do not.
func Network(labels map[string]string) string { return labels[labelNetwork] }

// Endpoints makes the workloads of an EndpointSlice that somebody else than Kubernetes' own controller keeps: those of
// a Service without selector. Each has the label by which a slice names its Service, and is told apart by service and
// address. A target that is a pod lends what is known of it; pod returns nil for one that is not.
func Endpoints(s *discovery.EndpointSlice, pod func(namespace, name string) *mesh.Workload) []*mesh.Workload {
	service := s.Labels[discovery.LabelServiceName]
	ports := map[string]uint16{}
	for _, p := range s.Ports {
		if p.Port != nil && (p.Protocol == nil || *p.Protocol == core.ProtocolTCP) {
			ports[value(p.Name)] = uint16(*p.Port)
		}
	}
	var out []*mesh.Workload
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		health := sliceHealth(&e.Conditions)
		if health == mesh.Unhealthy {
			continue
		}
		for _, address := range e.Addresses {
			m := &mesh.Workload{}
			if t := e.TargetRef; t != nil && t.Kind == mesh.OriginPod {
				if p := pod(s.Namespace, t.Name); p != nil {
					*m = *p
				}
			}
			m.Origin = mesh.Origin{Kind: "EndpointSlice", Namespace: s.Namespace, Name: s.Name, Created: s.CreationTimestamp.UnixNano()}
			m.Namespace, m.ID, m.Ports, m.Health = s.Namespace, service+"/"+address, ports, health
			labels := map[string]string{}
			maps.Copy(labels, m.Labels)
			labels[discovery.LabelServiceName] = service
			m.Labels, m.Listed, m.Addresses, m.Host = labels, true, nil, ""
			if a, err := netip.ParseAddr(address); err == nil {
				m.Addresses = []netip.Addr{a.Unmap()}
			} else {
				m.Host = strings.ToLower(strings.TrimSuffix(address, "."))
			}
			if m.WorkloadName == "" {
				name(m, service)
			}
			out = append(out, m)
		}
	}
	return out
}

// sliceHealth reads an endpoint's conditions; those that are not told are true, but for terminating.
func sliceHealth(c *discovery.EndpointConditions) mesh.Health {
	switch {
	case c.Ready == nil || *c.Ready:
		return mesh.Healthy
	case c.Terminating != nil && *c.Terminating && (c.Serving == nil || *c.Serving):
		return mesh.Draining
	}
	return mesh.Unhealthy
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
