package api

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// message reads a protobuf message as Kubernetes' API server and Istio's own
// decoder would: field names as in JSON, enums by name, durations as Go writes
// them ("1h30m", "0.5s").
func (r *reader) message(n *yaml.Node, path string, m protoreflect.Message) {
	if r.wellKnown(n, path, m) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fault(r.at(n), path, "must be an object with fields, is %s", describe(n))
		return
	}
	desc := m.Descriptor()
	name := string(desc.Name())
	switch desc.FullName() {
	case "istio.mesh.v1alpha1.Tracing":
		name = "ProxyTracing" // Telemetry has a Tracing too
	case "istio.networking.v1beta1.ProxyConfig":
		name = "ProxyConfigSpec" // MeshConfig has a ProxyConfig too
	}
	written := map[string]bool{}
	for _, f := range r.mapping(n, path) {
		p := dot(path, f.name)
		fd := desc.Fields().ByJSONName(f.name)
		if fd == nil && f.name == "mirror_percent" {
			fd = desc.Fields().ByName("mirror_percent")
		}
		if fd == nil {
			r.unknown(f, path, jsonNames(desc))
			continue
		}
		written[f.name] = true
		r.markField(p, f)
		r.remark(name, f, p)
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if other := m.WhichOneof(od); other != nil {
				r.fault(r.at(f.key), p, "cannot stand beside %s; keep one of the two", other.JSONName())
				continue
			}
		}
		r.protoField(f, p, m, fd)
	}
	for _, want := range required[name] {
		if !written[want] {
			r.fault(r.holder(path, n), path, "%s is missing; every %s needs it", want, noun(name))
		}
	}
}

// holder is the place of what is written at path.
func (r *reader) holder(path string, n *yaml.Node) place {
	if pl, ok := r.places[r.prefix+path]; ok {
		return pl
	}
	return r.at(n)
}

func jsonNames(desc protoreflect.MessageDescriptor) []string {
	out := make([]string, 0, desc.Fields().Len())
	for i := range desc.Fields().Len() {
		out = append(out, desc.Fields().Get(i).JSONName())
	}
	return out
}

func (r *reader) protoField(f field, path string, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsMap():
		r.protoMap(f, path, m, fd)
	case fd.IsList():
		items := r.list(f.value, path)
		if limit := maxItems[string(m.Descriptor().Name())+"."+f.name]; limit > 0 && len(items) > limit {
			r.fault(r.at(f.key), path, "has %d items, more than the %d allowed; split the object", len(items), limit)
			return
		}
		list := m.Mutable(fd).List()
		for i, item := range items {
			p := path + "[" + strconv.Itoa(i) + "]"
			if fd.Message() != nil {
				v := list.NewElement()
				r.message(item, p, v.Message())
				list.Append(v)
			} else if v, ok := r.protoScalar(item, p, fd); ok {
				list.Append(v)
			}
		}
	case fd.Message() != nil:
		r.message(f.value, path, m.Mutable(fd).Message())
	default:
		if v, ok := r.protoScalar(f.value, path, fd); ok {
			m.Set(fd, v)
		}
	}
}

func (r *reader) protoMap(f field, path string, m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	if f.value.Kind != yaml.MappingNode {
		r.fault(r.at(f.value), path, "must be an object of names and values, is %s", describe(f.value))
		return
	}
	out := m.Mutable(fd).Map()
	for _, e := range r.pairs(f.value, path) {
		p := dot(path, e.name)
		if isNull(e.value) {
			r.fault(r.at(e.key), p, "has no value; write {} for an empty object, \"\" for an empty text")
			continue
		}
		r.markField(p, e)
		key := protoreflect.ValueOfString(e.name).MapKey()
		if fd.MapKey().Kind() == protoreflect.Uint32Kind {
			n, err := strconv.ParseUint(e.name, 10, 32)
			if err != nil {
				r.fault(r.at(e.key), p, "%q is not a number", e.name)
				continue
			}
			key = protoreflect.ValueOfUint32(uint32(n)).MapKey()
		}
		if fd.MapValue().Message() != nil {
			v := out.NewValue()
			r.message(e.value, p, v.Message())
			out.Set(key, v)
		} else if v, ok := r.protoScalar(e.value, p, fd.MapValue()); ok {
			out.Set(key, v)
		}
	}
}

func (r *reader) protoScalar(n *yaml.Node, path string, fd protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	var none protoreflect.Value
	switch fd.Kind() {
	case protoreflect.StringKind:
		s, ok := r.text(n, path)
		return protoreflect.ValueOfString(s), ok
	case protoreflect.BoolKind:
		b, ok := r.truth(n, path)
		return protoreflect.ValueOfBool(b), ok
	case protoreflect.Int32Kind, protoreflect.Sint32Kind:
		i, _, ok := r.whole(n, path, math.MinInt32, math.MaxInt32)
		return protoreflect.ValueOfInt32(int32(i)), ok
	case protoreflect.Int64Kind, protoreflect.Sint64Kind:
		i, _, ok := r.whole(unquoted(n), path, math.MinInt64, math.MaxInt64)
		return protoreflect.ValueOfInt64(i), ok
	case protoreflect.Uint32Kind:
		_, u, ok := r.whole(n, path, 0, math.MaxUint32)
		return protoreflect.ValueOfUint32(uint32(u)), ok
	case protoreflect.Uint64Kind:
		_, u, ok := r.whole(unquoted(n), path, 0, math.MaxUint64)
		return protoreflect.ValueOfUint64(u), ok
	case protoreflect.DoubleKind:
		d, ok := r.number(n, path)
		return protoreflect.ValueOfFloat64(d), ok
	case protoreflect.BytesKind:
		s, ok := r.text(n, path)
		if !ok {
			return none, false
		}
		raw, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			r.fault(r.at(n), path, "is not base64")
		}
		return protoreflect.ValueOfBytes(raw), err == nil
	case protoreflect.EnumKind:
		return r.enum(n, path, fd.Enum())
	}
	r.fault(r.at(n), path, "is of a type that this version cannot read")
	return none, false
}

// unquoted is a number of 64 bits as a number, where it is written as a text, which is its form in protobuf's JSON.
func unquoted(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return n
	}
	if _, err := strconv.ParseInt(n.Value, 10, 64); err != nil {
		if _, err := strconv.ParseUint(n.Value, 10, 64); err != nil {
			return n
		}
	}
	number := *n
	number.Tag, number.Style = "!!int", 0
	return &number
}

func (r *reader) enum(n *yaml.Node, path string, desc protoreflect.EnumDescriptor) (protoreflect.Value, bool) {
	var names []string
	for i := range desc.Values().Len() {
		names = append(names, string(desc.Values().Get(i).Name()))
	}
	if n.Kind == yaml.ScalarNode {
		if v := desc.Values().ByName(protoreflect.Name(n.Value)); v != nil {
			return protoreflect.ValueOfEnum(v.Number()), true
		}
	}
	hint := ""
	if i := slices.IndexFunc(names, func(s string) bool { return strings.EqualFold(s, n.Value) }); i >= 0 {
		hint = "; write " + names[i]
	}
	r.fault(r.at(n), path, "must be one of %s, is %s%s", strings.Join(names, ", "), describe(n), hint)
	return protoreflect.Value{}, false
}

func (r *reader) number(n *yaml.Node, path string) (float64, bool) {
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!int" || n.ShortTag() == "!!float") {
		d, err := strconv.ParseFloat(strings.ReplaceAll(n.Value, "_", ""), 64)
		if err == nil && !math.IsNaN(d) && !math.IsInf(d, 0) {
			return d, true
		}
	}
	r.fault(r.at(n), path, "must be a number, is %s", describe(n))
	return 0, false
}

// minDuration is the shortest duration that Istio's schemas accept.
const minDuration = time.Millisecond

// duration reads a duration as Istio does: Go's notation.
func (r *reader) duration(n *yaml.Node, path string) (time.Duration, bool) {
	const form = "write a number with a unit, such as 500ms, 1.5s, 3m or 1h30m"
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		r.fault(r.at(n), path, "must be a duration, is %s; %s", describe(n), form)
		return 0, false
	}
	d, err := time.ParseDuration(n.Value)
	switch {
	case err != nil:
		r.fault(r.at(n), path, "%q is not a duration; %s", n.Value, form)
	case d < 0:
		r.fault(r.at(n), path, "is %s; a duration cannot be negative", n.Value)
	case d < minDuration && !r.lenient && !strings.HasSuffix(path, ".ttl"):
		r.fault(r.at(n), path, "is %s; the shortest duration is 1ms, leave the field out for none", n.Value)
	default:
		return d, true
	}
	return 0, false
}

// wellKnown reads the messages that JSON writes in a form of their own.
func (r *reader) wellKnown(n *yaml.Node, path string, m protoreflect.Message) bool {
	fields := m.Descriptor().Fields()
	switch m.Descriptor().FullName() {
	case "google.protobuf.Duration":
		if d, ok := r.duration(n, path); ok {
			m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(int64(d/time.Second)))
			m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(int32(d%time.Second)))
		}
	case "google.protobuf.BoolValue", "google.protobuf.UInt32Value", "google.protobuf.DoubleValue", "google.protobuf.Int64Value",
		"google.protobuf.UInt64Value", "google.protobuf.Int32Value", "google.protobuf.StringValue":
		if v, ok := r.protoScalar(n, path, fields.ByName("value")); ok {
			m.Set(fields.ByName("value"), v)
		}
	case "google.protobuf.Struct":
		out := m.Mutable(fields.ByName("fields")).Map()
		for _, f := range r.mapping(n, path) {
			v := out.NewValue()
			r.markField(dot(path, f.name), f)
			r.free(f.value, dot(path, f.name), v.Message())
			out.Set(protoreflect.ValueOfString(f.name).MapKey(), v)
		}
	default:
		return false
	}
	return true
}

// free reads a value of a Struct.
func (r *reader) free(n *yaml.Node, path string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if strings.Count(path, ".") > maxDepth {
		r.fault(r.at(n), path, "is nested more than %d deep", maxDepth)
		return
	}
	switch {
	case n.Kind == yaml.MappingNode:
		r.message(n, path, m.Mutable(fields.ByName("struct_value")).Message())
	case n.Kind == yaml.SequenceNode:
		list := m.Mutable(fields.ByName("list_value")).Message()
		values := list.Mutable(list.Descriptor().Fields().ByName("values")).List()
		for i, item := range r.list(n, path) {
			v := values.NewElement()
			r.free(item, path+"["+strconv.Itoa(i)+"]", v.Message())
			values.Append(v)
		}
	case n.ShortTag() == "!!bool":
		if b, ok := r.truth(n, path); ok {
			m.Set(fields.ByName("bool_value"), protoreflect.ValueOfBool(b))
		}
	case n.ShortTag() == "!!int", n.ShortTag() == "!!float":
		if d, ok := r.number(n, path); ok {
			m.Set(fields.ByName("number_value"), protoreflect.ValueOfFloat64(d))
		}
	default:
		if s, ok := r.text(n, path); ok {
			m.Set(fields.ByName("string_value"), protoreflect.ValueOfString(s))
		}
	}
}
