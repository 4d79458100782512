package inject

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/redirect"
)

// DefaultRevision is the revision that namespaces with istio-injection=enabled mean.
const DefaultRevision = "default"

// The policies of injection (Istio's values global.proxy.autoInject).
const (
	PolicyEnabled  = "enabled"
	PolicyDisabled = "disabled" // only pods that ask for it by themselves
)

// imageAuto is what a user writes for the image that we choose.
const imageAuto = "auto"

// Config says how pods are injected. The zero value of everything but the images is the default.
type Config struct {
	// Revision is that of the control plane, as in the label istio.io/rev; empty: DefaultRevision.
	Revision string `json:"revision,omitempty"`
	// Policy is PolicyEnabled (also empty) or PolicyDisabled.
	Policy string `json:"policy,omitempty"`
	// NeverInjectSelector and AlwaysInjectSelector choose pods by their labels that say nothing themselves; Never goes first.
	NeverInjectSelector  []meta.LabelSelector `json:"neverInjectSelector,omitempty"`
	AlwaysInjectSelector []meta.LabelSelector `json:"alwaysInjectSelector,omitempty"`

	// ProxyImage is the image of lateen-proxy, InitImage that of lateen-cni.
	ProxyImage string `json:"proxyImage"`
	InitImage  string `json:"initImage"`
	// PullPolicy is the imagePullPolicy of both; empty: Kubernetes' default.
	PullPolicy core.PullPolicy `json:"imagePullPolicy,omitempty"`
	// ImagePullSecrets are added to each pod.
	ImagePullSecrets []string `json:"imagePullSecrets,omitempty"`

	// DiscoveryAddress is the control plane's for proxies, host:port; empty: lateend in the root namespace.
	DiscoveryAddress string `json:"discoveryAddress,omitempty"`
	TrustDomain      string `json:"trustDomain,omitempty"` // empty: cluster.local
	Cluster          string `json:"clusterID,omitempty"`   // empty: Kubernetes
	Network          string `json:"network,omitempty"`
	MeshID           string `json:"meshID,omitempty"` // empty: the trust domain

	// ClusterTrustBundle has pods get the mesh's roots from the ClusterTrustBundle that lateend writes, where API server
	// and kubelets have that, instead of from their namespace's ConfigMap.
	ClusterTrustBundle bool `json:"clusterTrustBundle,omitempty"`
	// CNI tells that the CNI plugin sets the capture rules: the pod then gets a container that checks for them in place
	// of a privileged one that sets them.
	CNI bool `json:"cni,omitempty"`
	// Classic makes the proxy an ordinary container instead of a native sidecar, which Kubernetes has since 1.29.
	Classic bool `json:"classicSidecars,omitempty"`
	// HoldApplication lets the containers of a pod with a classic proxy start after it is ready. Native ones always do.
	HoldApplication bool `json:"holdApplicationUntilProxyStarts,omitempty"`
	// DNSCapture leads the pods' DNS queries to the proxy (Istio's ISTIO_META_DNS_CAPTURE).
	DNSCapture bool `json:"dnsCapture,omitempty"`
	// KeepProbes leaves the application's probes as they are, KeepMetrics its metrics.
	KeepProbes  bool `json:"disableProbeRewrite,omitempty"`
	KeepMetrics bool `json:"disablePrometheusMerge,omitempty"`
	// LogLevel of the proxy, as Envoy names them; empty: warning.
	LogLevel string `json:"logLevel,omitempty"`
	// Resources of the proxy; empty: requests of 10m CPU and 32Mi memory and a limit of 1Gi memory.
	Resources core.ResourceRequirements `json:"resources,omitzero"`
	// Capture is what is captured unless a pod's annotations say otherwise.
	Capture redirect.Config `json:"capture,omitzero"`
}

// ReadConfig reads a Config from YAML; unknown fields are refused.
func ReadConfig(text []byte) (Config, error) {
	var cfg Config
	if err := yaml.UnmarshalStrict(text, &cfg); err != nil {
		return cfg, fmt.Errorf("read the configuration of injection: %w", err)
	}
	return cfg, nil
}

// Validate returns all faults of the configuration at once.
func (c *Config) Validate() error {
	var faults []error
	if c.ProxyImage == "" || c.InitImage == "" {
		faults = append(faults, errors.New("proxyImage and initImage must be set"))
	}
	if !slices.Contains([]string{"", PolicyEnabled, PolicyDisabled}, c.Policy) {
		faults = append(faults, fmt.Errorf("policy %q: want %s or %s", c.Policy, PolicyEnabled, PolicyDisabled))
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		faults = append(faults, fmt.Errorf("logLevel: %w", err))
	}
	if err := hostPort(c.DiscoveryAddress); err != nil {
		faults = append(faults, fmt.Errorf("discoveryAddress: %w", err))
	}
	for _, list := range [][]meta.LabelSelector{c.NeverInjectSelector, c.AlwaysInjectSelector} {
		if _, err := compileSelectors(list); err != nil {
			faults = append(faults, err)
		}
	}
	if _, err := redirect.Rules(c.Capture); err != nil {
		faults = append(faults, fmt.Errorf("capture: %w", err))
	}
	return errors.Join(faults...)
}

// complete returns the Config with defaults in place.
func (c Config) complete() Config {
	c.Revision = cmp.Or(c.Revision, DefaultRevision)
	c.Policy = cmp.Or(c.Policy, PolicyEnabled)
	c.DiscoveryAddress = cmp.Or(c.DiscoveryAddress, "lateend."+api.RootNamespace+".svc:15012")
	c.TrustDomain = cmp.Or(c.TrustDomain, "cluster.local")
	c.Cluster = cmp.Or(c.Cluster, "Kubernetes")
	c.MeshID = cmp.Or(c.MeshID, c.TrustDomain)
	if len(c.Resources.Requests)+len(c.Resources.Limits) == 0 {
		c.Resources = core.ResourceRequirements{
			Requests: core.ResourceList{core.ResourceCPU: resource.MustParse("10m"), core.ResourceMemory: resource.MustParse("32Mi")},
			Limits:   core.ResourceList{core.ResourceMemory: resource.MustParse("1Gi")},
		}
	}
	return c
}

// capture is the Config of the capture rules as text, for the container or the plugin that applies them.
func capture(c redirect.Config) string {
	text, _ := json.Marshal(c) // of numbers, texts and addresses: never fails
	return string(text)
}
