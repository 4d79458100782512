package native

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// depthMax bounds the nesting of messages; a plan's own is below 10.
const depthMax = 16

var (
	addrType     = reflect.TypeFor[netip.Addr]()
	addrPortType = reflect.TypeFor[netip.AddrPort]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	bytesType    = reflect.TypeFor[[]byte]()
)

// appendMessage appends the fields of a struct in the order of their numbers.
func appendMessage(dst []byte, v reflect.Value) []byte {
	for i, f := range fieldsOf(v.Type()) {
		dst = appendField(dst, protowire.Number(i+1), v.Field(f))
	}
	return dst
}

// appendField appends one field, unless it has its zero value.
func appendField(dst []byte, num protowire.Number, v reflect.Value) []byte {
	t := v.Type()
	switch {
	case t == bytesType:
		if v.Len() == 0 {
			return dst
		}
		return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), v.Bytes())
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			return dst
		}
		return appendValue(dst, num, v.Elem())
	case t.Kind() == reflect.Slice:
		for i := range v.Len() {
			dst = appendValue(dst, num, v.Index(i))
		}
		return dst
	case t.Kind() == reflect.Map:
		return appendMap(dst, num, v)
	case v.IsZero():
		return dst
	}
	return appendValue(dst, num, v)
}

// appendMap appends a map as proto3 does: one message of key 1 and value 2 for each entry, here in the keys' order.
func appendMap(dst []byte, num protowire.Number, v reflect.Value) []byte {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, k := range keys {
		entry := appendField(nil, 1, k)
		entry = appendField(entry, 2, v.MapIndex(k))
		dst = protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), entry)
	}
	return dst
}

// appendValue appends a value with its tag, also if it is zero.
func appendValue(dst []byte, num protowire.Number, v reflect.Value) []byte {
	switch v.Type() {
	case addrType, addrPortType, prefixType:
		p, err := v.Interface().(interface{ MarshalBinary() ([]byte, error) }).MarshalBinary()
		if err != nil {
			p = nil // an address has no invalid state that could be encoded
		}
		return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), p)
	}
	switch v.Kind() {
	case reflect.String:
		return protowire.AppendString(protowire.AppendTag(dst, num, protowire.BytesType), v.String())
	case reflect.Struct:
		return protowire.AppendBytes(protowire.AppendTag(dst, num, protowire.BytesType), appendMessage(nil, v))
	case reflect.Bool:
		return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), protowire.EncodeBool(v.Bool()))
	case reflect.Float64:
		return protowire.AppendFixed64(protowire.AppendTag(dst, num, protowire.Fixed64Type), math.Float64bits(v.Float()))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v.Uint())
	case reflect.Int, reflect.Int64:
		return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), uint64(v.Int()))
	default:
		panic("native: no encoding for " + v.Type().String()) // the schema's test finds this first
	}
}

// readMessage reads the fields of a struct.
func readMessage(p []byte, v reflect.Value, depth int) error {
	if depth > depthMax {
		return errors.New("nested too deeply")
	}
	fields := fieldsOf(v.Type())
	for len(p) > 0 {
		num, kind, n := protowire.ConsumeTag(p)
		if n < 0 {
			return protowire.ParseError(n)
		}
		p = p[n:]
		if n = protowire.ConsumeFieldValue(num, kind, p); n < 0 {
			return protowire.ParseError(n)
		}
		value := p[:n]
		p = p[n:]
		if int(num) > len(fields) {
			continue // of a later version
		}
		f := fields[num-1]
		if err := readField(value, kind, v.Field(f), depth); err != nil {
			return fmt.Errorf("%s: %w", v.Type().Field(f).Name, err)
		}
	}
	return nil
}

var errWire = errors.New("has another wire type than this version expects")

func readField(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	t := v.Type()
	switch {
	case t == bytesType:
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		v.SetBytes(slices.Clone(b))
		return nil
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		return readValue(p, kind, v.Elem(), depth)
	case t.Kind() == reflect.Slice:
		return readElements(p, kind, v, depth)
	case t.Kind() == reflect.Map:
		return readEntry(p, kind, v, depth)
	}
	return readValue(p, kind, v, depth)
}

// readElements appends one element, or all those of a packed field.
func readElements(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	elem := v.Type().Elem()
	if kind == protowire.BytesType && (elem.Kind() == reflect.Int || elem.Kind() == reflect.Uint16) {
		packed, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		for len(packed) > 0 {
			_, n := protowire.ConsumeVarint(packed)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if err := readElements(packed[:n], protowire.VarintType, v, depth); err != nil {
				return err
			}
			packed = packed[n:]
		}
		return nil
	}
	one := reflect.New(elem).Elem()
	if err := readValue(p, kind, one, depth); err != nil {
		return err
	}
	v.Set(reflect.Append(v, one))
	return nil
}

func readEntry(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	entry, err := readBytes(p, kind)
	if err != nil {
		return err
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
	for len(entry) > 0 {
		num, kind, n := protowire.ConsumeTag(entry)
		if n < 0 {
			return protowire.ParseError(n)
		}
		entry = entry[n:]
		if n = protowire.ConsumeFieldValue(num, kind, entry); n < 0 {
			return protowire.ParseError(n)
		}
		switch num {
		case 1:
			err = readValue(entry[:n], kind, key, depth)
		case 2:
			err = readValue(entry[:n], kind, value, depth)
		}
		if err != nil {
			return err
		}
		entry = entry[n:]
	}
	v.SetMapIndex(key, value)
	return nil
}

func readBytes(p []byte, kind protowire.Type) ([]byte, error) {
	if kind != protowire.BytesType {
		return nil, errWire
	}
	b, n := protowire.ConsumeBytes(p)
	return b, protowire.ParseError(min(n, 0))
}

func readValue(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	switch v.Type() {
	case addrType, addrPortType, prefixType:
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		return v.Addr().Interface().(interface{ UnmarshalBinary([]byte) error }).UnmarshalBinary(b)
	}
	switch v.Kind() {
	case reflect.String:
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		if !utf8.Valid(b) {
			return errors.New("is not UTF-8")
		}
		v.SetString(string(b))
		return nil
	case reflect.Struct:
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		return readMessage(b, v, depth+1)
	case reflect.Float64:
		if kind != protowire.Fixed64Type {
			return errWire
		}
		bits, _ := protowire.ConsumeFixed64(p)
		v.SetFloat(math.Float64frombits(bits))
		return nil
	}
	if kind != protowire.VarintType {
		return errWire
	}
	n, _ := protowire.ConsumeVarint(p)
	return setVarint(v, n)
}

func setVarint(v reflect.Value, n uint64) error {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(n != 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(n))
	default:
		if last, ok := enums[v.Type()]; ok && n > last {
			return fmt.Errorf("has the value %d, which this version does not know; upgrade the proxy", n)
		}
		if v.OverflowUint(n) {
			return fmt.Errorf("has the value %d, which is too large", n)
		}
		v.SetUint(n)
	}
	return nil
}
