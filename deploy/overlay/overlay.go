// Package overlay lays values of a chart over others: trees of maps, as YAML has them.
//
// In come two layers; out goes one. The package must not know what they mean. All functions may be called concurrently.
package overlay

// Values lays values over others: maps are joined, all else is replaced. The result shares no map with either.
func Values(below, above map[string]any) map[string]any {
	out := map[string]any{}
	for _, layer := range []map[string]any{below, above} {
		for k, v := range layer {
			if upper, is := v.(map[string]any); is {
				lower, _ := out[k].(map[string]any)
				v = Values(lower, upper)
			}
			out[k] = v
		}
	}
	return out
}
