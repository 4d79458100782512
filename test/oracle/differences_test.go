package oracle

import (
	"fmt"
	"path"
	"strings"
)

// difference is one that is accepted.
type difference struct {
	world, request, field string // patterns of path.Match
	reason                string
	used                  bool
}

// parseDifferences reads lines "WORLD REQUEST FIELD: reason". before is put before each line.
func parseDifferences(text, before string) ([]difference, error) {
	var out []difference
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		where, reason, ok := strings.Cut(before+line, ": ")
		words := strings.Fields(where)
		if !ok || len(words) != 3 || reason == "" {
			return nil, fmt.Errorf("%q: want WORLD REQUEST FIELD: reason", line)
		}
		out = append(out, difference{world: words[0], request: words[1], field: words[2], reason: reason})
	}
	return out, nil
}

// accept looks for the difference in a list and marks it as used.
func accept(list []difference, world, request, field string) bool {
	found := false
	match := func(pattern, name string) bool {
		ok, err := path.Match(pattern, name)
		return ok && err == nil
	}
	for i := range list {
		d := &list[i]
		if match(d.world, world) && match(d.request, request) && match(d.field, field) {
			d.used, found = true, true
		}
	}
	return found
}
