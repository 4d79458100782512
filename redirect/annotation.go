package redirect

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// CaptureAnnotation of a pod holds, as JSON, the Config of its capture rules: the injector writes it, and the CNI plugin
// sets the rules of pods that have it.
const CaptureAnnotation = "lateen.dev/capture"

const (
	// annotationPrefix begins the annotations of a pod that say what is captured.
	annotationPrefix = "traffic.sidecar.istio.io/"
	// virtualInterfaces is what replaced kubevirtInterfaces. Neither is supported.
	virtualInterfaces = "istio.io/reroute-virtual-interfaces"
	noRerouting       = "rerouting virtual interfaces is not supported: remove the annotation"
	everything        = "*"
)

// Annotated returns config as changed by the annotations of a pod (Istio's traffic.sidecar.istio.io/..., reference
// "Resource Annotations"); others are passed over. The error tells all faults at once: a value that cannot be
// understood, and what Lateen does not do, which is rerouting the virtual interfaces of KubeVirt.
func Annotated(config Config, annotations map[string]string) (Config, error) {
	var faults []error
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		var err error
		if name, ours := strings.CutPrefix(key, annotationPrefix); ours {
			err = config.annotate(name, annotations[key])
		} else if key == virtualInterfaces && annotations[key] != "" {
			err = errors.New(noRerouting)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("annotation %s: %w", key, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return Config{}, err
	}
	return config, nil
}

// annotate applies one annotation, named without the prefix.
func (c *Config) annotate(name, value string) (err error) {
	all := strings.TrimSpace(value) == everything
	switch name {
	case "includeInboundPorts":
		c.NoInbound, c.IncludeInboundPorts = false, nil
		if !all {
			c.IncludeInboundPorts, err = portList(value)
			c.NoInbound = len(c.IncludeInboundPorts) == 0
		}
	case "excludeInboundPorts":
		c.ExcludeInboundPorts, err = portList(value)
	case "includeOutboundPorts":
		c.IncludeOutboundPorts, err = portList(value)
	case "excludeOutboundPorts":
		c.ExcludeOutboundPorts, err = portList(value)
	case "includeOutboundIPRanges":
		c.NoOutbound, c.IncludeOutboundRanges = false, nil
		if !all {
			c.IncludeOutboundRanges, err = rangeList(value)
			c.NoOutbound = len(c.IncludeOutboundRanges) == 0
		}
	case "excludeOutboundIPRanges":
		c.ExcludeOutboundRanges, err = rangeList(value)
	case "excludeInterfaces":
		c.ExcludeInterfaces = entries(value)
	case "kubevirtInterfaces":
		if value != "" {
			err = errors.New(noRerouting)
		}
	default:
		err = errors.New("no such annotation is known")
	}
	return err
}

// entries splits a comma separated list; as in Istio, spaces and empty entries do not count.
func entries(value string) []string {
	var list []string
	for entry := range strings.SplitSeq(value, ",") {
		if entry = strings.TrimSpace(entry); entry != "" {
			list = append(list, entry)
		}
	}
	return list
}

func portList(value string) ([]uint16, error) {
	var ports []uint16
	var bad []string
	for _, entry := range entries(value) {
		port, err := strconv.ParseUint(entry, 10, 16)
		if err != nil || port == 0 {
			bad = append(bad, entry)
			continue
		}
		ports = append(ports, uint16(port))
	}
	if bad != nil {
		return nil, fmt.Errorf("not a port (1 to 65535): %q", bad)
	}
	return ports, nil
}

func rangeList(value string) ([]netip.Prefix, error) {
	var ranges []netip.Prefix
	var bad []string
	for _, entry := range entries(value) {
		r, err := netip.ParsePrefix(entry)
		if err != nil {
			bad = append(bad, entry)
			continue
		}
		ranges = append(ranges, r.Masked())
	}
	if bad != nil {
		return nil, fmt.Errorf("not a range such as 10.0.0.0/8 or fd00::/8: %q", bad)
	}
	return ranges, nil
}
