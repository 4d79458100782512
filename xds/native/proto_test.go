package native

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/lateen-mesh/lateen/plan"
)

func compiled(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	c := protocompile.Compiler{Resolver: &protocompile.SourceResolver{}}
	files, err := c.Compile(t.Context(), "native.proto")
	if err != nil {
		t.Fatal(err)
	}
	return files[0]
}

// TestProtoDescribesSchema holds the documented messages against the table that is obeyed.
func TestProtoDescribesSchema(t *testing.T) {
	file := compiled(t)
	for ty, fields := range schema {
		m := file.Messages().ByName(protoreflect.Name(ty.Name()))
		if m == nil {
			t.Errorf("native.proto has no message %s", ty.Name())
			continue
		}
		if m.Fields().Len() != len(fields) {
			t.Errorf("message %s has %d fields, the schema %d", m.Name(), m.Fields().Len(), len(fields))
		}
		for i, index := range fields {
			f := m.Fields().ByNumber(protoreflect.FieldNumber(i + 1))
			if f == nil {
				t.Errorf("message %s has no field %d", m.Name(), i+1)
				continue
			}
			goField := ty.Field(index)
			if strings.ReplaceAll(string(f.Name()), "_", "") != strings.ToLower(goField.Name) {
				t.Errorf("%s is called %s in the plan", f.FullName(), goField.Name)
			}
			checkType(t, f, goField.Type)
		}
	}
	if n := file.Messages().Len(); n != len(schema) {
		t.Errorf("native.proto has %d messages, the schema %d", n, len(schema))
	}
	for ty, last := range enums {
		e := file.Enums().ByName(protoreflect.Name(ty.Name()))
		if e == nil || e.Values().Len() != int(last)+1 || e.Values().ByNumber(protoreflect.EnumNumber(last)) == nil {
			t.Errorf("native.proto's enum %s does not have the values 0 to %d", ty.Name(), last)
		}
	}
}

func checkType(t *testing.T, f protoreflect.FieldDescriptor, ty reflect.Type) {
	t.Helper()
	switch {
	case ty.Kind() == reflect.Map:
		if !f.IsMap() || f.MapKey().Kind() != protoreflect.StringKind || f.MapValue().Kind() != kindOf(ty.Elem()) {
			t.Errorf("%s: is not what %s is", f.FullName(), ty)
		}
		return
	case ty.Kind() == reflect.Slice && ty != bytesType:
		if !f.IsList() {
			t.Errorf("%s: is not repeated", f.FullName())
		}
		ty = ty.Elem()
	case ty.Kind() == reflect.Pointer:
		if !f.HasPresence() {
			t.Errorf("%s: has no presence", f.FullName())
		}
		ty = ty.Elem()
	case f.Kind() != protoreflect.MessageKind && f.HasPresence():
		t.Errorf("%s: is optional, but the plan has no absence", f.FullName())
	}
	if f.Kind() != kindOf(ty) {
		t.Errorf("%s: is %s, but %s wants %s", f.FullName(), f.Kind(), ty, kindOf(ty))
	}
	if f.Kind() == protoreflect.MessageKind && string(f.Message().Name()) != ty.Name() {
		t.Errorf("%s: is a %s, not a %s", f.FullName(), f.Message().Name(), ty)
	}
	if f.Kind() == protoreflect.EnumKind && string(f.Enum().Name()) != ty.Name() {
		t.Errorf("%s: is a %s, not a %s", f.FullName(), f.Enum().Name(), ty)
	}
}

func kindOf(ty reflect.Type) protoreflect.Kind {
	if isAddress(ty) || ty == bytesType {
		return protoreflect.BytesKind
	}
	if _, ok := enums[ty]; ok {
		return protoreflect.EnumKind
	}
	return map[reflect.Kind]protoreflect.Kind{
		reflect.String: protoreflect.StringKind, reflect.Bool: protoreflect.BoolKind, reflect.Float64: protoreflect.DoubleKind,
		reflect.Int: protoreflect.Int64Kind, reflect.Int64: protoreflect.Int64Kind, reflect.Struct: protoreflect.MessageKind,
		reflect.Uint16: protoreflect.Uint32Kind, reflect.Uint32: protoreflect.Uint32Kind,
	}[ty.Kind()]
}

// TestProtobufAgrees lets a protobuf library read what we write, and reads what it writes.
func TestProtobufAgrees(t *testing.T) {
	file := compiled(t)
	check := func(want plan.Resource) {
		t.Helper()
		kind := want.ResourceKind()
		_, name, _ := strings.Cut(TypeURL(kind), typePrefix)
		m := dynamicpb.NewMessage(file.Messages().ByName(protoreflect.Name(name)))
		body := Encode(want)
		if err := proto.Unmarshal(body, m); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if path := unknownIn(m); path != "" {
			t.Errorf("%s: native.proto does not have all of %s", kind, path)
		}
		theirs, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if string(theirs) != string(body) {
			t.Errorf("%s: the library writes %d other bytes than our %d", kind, len(theirs), len(body))
		}
		got, err := Decode(kind, theirs)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", kind, d)
		}
	}
	for _, r := range rich() {
		check(r)
	}
	for _, kind := range plan.Kinds() {
		for seed := range uint64(20) {
			check(filler{rand.New(rand.NewPCG(seed, 7)), seed%2 == 0}.resource(kind))
		}
	}
}

// unknownIn names a message with fields that its descriptor does not know.
func unknownIn(m protoreflect.Message) string {
	if len(m.GetUnknown()) > 0 {
		return string(m.Descriptor().FullName())
	}
	found := ""
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for i := range v.List().Len() {
				if found == "" {
					found = unknownIn(v.List().Get(i).Message())
				}
			}
		default:
			found = unknownIn(v.Message())
		}
		return found == ""
	})
	return found
}
