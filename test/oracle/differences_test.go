package oracle

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// difference is one that is accepted: in the requests and fields that the patterns name, if both sides say what is
// listed and nothing else.
type difference struct {
	world, request, field string // patterns of path.Match
	envoy, lateen         string // texts, where * is any text, and absent is that there is none
	decision              string // a key of docs/differences.md
	used                  bool
}

var errNoDecision = errors.New("no decision after a colon")

var errTooWide = errors.New("accepts anything that either side may say: write down what one of them says")

// parseDifferences reads lines "WORLD REQUEST FIELD ENVOY > LATEEN: DECISION". before is put before each line. One that
// begins with "? " depends on the moment: it may be seen or not.
func parseDifferences(text, before string) ([]difference, error) {
	var out []difference
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		line, sometimes := strings.CutPrefix(line, "? ")
		colon := strings.LastIndex(line, ": ")
		if colon < 0 {
			return nil, fmt.Errorf("%q: %w", line, errNoDecision)
		}
		where, decision := before+line[:colon], line[colon+2:]
		where, lateen, _ := strings.Cut(where, " > ")
		words := strings.SplitN(where, " ", 4)
		if len(words) != 4 || lateen == "" || decision == "" {
			return nil, fmt.Errorf("%q: want WORLD REQUEST FIELD ENVOY > LATEEN: DECISION", line)
		}
		d := difference{world: words[0], request: words[1], field: words[2], envoy: words[3], lateen: lateen, decision: decision, used: sometimes}
		if d.envoy == "*" && d.lateen == "*" {
			return nil, fmt.Errorf("%q: %w", line, errTooWide)
		}
		out = append(out, d)
	}
	return out, nil
}

// accept looks for the difference in a list and marks it as used.
func accept(list []difference, world, request string, m mismatch) bool {
	found := false
	match := func(pattern, name string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	}
	for i := range list {
		d := &list[i]
		if match(d.world, world) && match(d.request, request) && match(d.field, m.field) && says(d.envoy, m.envoy) && says(d.lateen, m.lateen) {
			d.used, found = true, true
		}
	}
	return found
}

// says reports whether a value, as a mismatch shows it, is what a list says.
func says(listed, value string) bool {
	if value == absent || listed == absent {
		return value == listed
	}
	if value != `""` {
		value = strings.TrimSuffix(strings.TrimPrefix(value, `"`), `"`)
	}
	first, rest, any := strings.Cut(listed, "*")
	if !any {
		return value == listed
	}
	value, ok := strings.CutPrefix(value, first)
	for ok && any {
		first, rest, any = strings.Cut(rest, "*")
		if !any {
			return strings.HasSuffix(value, first)
		}
		_, value, ok = strings.Cut(value, first)
	}
	return false
}

// decision is how one begins in docs/differences.md.
var decision = regexp.MustCompile("(?m)^- `([a-z0-9-]+)`: ")

// readDecisions lists the keys of the decided differences; the value is whether one is used.
func readDecisions(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, m := range decision.FindAllStringSubmatch(string(text), -1) {
		if _, twice := out[m[1]]; twice {
			t.Errorf("docs/differences.md: %s twice", m[1])
		}
		out[m[1]] = false
	}
	return out
}

// TestDecisions: each accepted difference is decided in docs/differences.md, and nothing is decided there in vain. It
// needs no proxy.
func TestDecisions(t *testing.T) {
	decisions := readDecisions(t)
	lists := readEverywhere(t)
	for _, w := range readWorlds(t, "*", strings.NewReplacer()) {
		lists = append(lists, w.differs...)
	}
	for _, d := range lists {
		if _, known := decisions[d.decision]; !known {
			t.Errorf("%s %s %s: docs/differences.md decides nothing about %q", d.world, d.request, d.field, d.decision)
		}
		decisions[d.decision] = true
	}
	for key, used := range decisions {
		if !used {
			t.Errorf("docs/differences.md: %s is decided, but no difference is accepted for it", key)
		}
	}
}

// readEverywhere reads the differences that hold in several worlds.
func readEverywhere(t *testing.T) []difference {
	t.Helper()
	text, err := os.ReadFile("differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseDifferences(string(text), "")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestSays: what a list says of a value, and what it does not.
func TestSays(t *testing.T) {
	for _, tt := range []struct {
		listed, value string
		want          bool
	}{
		{"200", `"200"`, true},
		{"200", `"2000"`, false},
		{"absent", "absent", true},
		{"absent", `"absent"`, false},
		{"*", "absent", false},
		{"*", `""`, true},
		{`""`, `""`, true},
		{`""`, `"x"`, false},
		{"a*c", `"abc"`, true},
		{"a*c", `"abcd"`, false},
		{"a*b*c", `"aXbYc"`, true},
		{"a*b*c", `"aXYc"`, false},
		{"*c", `"abc"`, true},
		{"ab*", `"abc"`, true},
		{"ab*b", `"ab"`, false},
	} {
		if got := says(tt.listed, tt.value); got != tt.want {
			t.Errorf("%s, %s: %t", tt.listed, tt.value, got)
		}
	}
	for _, text := range []string{"* * status * > *: any", "w r f a > b", "w r f a: b", "w r a > b: c"} {
		if list, err := parseDifferences(text, ""); err == nil {
			t.Errorf("%q: %+v", text, list)
		}
	}
}
