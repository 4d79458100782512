package table

import (
	"slices"

	"github.com/lateen-mesh/lateen/plan"
)

const (
	// indexFrom is the number of rules from which on an index is faster than looking at each (BenchmarkMatch).
	indexFrom = 8
	// indexLengths bounds the lengths of prefixes that are looked up.
	indexLengths = 16
)

// index finds the rules whose path may fit, without changing their order: a rule with a literal path can only match
// where its literal, or the beginning of it, stands.
type index struct {
	exact   map[string][]uint32 // by the whole path
	lengths []int               // of the keys of prefix, ascending
	prefix  map[string][]uint32 // by the first bytes of the path
	other   []uint32            // rules that may match any path
}

// newIndex makes the index; nil if there are too few rules for one.
func newIndex(rules []*Rule) *index {
	if len(rules) < indexFrom {
		return nil
	}
	x := &index{exact: map[string][]uint32{}, prefix: map[string][]uint32{}, lengths: lengthsOf(rules)}
	for i, r := range rules {
		m, n := &r.match.path, uint32(i)
		switch {
		case m.kind == plan.MatchExact && !m.fold:
			x.exact[m.value] = append(x.exact[m.value], n)
		case m.kind == plan.MatchPrefix && !m.fold && m.value != "":
			// The longest of the lengths that are looked up and the literal has; the rule itself sees to the rest.
			at, found := slices.BinarySearch(x.lengths, len(m.value))
			if !found {
				at--
			}
			key := m.value[:x.lengths[at]]
			x.prefix[key] = append(x.prefix[key], n)
		default:
			x.other = append(x.other, n)
		}
	}
	return x
}

// lengthsOf chooses the lengths of prefixes to look up, the shortest one among them.
func lengthsOf(rules []*Rule) []int {
	var all []int
	for _, r := range rules {
		if m := &r.match.path; m.kind == plan.MatchPrefix && !m.fold && m.value != "" {
			all = append(all, len(m.value))
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) <= indexLengths {
		return all
	}
	out := make([]int, indexLengths)
	for i := range out {
		out[i] = all[i*len(all)/indexLengths]
	}
	return out
}

// match is the first rule that matches; nil if none does.
func (x *index) match(rules []*Rule, q *Request) *Rule {
	var lists [indexLengths + 2][]uint32
	n := 0
	add := func(list []uint32) {
		if len(list) > 0 {
			lists[n] = list
			n++
		}
	}
	add(x.other)
	add(x.exact[string(q.Path)])
	for _, l := range x.lengths {
		if l > len(q.Path) {
			break
		}
		add(x.prefix[string(q.Path[:l])])
	}
	for n > 0 { // the first of the rules that are left in the lists
		first := 0
		for i := 1; i < n; i++ {
			if lists[i][0] < lists[first][0] {
				first = i
			}
		}
		if r := rules[lists[first][0]]; r.match.matches(q) {
			return r
		}
		if lists[first] = lists[first][1:]; len(lists[first]) == 0 {
			n--
			lists[first] = lists[n]
		}
	}
	return nil
}
