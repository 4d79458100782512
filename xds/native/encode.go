package native

import (
	"encoding"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

var (
	addrType     = reflect.TypeFor[netip.Addr]()
	addrPortType = reflect.TypeFor[netip.AddrPort]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	bytesType    = reflect.TypeFor[[]byte]()
)

// appendMessage appends the fields of a struct in the order of their numbers.
func appendMessage(dst []byte, v reflect.Value) []byte {
	for i, f := range schema[v.Type()] {
		dst = appendField(dst, protowire.Number(i+1), v.Field(f))
	}
	return dst
}

// appendField appends one field, unless it has its zero value.
func appendField(dst []byte, num protowire.Number, v reflect.Value) []byte {
	switch kind := v.Kind(); {
	case v.Type() == bytesType:
		if v.Len() == 0 {
			return dst
		}
		return appendBytes(dst, num, v.Bytes())
	case kind == reflect.Pointer:
		if v.IsNil() {
			return dst
		}
		return appendValue(dst, num, v.Elem())
	case kind == reflect.Slice:
		return appendList(dst, num, v)
	case kind == reflect.Map:
		return appendMap(dst, num, v)
	case v.IsZero():
		return dst
	}
	return appendValue(dst, num, v)
}

// appendList appends each element; numbers are packed, as is proto3's default.
func appendList(dst []byte, num protowire.Number, v reflect.Value) []byte {
	if v.Len() == 0 {
		return dst
	}
	if !isNumber(v.Type().Elem()) {
		for i := range v.Len() {
			dst = appendValue(dst, num, v.Index(i))
		}
		return dst
	}
	var packed []byte
	for i := range v.Len() {
		packed = protowire.AppendVarint(packed, varint(v.Index(i)))
	}
	return appendBytes(dst, num, packed)
}

// appendMap appends a map as proto3 does: one message of key 1 and value 2 for each entry, here in the keys' order.
func appendMap(dst []byte, num protowire.Number, v reflect.Value) []byte {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, k := range keys {
		entry := appendValue(nil, 1, k)
		dst = appendBytes(dst, num, appendValue(entry, 2, v.MapIndex(k)))
	}
	return dst
}

// appendValue appends a value with its tag, also if it is zero.
func appendValue(dst []byte, num protowire.Number, v reflect.Value) []byte {
	t := v.Type()
	switch {
	case t == addrType || t == addrPortType || t == prefixType:
		p, _ := v.Interface().(encoding.BinaryMarshaler).MarshalBinary() // of these three it never errs
		return appendBytes(dst, num, p)
	case t.Kind() == reflect.String:
		return protowire.AppendString(protowire.AppendTag(dst, num, protowire.BytesType), v.String())
	case t.Kind() == reflect.Struct:
		return appendBytes(dst, num, appendMessage(nil, v))
	case t.Kind() == reflect.Float64:
		return protowire.AppendFixed64(protowire.AppendTag(dst, num, protowire.Fixed64Type), math.Float64bits(v.Float()))
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), varint(v))
}

func appendBytes(dst []byte, num protowire.Number, p []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), p)
}

// varint is the number that stands for a boolean or an integer; a negative one is its two's complement.
func varint(v reflect.Value) uint64 {
	switch {
	case v.Kind() == reflect.Bool:
		return protowire.EncodeBool(v.Bool())
	case v.CanInt():
		return uint64(v.Int())
	}
	return v.Uint()
}

// isNumber reports whether a list of t is packed.
func isNumber(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Int, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return true
	default:
		return false
	}
}
