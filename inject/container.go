package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What lateen-proxy finds where in a pod (cmd/lateen-proxy, kubernetes.go). The paths are Istio's.
const (
	pathToken = "/var/run/secrets/tokens" //nolint:gosec // a folder
	pathRoot  = "/var/run/secrets/istio"
	pathInfo  = "/etc/istio/pod"
	pathData  = "/var/lib/istio/data"

	volumeToken = "istio-token" //nolint:gosec // a name
	volumeRoot  = "istiod-ca-cert"
	volumeInfo  = "istio-podinfo"
	volumeData  = "istio-data"

	// rootConfigMap holds the mesh's root certificates in each namespace.
	rootConfigMap = "istio-ca-root-cert"
	// rootBundle is the ClusterTrustBundle that may hold them instead.
	rootBundle    = "istio.io:istiod-ca:root-cert"
	tokenAudience = "istio-ca"
	tokenSeconds  = 43200
)

// The program in our images.
const (
	programProxy = "/lateen-proxy"
	programInit  = "/lateen-cni"
)

// startTries, at one a second, is how long a proxy may take to be ready before Kubernetes starts it anew.
const startTries = 600

// proxyContainer is the proxy's. probes is what the proxy is told of the application's, as JSON.
func (j *job) proxyContainer(gateway bool, probes string) core.Container {
	role := "sidecar"
	if gateway {
		role = "gateway"
	}
	c := core.Container{
		Name: ProxyContainer, Image: j.settings.image, ImagePullPolicy: j.cfg.PullPolicy,
		Command: []string{programProxy}, Args: []string{"--kubernetes", role, "--log", j.settings.logLevel},
		Env: j.environment(probes), Resources: j.settings.resources,
		Ports: []core.ContainerPort{{Name: "http-envoy-prom", ContainerPort: portScrape, Protocol: core.ProtocolTCP}},
		VolumeMounts: append([]core.VolumeMount{
			{Name: volumeToken, MountPath: pathToken, ReadOnly: true},
			{Name: volumeRoot, MountPath: pathRoot, ReadOnly: true},
			{Name: volumeInfo, MountPath: pathInfo, ReadOnly: true},
			{Name: volumeData, MountPath: pathData},
		}, j.settings.mounts...),
		SecurityContext: &core.SecurityContext{
			RunAsUser: new(int64(proxyUser)), RunAsGroup: new(int64(proxyUser)), RunAsNonRoot: new(true),
			Privileged: new(false), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities:   &core.Capabilities{Drop: []core.Capability{"ALL"}},
			SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
		},
	}
	ready := core.ProbeHandler{HTTPGet: &core.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(portHealth)}}
	readiness := j.settings.readiness
	readiness.ProbeHandler = ready
	c.ReadinessProbe = &readiness
	c.StartupProbe = &core.Probe{ProbeHandler: ready, PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: startTries}
	lifecycle := &core.Lifecycle{}
	switch {
	case gateway:
	case j.settings.native:
		// It is told at the pod's end, which comes before the application's, and ends behind it.
		c.RestartPolicy = new(core.ContainerRestartPolicyAlways)
		lifecycle.PreStop = run(programProxy, "drain")
		c.Lifecycle = lifecycle
	case j.settings.hold:
		lifecycle.PostStart = run(programProxy, "wait")
		c.Lifecycle = lifecycle
	}
	return c
}

func run(command ...string) *core.LifecycleHandler {
	return &core.LifecycleHandler{Exec: &core.ExecAction{Command: command}}
}

// environment are the variables of the proxy, Istio's by name.
func (j *job) environment(probes string) []core.EnvVar {
	field := func(name, path string) core.EnvVar {
		return core.EnvVar{Name: name, ValueFrom: &core.EnvVarSource{FieldRef: &core.ObjectFieldSelector{FieldPath: path}}}
	}
	var out []core.EnvVar
	set := func(name, value string) {
		if value != "" {
			out = append(out, core.EnvVar{Name: name, Value: value})
		}
	}
	out = append(out, field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"),
		field("INSTANCE_IP", "status.podIP"), field("INSTANCE_IPS", "status.podIPs"), field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		field("HOST_IP", "status.hostIP"), field("ISTIO_META_NODE_NAME", "spec.nodeName"))
	set("PROXY_CONFIG", proxyConfigText(j.settings.proxy))
	set("TRUST_DOMAIN", j.cfg.TrustDomain)
	set("ISTIO_META_CLUSTER_ID", firstOf(j.request.Cluster, j.cfg.Cluster))
	set("ISTIO_META_NETWORK", firstOf(j.pod.Labels["topology.istio.io/network"], j.request.Network, j.cfg.Network))
	set("ISTIO_META_MESH_ID", j.cfg.MeshID)
	set("ISTIO_META_WORKLOAD_NAME", firstOf(j.pod.Labels["service.istio.io/workload-name"], j.owner.Name))
	set("ISTIO_META_OWNER", j.owner.uri(j.namespace))
	set("ISTIO_META_INTERCEPTION_MODE", "REDIRECT")
	set("ISTIO_META_POD_PORTS", j.portsText())
	set("ISTIO_META_APP_CONTAINERS", strings.Join(j.applications(), ","))
	set("ISTIO_KUBE_APP_PROBERS", probes)
	set("ISTIO_PROMETHEUS_ANNOTATIONS", j.scrapeText())
	for _, key := range sortedKeys(j.settings.proxy.ProxyMetadata) {
		if !slices.ContainsFunc(out, func(v core.EnvVar) bool { return v.Name == key }) {
			set(key, j.settings.proxy.ProxyMetadata[key])
		}
	}
	return out
}

// proxyConfigText is what the proxy is told of its ProxyConfig, with the names of Istio's fields.
func proxyConfigText(c *meshconfig.ProxyConfig) string {
	fields := map[string]any{"discoveryAddress": c.DiscoveryAddress}
	if c.Concurrency.GetValue() > 0 {
		fields["concurrency"] = c.Concurrency.Value
	}
	if d := c.TerminationDrainDuration; d != nil {
		fields["terminationDrainDuration"] = d.AsDuration().String()
	}
	text, _ := json.Marshal(fields) // of texts and a number: never fails
	return string(text)
}

// portsText lists the ports of the application, as in Istio's node metadata.
func (j *job) portsText() string {
	var ports []core.ContainerPort
	for _, c := range j.pod.Spec.Containers {
		if !isProxy(c) {
			ports = append(ports, c.Ports...)
		}
	}
	if len(ports) == 0 {
		return ""
	}
	text, _ := json.Marshal(ports) // of texts and numbers: never fails
	return string(text)
}

func (j *job) applications() (names []string) {
	for _, c := range j.pod.Spec.Containers {
		if !isProxy(c) {
			names = append(names, c.Name)
		}
	}
	return names
}

// scrapeText is where the application's metrics are, which the proxy hands out with its own.
func (j *job) scrapeText() string {
	if !j.settings.mergeMetrics {
		return ""
	}
	fields := map[string]string{}
	for name, key := range map[string]string{"scrape": annotationScrape, "path": annotationScrapePath, "port": annotationScrapePort} {
		if v := j.pod.Annotations[key]; v != "" {
			fields[name] = v
		}
	}
	if len(fields) == 0 || fields["port"] == fmt.Sprint(portMetrics) {
		return ""
	}
	text, _ := json.Marshal(fields) // of texts: never fails
	return string(text)
}

// initContainer sets the capture rules and ends. It is the only part of a pod with a privilege.
func (j *job) initContainer() core.Container {
	c := j.ruleContainer(InitContainer, "init")
	c.SecurityContext.RunAsUser, c.SecurityContext.RunAsGroup, c.SecurityContext.RunAsNonRoot = new(int64(0)), new(int64(0)), new(false)
	c.SecurityContext.Capabilities.Add = []core.Capability{"NET_ADMIN"}
	return c
}

// validationContainer looks whether the CNI plugin has set the rules, and fails if not. It is an ordinary user, as the
// proxy's own traffic is not captured.
func (j *job) validationContainer() core.Container {
	return j.ruleContainer(ValidationContainer, "validate")
}

func (j *job) ruleContainer(name, command string) core.Container {
	const nobody = 65534
	return core.Container{
		Name: name, Image: j.cfg.InitImage, ImagePullPolicy: j.cfg.PullPolicy,
		Command: []string{programInit}, Args: []string{command, "--config", capture(j.settings.capture)},
		Resources: j.settings.resources,
		SecurityContext: &core.SecurityContext{
			RunAsUser: new(int64(nobody)), RunAsGroup: new(int64(nobody)), RunAsNonRoot: new(true),
			Privileged: new(false), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities:   &core.Capabilities{Drop: []core.Capability{"ALL"}},
			SeccompProfile: &core.SeccompProfile{Type: core.SeccompProfileTypeRuntimeDefault},
		},
	}
}

// volumes adds what is mounted. A volume of the same name that the pod has is the user's choice and stays.
func (j *job) volumes() {
	var add []any
	for _, v := range j.volumeList() {
		if !slices.ContainsFunc(j.pod.Spec.Volumes, func(have core.Volume) bool { return have.Name == v.Name }) {
			add = append(add, v)
		}
	}
	j.result.Patch.insert(len(j.pod.Spec.Volumes), false, add, "spec", "volumes")
}

func (j *job) volumeList() []core.Volume {
	item := func(path string) core.DownwardAPIVolumeFile {
		return core.DownwardAPIVolumeFile{Path: path, FieldRef: &core.ObjectFieldSelector{FieldPath: "metadata." + path}}
	}
	return append([]core.Volume{
		{Name: volumeToken, VolumeSource: core.VolumeSource{Projected: &core.ProjectedVolumeSource{Sources: []core.VolumeProjection{{
			ServiceAccountToken: &core.ServiceAccountTokenProjection{Audience: tokenAudience, ExpirationSeconds: new(int64(tokenSeconds)), Path: "istio-token"},
		}}}}},
		{Name: volumeRoot, VolumeSource: j.roots()},
		{Name: volumeInfo, VolumeSource: core.VolumeSource{DownwardAPI: &core.DownwardAPIVolumeSource{
			Items: []core.DownwardAPIVolumeFile{item("labels"), item("annotations")},
		}}},
		{Name: volumeData, VolumeSource: core.VolumeSource{EmptyDir: &core.EmptyDirVolumeSource{}}},
	}, j.settings.volumes...)
}

// roots is where a pod gets the mesh's roots from.
func (j *job) roots() core.VolumeSource {
	if j.cfg.ClusterTrustBundle {
		return core.VolumeSource{Projected: &core.ProjectedVolumeSource{Sources: []core.VolumeProjection{{
			ClusterTrustBundle: &core.ClusterTrustBundleProjection{Name: new(rootBundle), Path: "root-cert.pem"},
		}}}}
	}
	return core.VolumeSource{ConfigMap: &core.ConfigMapVolumeSource{LocalObjectReference: core.LocalObjectReference{Name: rootConfigMap}}}
}
