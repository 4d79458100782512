package compile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// rank is how specific a match is, by the Gateway API's rules (HTTPRouteRule, matches). The zero value is that of rules
// whose order is the user's; they go first.
type rank struct {
	path    int // how the path is matched
	length  int // of a path's beginning
	method  bool
	headers int
	query   int
}

// The kinds of path matches, most specific first. The Gateway API leaves it open where expressions belong; behind
// beginnings of paths they would never be reached beside "/".
const (
	rankExact = iota + 1
	rankRegex
	rankPrefix
)

// ranked is a rule and how specific its match is.
type ranked struct {
	plan.Rule
	rank rank
}

func rankOf(m mesh.HTTPMatch) rank {
	out := rank{path: rankPrefix, length: len(m.URI.Value), method: m.Method.Kind != mesh.MatchNone, headers: len(m.Headers), query: len(m.Query)}
	switch m.URI.Kind {
	case mesh.MatchExact:
		out.path = rankExact
	case mesh.MatchRegex:
		out.path = rankRegex
	default:
	}
	return out
}

func (r rank) compare(o rank) int {
	method := func(r rank) int {
		if r.method {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(r.path, o.path), cmp.Compare(o.length, r.length), cmp.Compare(method(r), method(o)),
		cmp.Compare(o.headers, r.headers), cmp.Compare(o.query, r.query),
	)
}

// inOrder puts the most specific rules first. Those that are alike stay as they are: of the oldest route first.
func inOrder(list []ranked) []plan.Rule {
	slices.SortStableFunc(list, func(x, y ranked) int { return x.rank.compare(y.rank) })
	out := make([]plan.Rule, 0, len(list))
	for i := range list {
		out = append(out, list[i].Rule)
	}
	return out
}

// part is a match as a plan can say it.
type part struct {
	mesh.HTTPMatch
	// segments: it is one of the two that say that a path begins with some segments: it is these, or goes on with "/".
	segments bool
}

// segments makes the parts of a match.
func segments(m mesh.HTTPMatch) []part {
	if m.URI.Kind != mesh.MatchSegments {
		return []part{{m, false}}
	}
	path := strings.TrimRight(m.URI.Value, "/")
	below := part{m, true}
	below.URI = mesh.StringMatch{Kind: mesh.MatchPrefix, Value: path + "/"}
	if path == "" {
		return []part{below}
	}
	itself := part{m, true}
	itself.URI = mesh.StringMatch{Kind: mesh.MatchExact, Value: path}
	return []part{itself, below}
}

// replace is what takes the place of the matched segments: of a prefix, or where that is empty of the whole path.
func (p part) replace(with string) (prefix, path string) {
	with = strings.TrimRight(with, "/")
	if p.URI.Kind == mesh.MatchExact {
		return "", cmp.Or(with, "/")
	}
	return p.URI.Value, with + "/"
}
