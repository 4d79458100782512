package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/plan"
)

// addresses compares what cmp cannot look into.
var addresses = cmp.Comparer(func(a, b any) bool { return a == b })

func diff(want, got plan.Resource) string {
	return cmp.Diff(want, got,
		cmp.FilterPath(func(p cmp.Path) bool { return isAddress(p.Last().Type()) }, addresses))
}

func isAddress(t reflect.Type) bool { return t == addrType || t == addrPortType || t == prefixType }

// filler fills every exported field with a value that is not zero, so that one that is forgotten shows.
type filler struct {
	r    *rand.Rand
	full bool // else fields are left out at random
}

func (f filler) resource(kind plan.Kind) plan.Resource {
	for _, m := range messages {
		if m.kind == kind {
			r := m.make()
			f.fill(reflect.ValueOf(r).Elem())
			return r
		}
	}
	panic("no such kind")
}

func (f filler) fill(v reflect.Value) {
	if !f.full && f.r.IntN(4) == 0 {
		return // the zero value
	}
	t := v.Type()
	switch t {
	case addrType:
		v.Set(reflect.ValueOf(f.addr()))
		return
	case addrPortType:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(f.addr(), uint16(f.r.IntN(65536)))))
		return
	case prefixType:
		a := f.addr()
		v.Set(reflect.ValueOf(netip.PrefixFrom(a, f.r.IntN(a.BitLen()+1))))
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			f.fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		n := 1 + f.r.IntN(8)/7 // mostly one: lists nest
		v.Set(reflect.MakeSlice(t, n, n))
		for i := range n {
			filler{f.r, true}.shallow(f, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(t))
		for range 1 + f.r.IntN(3) {
			key, value := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
			filler{f.r, true}.fill(key)
			f.fill(value)
			v.SetMapIndex(key, value)
		}
	default:
		f.scalar(v)
	}
}

// shallow fills an element of a list: an address must be there, because none at all is refused.
func (f filler) shallow(inner filler, v reflect.Value) {
	if isAddress(v.Type()) {
		f.fill(v)
		return
	}
	inner.fill(v)
}

func (f filler) addr() netip.Addr {
	if f.r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(f.r.Uint32()), byte(f.r.Uint32()), 1})
	}
	return netip.AddrFrom16([16]byte{0xfd, 15: byte(f.r.Uint32())})
}

func (f filler) scalar(v reflect.Value) {
	if last, ok := enums[v.Type()]; ok {
		v.SetUint(1 + f.r.Uint64N(last))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("é%d", f.r.IntN(1000)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1 + f.r.Float64()*99)
	case reflect.Int, reflect.Int64:
		v.SetInt([]int64{-1, 1, math.MaxInt64, math.MinInt64, 300}[f.r.IntN(5)])
	case reflect.Uint8:
		v.SetUint(1 + f.r.Uint64N(255))
	case reflect.Uint16:
		v.SetUint(1 + f.r.Uint64N(math.MaxUint16))
	case reflect.Uint32:
		v.SetUint(1 + f.r.Uint64N(math.MaxUint32))
	default:
		panic("the plan has a type that the test does not know: " + v.Type().String())
	}
}

// TestEveryFieldSurvives fails when a field of the plan has not been given a number.
func TestEveryFieldSurvives(t *testing.T) {
	for _, kind := range plan.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			for seed := range uint64(10) {
				for _, full := range []bool{true, false} {
					want := filler{rand.New(rand.NewPCG(seed, 1)), full}.resource(kind)
					body := Encode(want)
					got, err := Decode(kind, body)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					if d := diff(want, got); d != "" {
						t.Fatalf("seed %d (-want +got):\n%s", seed, d)
					}
					if string(Encode(got)) != string(body) {
						t.Fatalf("seed %d: encoded twice, two results", seed)
					}
				}
			}
		})
	}
}

// TestSchemaIsWhole checks that every type that a resource reaches is in the schema, with every field once, and
// that every enumeration is bounded.
func TestSchemaIsWhole(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var visit func(ty reflect.Type)
	visit = func(ty reflect.Type) {
		if seen[ty] || isAddress(ty) {
			return
		}
		seen[ty] = true
		switch ty.Kind() {
		case reflect.Pointer, reflect.Slice:
			visit(ty.Elem())
		case reflect.Map:
			if ty.Key().Kind() != reflect.String {
				t.Errorf("%s: keys of maps are strings", ty)
			}
			visit(ty.Elem())
		case reflect.Struct:
			numbered := map[int]int{}
			for _, f := range schema[ty] {
				numbered[f]++
			}
			for i := range ty.NumField() {
				if numbered[i] != 1 {
					t.Errorf("%s.%s has %d numbers, want one: add it to the end of schema.go and to native.proto", ty, ty.Field(i).Name, numbered[i])
				}
				visit(ty.Field(i).Type)
			}
		case reflect.Uint8:
			if ty.PkgPath() != "" && enums[ty] == 0 {
				t.Errorf("%s is an enumeration without its last value in schema.go", ty)
			}
		default: // a number or a text
		}
	}
	for _, m := range messages {
		visit(reflect.TypeOf(m.make()).Elem())
	}
	for ty := range schema {
		if !seen[ty] {
			t.Errorf("%s is in the schema and in no resource", ty)
		}
	}
}
