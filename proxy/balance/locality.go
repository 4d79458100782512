package balance

import (
	"strings"

	"github.com/lateen-mesh/lateen/plan"
)

// priorities groups the endpoints that may get anything, draining ones never, by how near they are, the nearest
// first, as Istio does it: same locality, same zone, same region, the region to fail over to, all others. Without
// outlier detection, which is what tells that the near ones fail, there is one group. Shares of localities leave out
// what has no share.
func (c *Cluster) priorities(list []*Endpoint) [][]*Endpoint {
	b := &c.plan.Balance
	prefer := b.Locality && c.plan.Outlier != nil && b.From != "" && len(b.Distribute) == 0
	var groups [5][]*Endpoint
	for _, e := range list {
		p := e.Plan()
		if p.Health == plan.Draining {
			continue
		}
		if len(b.Distribute) > 0 {
			if _, share := shareOf(b.Distribute, p.Locality); share == 0 {
				continue
			}
		}
		i := 0
		if prefer {
			i = distance(b, p.Locality)
		}
		groups[i] = append(groups[i], e)
	}
	var out [][]*Endpoint
	for _, g := range groups {
		if len(g) > 0 {
			out = append(out, g)
		}
	}
	return out
}

// distance is how far a locality is from the asking one, 0 to 4.
func distance(b *plan.Balance, locality string) int {
	region, zone := splitLocality(locality)
	ownRegion, ownZone := splitLocality(b.From)
	switch {
	case locality == b.From:
		return 0
	case region == ownRegion && zone == ownZone:
		return 1
	case region == ownRegion:
		return 2
	case region != "" && b.Failover[ownRegion] == region:
		return 3
	}
	return 4
}

func splitLocality(s string) (region, zone string) {
	region, rest, _ := strings.Cut(s, "/")
	zone, _, _ = strings.Cut(rest, "/")
	return region, zone
}

// shareOf is the most specific pattern that a locality fits, "region/zone/*", "region/*" or "*", and its weight; 0
// if it fits none.
func shareOf(weights map[string]uint32, locality string) (pattern string, share uint32) {
	best := -1
	for p, w := range weights {
		prefix := strings.TrimSuffix(strings.TrimSuffix(p, "*"), "/")
		if (prefix == "" || locality == prefix || strings.HasPrefix(locality, prefix+"/")) && len(prefix) > best {
			best, pattern, share = len(prefix), p, w
		}
	}
	return pattern, share
}
