package show

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Versions are those of the programs of a mesh.
type Versions struct {
	Client string `json:"client"` // with that of Go and the platform
	// Control and Proxies have one for each that could be asked.
	Control []string `json:"control,omitempty"`
	Proxies []string `json:"proxies,omitempty"`
}

// Text is what `lateen version` prints.
func (v Versions) Text() string {
	var text strings.Builder
	text.WriteString("lateen " + v.Client + "\n")
	for _, part := range []struct {
		name string
		list []string
	}{{"lateend", v.Control}, {"lateen-proxy", v.Proxies}} {
		counts := map[string]int{}
		for _, version := range part.list {
			counts[version]++
		}
		var words []string
		for _, version := range slices.Sorted(maps.Keys(counts)) {
			words = append(words, fmt.Sprintf("%s (%d)", version, counts[version]))
		}
		if len(words) > 0 {
			text.WriteString(part.name + " " + strings.Join(words, ", ") + "\n")
		}
	}
	return text.String()
}
