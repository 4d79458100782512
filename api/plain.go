package api

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// plain reads a Go value with json tags: the types of k8s.io/api.
func (r *reader) plain(n *yaml.Node, path string, v reflect.Value) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		r.plain(n, path, v.Elem())
		return
	}
	if u, ok := reflect.TypeAssert[json.Unmarshaler](v.Addr()); ok {
		r.own(n, path, u)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		r.structure(n, path, v)
	case reflect.Map:
		r.plainMap(n, path, v)
	case reflect.Slice:
		r.plainList(n, path, v)
	case reflect.String:
		if s, ok := r.text(n, path); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if b, ok := r.truth(n, path); ok {
			v.SetBool(b)
		}
	case reflect.Int32, reflect.Int64, reflect.Int:
		low, high := int64(math.MinInt64), uint64(math.MaxInt64)
		if v.Kind() == reflect.Int32 {
			low, high = math.MinInt32, math.MaxInt32
		}
		if i, _, ok := r.whole(n, path, low, high); ok {
			v.SetInt(i)
		}
	default:
		r.fault(r.at(n), path, "is of a type that this version cannot read")
	}
}

// own reads a value of a type with a decoder of its own: times, numbers or names of ports.
func (r *reader) own(n *yaml.Node, path string, u json.Unmarshaler) {
	if n.Kind != yaml.ScalarNode {
		r.fault(r.at(n), path, "must be a single value, is %s", describe(n))
		return
	}
	text := n.Value
	if n.ShortTag() != "!!int" {
		text = strconv.Quote(text)
	}
	if err := u.UnmarshalJSON([]byte(text)); err != nil {
		r.fault(r.at(n), path, "cannot be read: %v", err)
	}
}

func (r *reader) plainMap(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		r.fault(r.at(n), path, "must be an object of names and values, is %s", describe(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, f := range r.mapping(n, path) {
		r.markField(dot(path, f.name), f)
		e := reflect.New(v.Type().Elem()).Elem()
		r.plain(f.value, dot(path, f.name), e)
		v.SetMapIndex(reflect.ValueOf(f.name).Convert(v.Type().Key()), e)
	}
}

func (r *reader) plainList(n *yaml.Node, path string, v reflect.Value) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		s, ok := r.text(n, path)
		if !ok {
			return
		}
		raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
		if err != nil {
			r.fault(r.at(n), path, "is not base64; write plain text under stringData instead")
			return
		}
		v.SetBytes(raw)
		return
	}
	items := r.list(n, path)
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		r.plain(item, path+"["+strconv.Itoa(i)+"]", v.Index(i))
	}
}

func (r *reader) structure(n *yaml.Node, path string, v reflect.Value) {
	targets := map[string]reflect.Value{}
	written := map[string]bool{}
	jsonFields(v, targets)
	for _, f := range r.mapping(n, path) {
		p := dot(path, f.name)
		target, ok := targets[f.name]
		if !ok {
			known := make([]string, 0, len(targets))
			for name := range targets {
				known = append(known, name)
			}
			r.unknown(f, path, known)
			continue
		}
		r.markField(p, f)
		r.remark(v.Type().Name(), f, p)
		if unread[v.Type().Name()+"."+f.name] {
			continue
		}
		written[f.name] = true
		before := len(r.faults)
		r.plain(f.value, p, target)
		if len(r.faults) == before {
			r.bounded(v.Type(), f, p, target)
		}
	}
	r.complete(n, path, v.Type(), targets, written)
}

// unread are fields that the API server fills in and nobody writes.
var unread = map[string]bool{"Service.status": true, "Namespace.status": true, "ObjectMeta.managedFields": true}

// jsonFields lists a struct's fields by their JSON names.
func jsonFields(v reflect.Value, into map[string]reflect.Value) {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		switch {
		case name == "" && v.Type().Field(i).Anonymous:
			jsonFields(v.Field(i), into)
		case name != "" && name != "-":
			into[name] = v.Field(i)
		}
	}
}
