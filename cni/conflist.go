package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// entry is the plugin's in a list of plugins.
const entry = `{"type": "` + Name + `", "capabilities": {"` + annotationsCapability + `": true}}`

// listed is an entry of a list of plugins, and where in its text it stands.
type listed struct {
	start, end int
	kind       string // the field type
}

// chain puts the plugin behind the others of a list (CNI specification, section 1). All that is not ours stays as it
// is, byte for byte. An entry of ours that says something else is replaced where it stands.
func chain(list []byte) ([]byte, error) {
	all, err := plugins(list)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, ours)
	switch {
	case at == 0 || len(all) == 0:
		return nil, errors.New("no plugin makes the network, behind which ours could stand")
	case at < 0:
		last := all[len(all)-1]
		before := list[:last.start]
		space := before[len(bytes.TrimRight(before, " \t\r\n")):]
		return slices.Concat(list[:last.end], []byte(","), space, []byte(entry), list[last.end:]), nil
	case sameValue(list[all[at].start:all[at].end], []byte(entry)):
		return list, nil
	}
	return slices.Concat(list[:all[at].start], []byte(entry), list[all[at].end:]), nil
}

// unchain takes the plugin out of a list. All else stays as it is.
func unchain(list []byte) ([]byte, error) {
	all, err := plugins(list)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, ours)
	switch {
	case at < 0:
		return list, nil
	case at > 0:
		return slices.Concat(list[:all[at-1].end], list[all[at].end:]), nil
	case len(all) > 1:
		return slices.Concat(list[:all[0].start], list[all[1].start:]), nil
	}
	return slices.Concat(list[:all[0].start], list[all[0].end:]), nil
}

func ours(l listed) bool { return l.kind == Name }

// sameValue reports whether two texts are the same JSON.
func sameValue(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// plugins finds the entries of a list.
func plugins(list []byte) (all []listed, err error) {
	d := json.NewDecoder(bytes.NewReader(list))
	if err := expect(d, json.Delim('{')); err != nil {
		return nil, err
	}
	found := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("read the list of plugins: %w", err)
		}
		// Those who read the list do not mind case.
		if name, ok := key.(string); ok && strings.EqualFold(name, "plugins") {
			if found {
				return nil, errors.New("read the list of plugins: plugins is there twice")
			}
			found = true
			if all, err = entries(d); err != nil {
				return nil, err
			}
			continue
		}
		var other json.RawMessage
		if err := d.Decode(&other); err != nil {
			return nil, fmt.Errorf("read the list of plugins: %w", err)
		}
	}
	if err := expect(d, json.Delim('}')); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read the list of plugins: something stands behind it")
	}
	return all, nil
}

// entries reads the array of plugins.
func entries(d *json.Decoder) (all []listed, err error) {
	if err := expect(d, json.Delim('[')); err != nil {
		return nil, err
	}
	for d.More() {
		var text json.RawMessage
		if err := d.Decode(&text); err != nil {
			return nil, fmt.Errorf("read the list of plugins: %w", err)
		}
		var plugin struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(text, &plugin); err != nil || text[0] != '{' {
			return nil, fmt.Errorf("read the list of plugins: plugin %d is not an object with a type", len(all)+1)
		}
		end := int(d.InputOffset())
		all = append(all, listed{end - len(text), end, plugin.Type})
	}
	return all, expect(d, json.Delim(']'))
}

// expect reads the next token.
func expect(d *json.Decoder, want json.Delim) error {
	got, err := d.Token()
	if err != nil {
		return fmt.Errorf("read the list of plugins: %w", err)
	}
	if got != want {
		return fmt.Errorf("read the list of plugins: %v in the place of %s", got, want)
	}
	return nil
}
