package proxy

import (
	"encoding/base64"
	"net/url"
	"sort"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/telemetry"
)

// self is what the proxy says of its own workload.
type self struct {
	ref      telemetry.PeerRef
	identity string // SPIFFE ID
	metadata []byte // value of x-envoy-peer-metadata
	id       []byte // value of x-envoy-peer-metadata-id
	line     []byte // x-envoy-peer-metadata as a field line
	baggage  []byte // what is said of it to those who are asked for tunnels
}

func newSelf(c *Config) self {
	id := "spiffe://" + c.TrustDomain + "/ns/" + c.Namespace + "/sa/" + c.ServiceAccount
	addr, kind := "", "sidecar"
	if c.Role == RoleGateway {
		kind = "router" // Istio's word for a gateway in the name of a node
	}
	if len(c.Addresses) > 0 {
		addr = c.Addresses[0].String()
	}
	s := self{
		ref: peerOf(c.Workload, id).Ref(), identity: id, metadata: encodePeer(c.Workload), baggage: encodeBaggage(c.Workload),
		id: []byte(kind + "~" + addr + "~" + c.Name + "." + c.Namespace + "~" + c.Namespace + ".svc.cluster.local"),
	}
	s.line = append(append([]byte(peerField+": "), s.metadata...), "\r\n"...)
	return s
}

// encodeBaggage describes a workload as W3C baggage, with the names of OpenTelemetry's semantic conventions (as
// ztunnel does).
func encodeBaggage(w plan.Workload) []byte {
	var out []byte
	for _, kv := range [][2]string{
		{"k8s.cluster.name", w.Cluster},
		{"k8s.namespace.name", w.Namespace},
		{"k8s.deployment.name", w.Name},
		{"service.name", w.CanonicalName},
		{"service.version", w.CanonicalRevision},
	} {
		if kv[1] == "" {
			continue
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, kv[0]...), '='), url.PathEscape(kv[1])...)
	}
	return out
}

// encodePeer makes the value of x-envoy-peer-metadata: a base64 protobuf Struct with Istio's keys.
func encodePeer(w plan.Workload) []byte {
	labels := map[string]string{
		"app": w.App, "version": w.Version,
		"service.istio.io/canonical-name": w.CanonicalName, "service.istio.io/canonical-revision": w.CanonicalRevision,
	}
	var inner []byte
	for _, k := range keys(labels) {
		if labels[k] != "" {
			inner = appendEntry(inner, k, stringValue(labels[k]))
		}
	}
	var out []byte
	for _, kv := range [][2]string{{"CLUSTER_ID", w.Cluster}, {"NAME", w.Name}, {"NAMESPACE", w.Namespace}, {"WORKLOAD_NAME", w.Name}} {
		if kv[1] != "" {
			out = appendEntry(out, kv[0], stringValue(kv[1]))
		}
	}
	// A Value of kind struct_value (field 5).
	value := protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), inner)
	out = appendEntry(out, "LABELS", value)
	return []byte(base64.StdEncoding.EncodeToString(out))
}

func keys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// appendEntry appends an entry of a Struct's map (field 1: key 1, value 2).
func appendEntry(dst []byte, key string, value []byte) []byte {
	entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
	entry = protowire.AppendBytes(protowire.AppendTag(entry, 2, protowire.BytesType), value)
	return protowire.AppendBytes(protowire.AppendTag(dst, 1, protowire.BytesType), entry)
}

// stringValue is a Value of kind string_value (field 3).
func stringValue(s string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), s)
}

// peerMax bounds what is read of a peer's metadata.
const peerMax = 8 << 10

// peerCacheMax bounds what is remembered of peers.
const peerCacheMax = 1024

// peerCache knows the peers whose metadata has been read.
type peerCache map[string]telemetry.PeerRef

// read turns a peer's metadata into its name in telemetry. What the peer says counts for its looks only; who it
// is, is what it has proven.
func (c *peerCache) read(value []byte, principal string) telemetry.PeerRef {
	if len(value) > peerMax {
		value = nil
	}
	key := string(value) + principal
	if ref, ok := (*c)[key]; ok {
		return ref
	}
	if *c == nil || len(*c) >= peerCacheMax {
		*c = peerCache{}
	}
	p := decodePeer(value)
	if principal != "" {
		p.Principal = "spiffe://" + principal
	}
	ref := p.Ref()
	(*c)[key] = ref
	return ref
}

func decodePeer(value []byte) telemetry.Peer {
	raw, err := base64.StdEncoding.DecodeString(string(value))
	if err != nil {
		return telemetry.Peer{}
	}
	var p telemetry.Peer
	structFields(raw, func(key string, v []byte) {
		switch key {
		case "WORKLOAD_NAME":
			p.Workload = structString(v)
		case "NAMESPACE":
			p.Namespace = structString(v)
		case "CLUSTER_ID":
			p.Cluster = structString(v)
		case "LABELS":
			structFields(field(v, 5), func(key string, v []byte) {
				switch key {
				case "app":
					p.App = structString(v)
				case "version":
					p.Version = structString(v)
				case "service.istio.io/canonical-name":
					p.CanonicalService = structString(v)
				case "service.istio.io/canonical-revision":
					p.CanonicalRevision = structString(v)
				}
			})
		}
	})
	return p
}

// structFields calls f for each entry of a protobuf Struct.
func structFields(p []byte, f func(key string, value []byte)) {
	for len(p) > 0 {
		num, kind, n := protowire.ConsumeTag(p)
		if n < 0 {
			return
		}
		p = p[n:]
		if n = protowire.ConsumeFieldValue(num, kind, p); n < 0 {
			return
		}
		if num == 1 && kind == protowire.BytesType {
			entry, _ := protowire.ConsumeBytes(p)
			f(string(field(entry, 1)), field(entry, 2))
		}
		p = p[n:]
	}
}

// field returns the last value of a length-delimited field.
func field(p []byte, want protowire.Number) (out []byte) {
	for len(p) > 0 {
		num, kind, n := protowire.ConsumeTag(p)
		if n < 0 {
			return out
		}
		p = p[n:]
		if n = protowire.ConsumeFieldValue(num, kind, p); n < 0 {
			return out
		}
		if num == want && kind == protowire.BytesType {
			out, _ = protowire.ConsumeBytes(p)
		}
		p = p[n:]
	}
	return out
}

func structString(value []byte) string { return string(field(value, 3)) }
