package native

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The bounds of what is decoded.
const (
	// bodyMax bounds an encoded resource, in bytes.
	bodyMax = 64 << 20
	// memoryMax bounds what the elements of a resource's lists and maps take when decoded, in bytes: a few bytes on
	// the wire can stand for a large struct.
	memoryMax = 256 << 20
	// depthMax bounds the nesting of messages; a plan's own is below 10.
	depthMax = 16
)

var (
	errWire   = errors.New("has another wire type than this version expects")
	errDepth  = errors.New("is nested too deeply")
	errMemory = fmt.Errorf("makes the resource larger than %d MiB", memoryMax>>20)
	errText   = errors.New("is not UTF-8")
	errPrefix = errors.New("is no address range")
	errAddr   = errors.New("is no address")
)

// decoder reads one resource.
type decoder struct {
	memory uintptr // of elements so far
}

// message reads the fields of a struct. Its error names the field by its path.
func (d *decoder) message(p []byte, v reflect.Value, depth int) error {
	if depth > depthMax {
		return errDepth
	}
	fields := schema[v.Type()]
	return eachField(p, func(num protowire.Number, kind protowire.Type, value []byte) error {
		if int(num) > len(fields) {
			return nil // of a later version
		}
		f := fields[num-1]
		if err := d.field(value, kind, v.Field(f), depth); err != nil {
			return within(v.Type().Field(f).Name, v.Field(f), err)
		}
		return nil
	})
}

// eachField calls f with the number, the wire type and the bytes of each field of a message.
func eachField(p []byte, f func(num protowire.Number, kind protowire.Type, value []byte) error) error {
	for len(p) > 0 {
		num, kind, n := protowire.ConsumeTag(p)
		if n < 0 {
			return protowire.ParseError(n)
		}
		p = p[n:]
		if n = protowire.ConsumeFieldValue(num, kind, p); n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(num, kind, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// fieldError is a cause with the path of the field that it concerns, such as Chains[0].TLS.Mode.
type fieldError struct {
	path  string
	cause error
}

func (e *fieldError) Error() string { return e.path + ": " + e.cause.Error() }
func (e *fieldError) Unwrap() error { return e.cause }

// within puts a field's name before the path of an error; of a list it is the last element that is at fault.
func within(name string, v reflect.Value, err error) error {
	if v.Kind() == reflect.Slice && v.Type() != bytesType {
		name = fmt.Sprintf("%s[%d]", name, max(v.Len()-1, 0))
	}
	if inner, ok := errors.AsType[*fieldError](err); ok {
		return &fieldError{name + "." + inner.path, inner.cause}
	}
	return &fieldError{name, err}
}

func (d *decoder) field(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return d.value(p, kind, v.Elem(), depth)
	case reflect.Slice:
		if v.Type() != bytesType {
			return d.elements(p, kind, v, depth)
		}
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		v.SetBytes(slices.Clone(b))
		return nil
	case reflect.Map:
		return d.entry(p, kind, v, depth)
	default:
		return d.value(p, kind, v, depth)
	}
}

// elements appends one element, or all those of a packed field.
func (d *decoder) elements(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	if kind != protowire.BytesType || !isNumber(v.Type().Elem()) {
		return d.element(p, kind, v, depth)
	}
	packed, err := readBytes(p, kind)
	if err != nil {
		return err
	}
	for len(packed) > 0 {
		_, n := protowire.ConsumeVarint(packed)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := d.element(packed[:n], protowire.VarintType, v, depth); err != nil {
			return err
		}
		packed = packed[n:]
	}
	return nil
}

func (d *decoder) element(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	if err := d.charge(v.Type().Elem().Size()); err != nil {
		return err
	}
	n := v.Len()
	v.Grow(1)
	v.SetLen(n + 1)
	return d.value(p, kind, v.Index(n), depth)
}

// charge counts memory.
func (d *decoder) charge(bytes uintptr) error {
	if d.memory += bytes; d.memory > memoryMax {
		return errMemory
	}
	return nil
}

// entry reads one entry of a map; of two with one key the later one counts.
func (d *decoder) entry(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	body, err := readBytes(p, kind)
	if err != nil {
		return err
	}
	t := v.Type()
	if err := d.charge(t.Key().Size() + t.Elem().Size()); err != nil {
		return err
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	key, value := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
	err = eachField(body, func(num protowire.Number, kind protowire.Type, p []byte) error {
		switch num {
		case 1:
			return d.value(p, kind, key, depth+1)
		case 2:
			return d.value(p, kind, value, depth+1)
		default:
			return nil
		}
	})
	if err == nil {
		v.SetMapIndex(key, value)
	}
	return err
}

func readBytes(p []byte, kind protowire.Type) ([]byte, error) {
	if kind != protowire.BytesType {
		return nil, errWire
	}
	b, n := protowire.ConsumeBytes(p)
	return b, protowire.ParseError(min(n, 0))
}

// value reads one value of any type but lists and maps.
func (d *decoder) value(p []byte, kind protowire.Type, v reflect.Value, depth int) error {
	t := v.Type()
	switch t.Kind() {
	case reflect.String:
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		if !utf8.Valid(b) {
			return errText
		}
		v.SetString(string(b))
		return nil
	case reflect.Struct:
		b, err := readBytes(p, kind)
		if err != nil {
			return err
		}
		if t == addrType || t == addrPortType || t == prefixType {
			return readAddress(b, v)
		}
		return d.message(b, v, depth+1)
	case reflect.Float64:
		if kind != protowire.Fixed64Type {
			return errWire
		}
		bits, n := protowire.ConsumeFixed64(p)
		v.SetFloat(math.Float64frombits(bits))
		return protowire.ParseError(min(n, 0))
	default:
		return readVarint(p, kind, v)
	}
}

func readVarint(p []byte, kind protowire.Type, v reflect.Value) error {
	if kind != protowire.VarintType {
		return errWire
	}
	n, length := protowire.ConsumeVarint(p)
	if length < 0 {
		return protowire.ParseError(length)
	}
	return setVarint(v, n)
}

// readAddress reads an address or a range, and refuses one that stands for nothing: in a list of exceptions it
// would except nothing.
func readAddress(p []byte, v reflect.Value) error {
	if err := v.Addr().Interface().(encoding.BinaryUnmarshaler).UnmarshalBinary(p); err != nil {
		return err
	}
	switch a := v.Interface().(type) {
	case netip.Prefix:
		if !a.IsValid() {
			return errPrefix
		}
	case netip.Addr:
		if !a.IsValid() {
			return errAddr
		}
	}
	return nil
}

// setVarint sets a boolean, an integer or an enumeration. Of the latter an unknown value is an error, because to
// ignore it could be to allow, or to send in clear, what was not meant to be.
func setVarint(v reflect.Value, n uint64) error {
	switch {
	case v.Kind() == reflect.Bool:
		v.SetBool(protowire.DecodeBool(n))
	case v.CanInt():
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
