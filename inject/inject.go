// Package inject is pods in: it decides whether a pod gets a proxy, and what has to change in the pod for it.
//
// In comes a pod as JSON, as the API server's admission review or a YAML document holds it; out goes a Decision with its
// reason and a Patch (RFC 6902) that touches what it must and nothing else: fields that this version of Kubernetes'
// types does not know stay as they are. Webhook serves the API server, Documents is `lateen kube-inject`, Registration
// is what makes the API server call the webhook. The package must not know a cluster, a proxy's inside or an authority.
//
// An Injector is immutable: any goroutine may call it.
package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	kubejson "sigs.k8s.io/json"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/redirect"
)

// The names of what is put into a pod. The proxy's are Istio's, by which users find its logs and customise it.
const (
	ProxyContainer      = "istio-proxy"
	InitContainer       = "lateen-init"
	ValidationContainer = "lateen-validation"
)

// The ports of the proxy that a pod shows to others (Istio's).
const (
	portMetrics = 15020 // merged metrics, probes of the application
	portHealth  = 15021
	portScrape  = 15090 // the proxy's own metrics
)

// proxyUser is the uid and gid of the proxy, by which the capture rules know it.
const proxyUser = redirect.ProxyUser

// Injector judges and equips pods.
type Injector struct {
	cfg    Config
	never  []namedSelector
	always []namedSelector
}

// New checks the configuration.
func New(cfg Config) (*Injector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure injection: %w", err)
	}
	in := &Injector{cfg: cfg.complete()}
	in.never, _ = compileSelectors(cfg.NeverInjectSelector) // Validate has seen them
	in.always, _ = compileSelectors(cfg.AlwaysInjectSelector)
	return in, nil
}

// Request is a pod to be judged.
type Request struct {
	// Pod is the pod, or the template of one, as JSON: metadata and spec.
	Pod []byte
	// Namespace is where the pod will be; empty: what its metadata says, or default.
	Namespace string
	// Owner is the workload that makes the pod, where the caller knows it better than the pod's owner references.
	Owner Owner
	// Cluster and Network, unless empty, go before those of the Config (the webhook's path names them).
	Cluster, Network string
}

// Result is what becomes of a pod.
type Result struct {
	Decision
	// Patch is empty unless the pod is injected.
	Patch Patch
	// Warnings tell the user what has no effect, or not the one that he may expect.
	Warnings []string
}

// job is one injection under way.
type job struct {
	cfg       *Config
	pod       *core.Pod
	raw       rawPod
	request   Request
	settings  settings
	namespace string
	owner     Owner
	result    Result
}

// rawPod are the containers as they were written, for the one that users may customise.
type rawPod struct {
	Spec struct {
		InitContainers []json.RawMessage `json:"initContainers"`
		Containers     []json.RawMessage `json:"containers"`
	} `json:"spec"`
}

// Inject judges a pod. The error is for the user: it tells all that is wrong with the pod's annotations, or that it is
// none.
func (in *Injector) Inject(r Request) (Result, error) {
	j := &job{cfg: &in.cfg, pod: &core.Pod{}, request: r}
	for _, into := range []any{j.pod, &j.raw} {
		if err := kubejson.UnmarshalCaseSensitivePreserveInts(r.Pod, into); err != nil {
			return Result{}, fmt.Errorf("read the pod: %w", err)
		}
	}
	if len(j.pod.Spec.Containers) == 0 {
		return Result{}, errors.New("read the pod: it has no containers")
	}
	if len(j.pod.Spec.Containers) > containersMax || len(j.pod.Spec.InitContainers) > containersMax {
		return Result{}, fmt.Errorf("the pod has more than the %d containers that are read; leave it uninjected with the label %s: \"false\"", containersMax, labelInject)
	}
	j.namespace = firstOf(r.Namespace, j.pod.Namespace, api.DefaultNamespace)
	j.owner = ownerOf(j.pod, r.Owner)
	j.result.Decision, j.result.Warnings = in.decide(j.pod, j.namespace)
	if !j.result.Inject {
		if slices.ContainsFunc(j.pod.Spec.Containers, isAuto) {
			j.warn("container %s says image: auto, but the pod is not injected: %s", ProxyContainer, j.result.Reason)
		}
		return j.result, nil
	}
	if err := j.inject(); err != nil {
		return Result{}, fmt.Errorf("%s cannot be injected: %w", j.subject(), err)
	}
	return j.result, nil
}

// containersMax bounds the containers of a pod, and as many before them.
const containersMax = 256

func isAuto(c core.Container) bool { return c.Name == ProxyContainer && c.Image == imageAuto }

// subject names the pod in messages.
func (j *job) subject() string {
	return fmt.Sprintf("%s %s/%s", j.owner.Kind, j.namespace, firstOf(j.owner.Name, j.pod.Name, j.pod.GenerateName))
}

func (j *job) warn(format string, args ...any) {
	j.result.Warnings = append(j.result.Warnings, fmt.Sprintf(format, args...))
}

// inject fills the patch. What refers to the containers by position comes first, as long as the positions hold.
func (j *job) inject() error {
	template, err := templateOf(j.pod.Annotations)
	if err != nil {
		return err
	}
	if j.settings, err = j.readSettings(); err != nil {
		return err
	}
	gateway := template == templateGateway
	probes := j.rewriteProbes(gateway)
	proxy, err := j.customise(j.proxyContainer(gateway, probes))
	if err != nil {
		return err
	}
	placed := j.place(gateway, proxy)
	j.volumes()
	j.podSettings(gateway)
	j.metadata(gateway, placed)
	j.look(gateway)
	return nil
}

// place puts the containers where they belong and returns the names of the init containers and containers that were
// added. With a native sidecar everything of the user's starts behind the proxy. A classic one starts after the init
// containers, which therefore run before the rules are there; with the CNI plugin the rules are there first.
func (j *job) place(gateway bool, proxy any) (placed status) {
	patch := &j.result.Patch
	inits, containers := len(j.pod.Spec.InitContainers), len(j.pod.Spec.Containers)
	if i := slices.IndexFunc(j.pod.Spec.InitContainers, isProxy); i >= 0 {
		patch.remove("spec", "initContainers", i)
		inits--
	}
	if i := slices.IndexFunc(j.pod.Spec.Containers, isProxy); i >= 0 {
		patch.remove("spec", "containers", i)
		containers--
	}
	var first, last []any // of the init containers
	switch {
	case gateway:
	case j.cfg.CNI:
		first = append(first, j.validationContainer())
		placed.InitContainers = append(placed.InitContainers, ValidationContainer)
	default:
		placed.InitContainers = append(placed.InitContainers, InitContainer)
		if j.settings.native {
			first = append(first, j.initContainer())
		} else {
			last = append(last, j.initContainer())
		}
	}
	if j.settings.native && !gateway {
		first = append(first, proxy)
		placed.InitContainers = append(placed.InitContainers, ProxyContainer)
	} else {
		placed.Containers = append(placed.Containers, ProxyContainer)
		patch.insert(containers, j.settings.hold || gateway, []any{proxy}, "spec", "containers")
	}
	patch.insert(inits, true, first, "spec", "initContainers")
	patch.insert(inits+len(first), false, last, "spec", "initContainers")
	return placed
}

func isProxy(c core.Container) bool { return c.Name == ProxyContainer }

// podSettings are what concerns the whole pod.
func (j *job) podSettings(gateway bool) {
	var add []core.LocalObjectReference
	for _, name := range j.cfg.ImagePullSecrets {
		if !slices.ContainsFunc(j.pod.Spec.ImagePullSecrets, func(r core.LocalObjectReference) bool { return r.Name == name }) {
			add = append(add, core.LocalObjectReference{Name: name})
		}
	}
	j.result.Patch.insert(len(j.pod.Spec.ImagePullSecrets), false, anys(add), "spec", "imagePullSecrets")
	if !gateway {
		return
	}
	// A gateway opens ports below 1024 without privileges.
	const firstPort = "net.ipv4.ip_unprivileged_port_start"
	sysctl := []any{core.Sysctl{Name: firstPort, Value: "0"}}
	switch c := j.pod.Spec.SecurityContext; {
	case c == nil:
		j.result.Patch.add(map[string]any{"sysctls": sysctl}, "spec", "securityContext")
	case !slices.ContainsFunc(c.Sysctls, func(s core.Sysctl) bool { return s.Name == firstPort }):
		j.result.Patch.insert(len(c.Sysctls), false, sysctl, "spec", "securityContext", "sysctls")
	}
}

// look warns of what goes around the proxy, or waits for ever.
func (j *job) look(gateway bool) {
	if gateway {
		return
	}
	podUser, podGroup := int64(-1), int64(-1)
	if c := j.pod.Spec.SecurityContext; c != nil {
		podUser, podGroup = ptr.Deref(c.RunAsUser, podUser), ptr.Deref(c.RunAsGroup, podGroup)
	}
	for _, c := range slices.Concat(j.pod.Spec.InitContainers, j.pod.Spec.Containers) {
		user, group := podUser, podGroup
		if own := c.SecurityContext; own != nil {
			user, group = ptr.Deref(own.RunAsUser, user), ptr.Deref(own.RunAsGroup, group)
		}
		for _, as := range []struct {
			what string
			id   int64
		}{{"user", user}, {"group", group}} {
			if as.id == proxyUser && !isProxy(c) {
				j.warn("container %s runs as %s %d, which is the proxy's: its traffic steps around the proxy; use another %s", c.Name, as.what, proxyUser, as.what)
			}
		}
	}
	if !j.settings.native && (j.owner.Kind == "Job" || j.owner.Kind == "CronJob") {
		j.warn("the proxy is a classic container, so that the Job does not complete by itself: leave out the annotation %s, or have the application call POST http://127.0.0.1:%d/quitquitquit at its end",
			annotationNative, portMetrics)
	}
	if !j.settings.native && j.cfg.CNI && len(j.pod.Spec.InitContainers) > 0 {
		j.warn("with the CNI plugin and a classic proxy, init containers have no network: leave out the annotation %s", annotationNative)
	}
}

// status is the content of the annotation sidecar.istio.io/status.
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

// metadata adds the labels and annotations that say what became of the pod.
func (j *job) metadata(gateway bool, placed status) {
	labels := map[string]string{
		labelCanonicalName:     j.canonicalName(),
		labelCanonicalRevision: firstOf(j.pod.Labels[labelCanonicalRevision], j.pod.Labels["app.kubernetes.io/version"], j.pod.Labels["version"], "latest"),
		labelTLSMode:           "istio",
	}
	for _, v := range j.volumeList() {
		placed.Volumes = append(placed.Volumes, v.Name)
	}
	placed.ImagePullSecrets, placed.Revision = j.cfg.ImagePullSecrets, j.cfg.Revision
	text, _ := json.Marshal(placed) // of texts: never fails
	notes := map[string]string{annotationStatus: string(text), annotationRevision: j.cfg.Revision}
	if !gateway {
		if app := slices.IndexFunc(j.pod.Spec.Containers, func(c core.Container) bool { return !isProxy(c) }); app >= 0 {
			for _, key := range []string{"kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"} {
				if _, set := j.pod.Annotations[key]; !set {
					notes[key] = j.pod.Spec.Containers[app].Name
				}
			}
		}
	}
	if j.settings.mergeMetrics {
		notes[annotationScrape], notes[annotationScrapePort], notes[annotationScrapePath] = "true", fmt.Sprint(portMetrics), "/stats/prometheus"
	}
	if j.cfg.CNI && !gateway {
		notes[redirect.CaptureAnnotation] = capture(j.settings.capture)
	}
	missing := map[string]string{}
	for k, v := range labels {
		if _, set := j.pod.Labels[k]; !set && v != "" {
			missing[k] = v
		}
	}
	patch := &j.result.Patch
	if !hasMetadata(j.request.Pod) {
		patch.add(map[string]any{}, "metadata")
	}
	patch.put(missing, len(j.pod.Labels) > 0, "metadata", "labels")
	patch.put(notes, len(j.pod.Annotations) > 0, "metadata", "annotations")
}

// hasMetadata reports whether there is an object to put labels into.
func hasMetadata(pod []byte) bool {
	var top struct {
		Metadata *meta.ObjectMeta `json:"metadata"`
	}
	return kubejson.UnmarshalCaseSensitivePreserveInts(pod, &top) == nil && top.Metadata != nil
}

func (j *job) canonicalName() string {
	return firstOf(j.pod.Labels[labelCanonicalName], j.pod.Labels["app.kubernetes.io/name"], j.pod.Labels["app"], j.owner.Name)
}

// The templates that Istio's users name in inject.istio.io/templates.
const (
	templateSidecar = "sidecar"
	templateGateway = "gateway"
)

// templateOf says which of our templates a pod asks for.
func templateOf(annotations map[string]string) (string, error) {
	list := entries(annotations[annotationTemplates])
	if len(list) == 0 {
		return templateSidecar, nil
	}
	var faults []error
	for _, name := range list {
		if name != templateSidecar && name != templateGateway {
			faults = append(faults, fmt.Errorf("annotation %s: the template %q is not supported, only %s and %s are: customise the container %s of the pod instead, or leave the pod uninjected with the label %s: \"false\"",
				annotationTemplates, name, templateSidecar, templateGateway, ProxyContainer, labelInject))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return "", err
	}
	if len(list) > 1 {
		return "", fmt.Errorf("annotation %s: name one of %s and %s", annotationTemplates, templateSidecar, templateGateway)
	}
	return list[0], nil
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
