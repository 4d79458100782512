package inject

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/redirect"
)

// The labels and annotations of pods, Istio's.
const (
	labelCanonicalName     = "service.istio.io/canonical-name"
	labelCanonicalRevision = "service.istio.io/canonical-revision"
	labelTLSMode           = "security.istio.io/tlsMode"

	annotationStatus    = "sidecar.istio.io/status"
	annotationNative    = "sidecar.istio.io/nativeSidecar"
	annotationRevision  = "istio.io/rev"
	annotationTemplates = "inject.istio.io/templates"
	annotationConfig    = "proxy.istio.io/config"
	annotationMerge     = "prometheus.istio.io/merge-metrics"

	annotationScrape     = "prometheus.io/scrape"
	annotationScrapePort = "prometheus.io/port"
	annotationScrapePath = "prometheus.io/path"

	prefixSidecar = "sidecar.istio.io/"
)

// settings are what the Config, the pod's annotations and its ProxyConfig come to, the later before the earlier.
type settings struct {
	native, hold          bool
	rewrite, mergeMetrics bool
	image                 string
	logLevel              string
	resources             core.ResourceRequirements
	capture               redirect.Config
	proxy                 *meshconfig.ProxyConfig
	readiness             core.Probe // times only
	volumes               []core.Volume
	mounts                []core.VolumeMount
}

// setting is one annotation of a pod.
type setting func(s *settings, value string) error

// known are the annotations that say how a pod is injected. Those with nil are Envoy's business: they have no effect.
func known() map[string]setting {
	whole := func(to func(*settings) *int32) setting {
		return func(s *settings, value string) error {
			n, err := strconv.ParseInt(value, 10, 32)
			if err != nil || n < 0 {
				return fmt.Errorf("%q is not a whole number from 0 on", value)
			}
			*to(s) = int32(n)
			return nil
		}
	}
	return map[string]setting{
		labelInject: ignored, annotationStatus: ignored,
		annotationNative:                         truth(func(s *settings) *bool { return &s.native }),
		prefixSidecar + "rewriteAppHTTPProbers":  truth(func(s *settings) *bool { return &s.rewrite }),
		annotationMerge:                          truth(func(s *settings) *bool { return &s.mergeMetrics }),
		prefixSidecar + "logLevel":               (*settings).setLogLevel,
		prefixSidecar + "agentLogLevel":          nil,
		prefixSidecar + "proxyImage":             (*settings).setImage,
		prefixSidecar + "proxyImageType":         nil,
		prefixSidecar + "proxyCPU":               quantity(core.ResourceCPU, false),
		prefixSidecar + "proxyMemory":            quantity(core.ResourceMemory, false),
		prefixSidecar + "proxyCPULimit":          quantity(core.ResourceCPU, true),
		prefixSidecar + "proxyMemoryLimit":       quantity(core.ResourceMemory, true),
		prefixSidecar + "interceptionMode":       interception,
		prefixSidecar + "discoveryAddress":       (*settings).setDiscovery,
		prefixSidecar + "userVolume":             (*settings).setVolumes,
		prefixSidecar + "userVolumeMount":        (*settings).setMounts,
		prefixSidecar + "bootstrapOverride":      nil,
		prefixSidecar + "componentLogLevel":      nil,
		prefixSidecar + "extraStatTags":          nil,
		prefixSidecar + "statsCompression":       nil,
		prefixSidecar + "statsEvictionInterval":  nil,
		prefixSidecar + "statsFlushInterval":     nil,
		prefixSidecar + "statsHistogramBins":     nil,
		prefixSidecar + "statsHistogramBuckets":  nil,
		prefixSidecar + "statsInclusionPrefixes": nil,
		prefixSidecar + "statsInclusionRegexps":  nil,
		prefixSidecar + "statsInclusionSuffixes": nil,

		"status.sidecar.istio.io/port":                          statusPort,
		"readiness.status.sidecar.istio.io/applicationPorts":    nil,
		"readiness.status.sidecar.istio.io/initialDelaySeconds": whole(func(s *settings) *int32 { return &s.readiness.InitialDelaySeconds }),
		"readiness.status.sidecar.istio.io/periodSeconds":       whole(func(s *settings) *int32 { return &s.readiness.PeriodSeconds }),
		"readiness.status.sidecar.istio.io/failureThreshold":    whole(func(s *settings) *int32 { return &s.readiness.FailureThreshold }),
	}
}

// readSettings reads the annotations of the pod. Its error tells all faults at once.
func (j *job) readSettings() (settings, error) {
	c := j.cfg
	s := settings{
		native: !c.Classic, hold: c.HoldApplication, rewrite: !c.KeepProbes, mergeMetrics: !c.KeepMetrics, image: c.ProxyImage,
		resources: c.Resources, proxy: &meshconfig.ProxyConfig{DiscoveryAddress: c.DiscoveryAddress},
		readiness: core.Probe{PeriodSeconds: 15, FailureThreshold: 4, TimeoutSeconds: 3},
	}
	s.logLevel, _ = logLevel(c.LogLevel) // Validate has seen it
	s.resourceNotes(j.pod.Annotations)
	faults := []error{j.readProxyConfig(&s)}
	all := known()
	for _, key := range sortedKeys(j.pod.Annotations) {
		set, ok := all[key]
		switch {
		case !ok && strings.Contains(key, prefixSidecar) && !strings.HasPrefix(key, "traffic."):
			j.warn("annotation %s is not known and has no effect", key)
		case !ok:
		case set == nil:
			j.warn("annotation %s is about Envoy and has no effect on this proxy", key)
		default:
			if err := set(&s, j.pod.Annotations[key]); err != nil {
				faults = append(faults, fmt.Errorf("annotation %s: %w", key, err))
			}
		}
	}
	s.mergeMetrics = s.mergeMetrics && j.pod.Annotations[annotationScrape] != "false"
	if port := j.pod.Annotations[annotationScrapePort]; s.mergeMetrics && port != "" && !isPort(port) {
		j.warn("annotation %s: %q is not the number of a port: the application's metrics are not handed out with the proxy's, and its annotations stay as they are", annotationScrapePort, port)
		s.mergeMetrics = false
	}
	base := c.Capture
	base.NoDNS = base.NoDNS || !c.DNSCapture
	if v, ok := s.proxy.ProxyMetadata[api.MetadataDNS]; ok {
		base.NoDNS = v != "true"
	}
	var err error
	s.capture, err = redirect.Annotated(base, j.pod.Annotations)
	if c.CNI && s.capture.NoOutbound { // so that lateen-validation has something to try
		s.capture.IncludeOutboundPorts = append(slices.Clone(s.capture.IncludeOutboundPorts), redirect.ProbePort)
	}
	if err == nil {
		_, err = redirect.Rules(s.capture)
	}
	return s, errors.Join(append(faults, err)...)
}

// readProxyConfig reads the annotation proxy.istio.io/config.
func (j *job) readProxyConfig(s *settings) error {
	text := j.pod.Annotations[annotationConfig]
	if strings.TrimSpace(text) == "" {
		return nil
	}
	config, faults, warnings := api.ReadProxyConfig(text)
	for _, w := range warnings {
		j.warn("annotation %s: %s: %s", annotationConfig, w.Path, w.Message)
	}
	var errs []error
	for _, f := range faults {
		errs = append(errs, fmt.Errorf("annotation %s: %s", annotationConfig, strings.TrimPrefix(f.Path+": "+f.Message, ": ")))
	}
	if len(errs) == 0 {
		errs = proxyFaults(config)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	obeyed := []protoreflect.Name{"concurrency", "discovery_address", "termination_drain_duration", "hold_application_until_proxy_starts", "proxy_metadata", "interception_mode"}
	config.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(obeyed, fd.Name()) {
			j.warn("annotation %s: %s is not acted on in a pod; it has no effect here", annotationConfig, fd.JSONName())
		}
		return true
	})
	config.DiscoveryAddress = cmp.Or(config.DiscoveryAddress, s.proxy.DiscoveryAddress)
	if v := config.HoldApplicationUntilProxyStarts; v != nil {
		s.hold = v.Value
	}
	s.proxy = config
	if err := interception(s, config.InterceptionMode.String()); err != nil {
		return fmt.Errorf("annotation %s: %w", annotationConfig, err)
	}
	return nil
}

// proxyFaults are those by which the proxy would not start.
func proxyFaults(c *meshconfig.ProxyConfig) (faults []error) {
	fault := func(field string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("annotation %s: %s: %w", annotationConfig, field, err))
		}
	}
	fault("discoveryAddress", hostPort(c.DiscoveryAddress))
	fault("proxyMetadata."+api.MetadataAuthority, hostPort(c.ProxyMetadata[api.MetadataAuthority]))
	if text := c.ProxyMetadata[api.MetadataLifetime]; text != "" {
		if d, err := time.ParseDuration(text); err != nil || d <= 0 {
			fault("proxyMetadata."+api.MetadataLifetime, fmt.Errorf("%q is not a lifetime such as 24h", text))
		}
	}
	return faults
}

// hostPort judges an address of a server; an empty one is left to the default.
func hostPort(address string) error {
	if address == "" {
		return nil
	}
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
		return fmt.Errorf("%q is not an address with a port, host:port", address)
	}
	return nil
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// resourceNotes drops the resources of the Config as soon as one annotation names any, as in Istio.
func (s *settings) resourceNotes(annotations map[string]string) {
	for _, name := range []string{"proxyCPU", "proxyMemory", "proxyCPULimit", "proxyMemoryLimit"} {
		if _, ok := annotations[prefixSidecar+name]; ok {
			s.resources = core.ResourceRequirements{}
		}
	}
}

func ignored(*settings, string) error { return nil }

func truth(to func(*settings) *bool) setting {
	return func(s *settings, value string) error {
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%q is neither \"true\" nor \"false\"", value)
		}
		*to(s) = b
		return nil
	}
}

func quantity(name core.ResourceName, limit bool) setting {
	return func(s *settings, value string) error {
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return fmt.Errorf("%q is not a quantity such as 100m or 128Mi: %w", value, err)
		}
		list := &s.resources.Requests
		if limit {
			list = &s.resources.Limits
		}
		if *list == nil {
			*list = core.ResourceList{}
		}
		(*list)[name] = q
		return nil
	}
}

func (s *settings) setImage(value string) error {
	s.image = cmp.Or(value, s.image)
	return nil
}

func (s *settings) setDiscovery(value string) error {
	s.proxy.DiscoveryAddress = cmp.Or(value, s.proxy.DiscoveryAddress)
	return hostPort(value)
}

func (s *settings) setLogLevel(value string) (err error) {
	s.logLevel, err = logLevel(value)
	return err
}

// logLevel translates a level as Envoy names it, or several ("warning,misc:error"), of which the first counts.
func logLevel(value string) (string, error) {
	first, _, _ := strings.Cut(value, ",")
	switch strings.ToLower(first) {
	case "trace", "debug":
		return "DEBUG", nil
	case "info":
		return "INFO", nil
	case "", "warning", "warn":
		return "WARN", nil
	case "error", "critical", "off":
		return "ERROR", nil
	}
	return "", fmt.Errorf("%q is not a level: write trace, debug, info, warning, error, critical or off", value)
}

func interception(_ *settings, value string) error {
	if value != "" && value != "REDIRECT" {
		return fmt.Errorf("interception mode %q is not supported: traffic is captured by REDIRECT", value)
	}
	return nil
}

func statusPort(s *settings, value string) error {
	switch value {
	case "", strconv.Itoa(portMetrics):
	case "0":
		s.rewrite, s.mergeMetrics = false, false
	default:
		return fmt.Errorf("port %s is not supported: the proxy serves its status on %d", value, portMetrics)
	}
	return nil
}

// setVolumes reads a JSON array of volumes, or an object of them by name.
func (s *settings) setVolumes(value string) error {
	if json.Unmarshal([]byte(value), &s.volumes) == nil {
		return nil
	}
	s.volumes = nil
	var named map[string]core.Volume
	if err := json.Unmarshal([]byte(value), &named); err != nil {
		return fmt.Errorf("want a JSON array of volumes, or an object of them by name: %w", err)
	}
	for _, name := range sortedKeys(named) {
		v := named[name]
		v.Name = name
		s.volumes = append(s.volumes, v)
	}
	return nil
}

// setMounts reads a JSON array of volume mounts, or an object of them by the volume's name.
func (s *settings) setMounts(value string) error {
	if json.Unmarshal([]byte(value), &s.mounts) == nil {
		return nil
	}
	s.mounts = nil
	var named map[string]core.VolumeMount
	if err := json.Unmarshal([]byte(value), &named); err != nil {
		return fmt.Errorf("want a JSON array of volume mounts, or an object of them by the volume's name: %w", err)
	}
	for _, name := range sortedKeys(named) {
		m := named[name]
		m.Name = name
		s.mounts = append(s.mounts, m)
	}
	return nil
}

// entries splits a comma separated list.
func entries(value string) []string {
	var list []string
	for entry := range strings.SplitSeq(value, ",") {
		if entry = strings.TrimSpace(entry); entry != "" {
			list = append(list, entry)
		}
	}
	return list
}
