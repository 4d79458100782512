package accesslog

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

const (
	// fieldsMax bounds the keys of one JSON object, depthMax how deep objects may be nested.
	fieldsMax = 256
	depthMax  = 8
)

// jsonField is one key of a JSON object and its value: either a string that is made
// of segments, or an object.
type jsonField struct {
	// key is the key with its quotes and colon.
	key      string
	segments []segment
	object   []jsonField
}

// compileObject compiles a map of format strings and maps, in the order of its keys.
func compileObject(labels map[string]any, depth int) ([]jsonField, error) {
	if len(labels) > fieldsMax || depth > depthMax {
		return nil, fmt.Errorf("a JSON format has at most %d keys in an object and objects %d deep", fieldsMax, depthMax)
	}
	fields := make([]jsonField, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		name, err := json.Marshal(key)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", key, err)
		}
		f := jsonField{key: string(name) + ":"}
		switch value := labels[key].(type) {
		case string:
			f.segments, err = compileText(value)
			for i := range f.segments {
				s := &f.segments[i]
				s.escape = escapeJSON
				s.literal = string(escapeJSON.apply([]byte(s.literal), 0))
			}
		case map[string]any:
			f.object, err = compileObject(value, depth+1)
		default:
			err = fmt.Errorf("a format string or a map is expected, not %T", value)
		}
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", key, err)
		}
		fields = append(fields, f)
	}
	return fields, nil
}

func (f *Format) appendObject(dst []byte, fields []jsonField, e *Entry) []byte {
	dst = append(dst, '{')
	for i := range fields {
		fd := &fields[i]
		start := len(dst)
		if dst[start-1] != '{' {
			dst = append(dst, ',')
		}
		dst = append(dst, fd.key...)
		var ok bool
		switch {
		case fd.object != nil:
			dst, ok = f.appendObject(dst, fd.object, e), true
		case len(fd.segments) == 1 && fd.segments[0].literal == "":
			dst, ok = f.appendAlone(dst, &fd.segments[0], e)
		default:
			dst, ok = f.appendString(dst, fd.segments, e), true
		}
		if !ok {
			dst = dst[:start]
		}
	}
	return append(dst, '}')
}

// appendAlone appends the value of a key that is nothing but one operator. It
// reports false if there is none and the key is to be left out.
func (f *Format) appendAlone(dst []byte, s *segment, e *Entry) ([]byte, bool) {
	start := len(dst)
	quote := !s.op.numeric()
	if quote {
		dst = append(dst, '"')
	}
	before := len(dst)
	if dst = s.append(dst, e); len(dst) == before {
		return append(dst[:start], "null"...), !f.omit
	}
	if quote {
		dst = append(dst, '"')
	}
	return dst, true
}

func (f *Format) appendString(dst []byte, segments []segment, e *Entry) []byte {
	dst = append(dst, '"')
	for i := range segments {
		s := &segments[i]
		dst = append(dst, s.literal...)
		if s.op.class == classNone {
			continue
		}
		start := len(dst)
		if dst = s.append(dst, e); len(dst) == start && !f.omit {
			dst = append(dst, '-')
		}
	}
	return append(dst, '"')
}
