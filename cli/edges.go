package cli

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/telemetry"
)

// proxyEdge is an arrow of the picture as one proxy counts it, since its start (proxy.Edge).
type proxyEdge struct {
	Reporter    string         `json:"reporter"`
	Source      telemetry.Peer `json:"source"`
	Destination telemetry.Peer `json:"destination"`
	Service     string         `json:"service"`
	Requests    uint64         `json:"requests"`
	Failures    uint64         `json:"failures"`
	MutualTLS   uint64         `json:"mtls"`
	Plain       uint64         `json:"plain"`
	P50         float64        `json:"p50_ms"`
	P99         float64        `json:"p99_ms"`
}

// edgeKey names an arrow of the picture.
type edgeKey struct{ from, to, version string }

// count is what was counted on an arrow. Calls are counted where they start, and whether they are mTLS where they end.
type count struct {
	requests, failures, mutual, plain uint64
	p50, p99                          float64 // Of the proxy's life, in ms.
}

// counts are all arrows at one moment.
type counts struct {
	at    time.Time
	edges map[edgeKey]count
}

// edge is an arrow over some time.
type edge struct {
	From     string  `json:"from"`
	To       string  `json:"to"`
	Version  string  `json:"version"`
	Requests uint64  `json:"requests"`
	Share    float64 `json:"share"`   // Of all requests from From to To.
	Success  float64 `json:"success"` // Share of answers that are not 5xx.
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	MTLS     bool    `json:"mtls"`
	rate     float64 // Requests per second.
	arrived  bool    // Some of them came to a sidecar.
}

// shortName is the name of a peer in the picture: its app, else whatever is known of it.
func shortName(p telemetry.Peer, service string) string {
	service, _, _ = strings.Cut(service, ".")
	return cmp.Or(p.App, p.CanonicalService, p.Workload, service, "unknown")
}

// collect adds what the proxies count.
func collect(at time.Time, lists [][]proxyEdge) counts {
	out := counts{at: at, edges: map[edgeKey]count{}}
	for _, list := range lists {
		for _, e := range list {
			k := edgeKey{
				shortName(e.Source, ""), shortName(e.Destination, e.Service),
				cmp.Or(e.Destination.Version, e.Destination.CanonicalRevision),
			}
			c := out.edges[k]
			if e.Reporter == "destination" {
				c.mutual += e.MutualTLS
				c.plain += e.Plain
			} else {
				// Of several callers (versions of From) the slowest is shown.
				c.requests += e.Requests
				c.failures += e.Failures
				c.p50, c.p99 = max(c.p50, e.P50), max(c.p99, e.P99)
			}
			out.edges[k] = c
		}
	}
	return out
}

// since returns the arrows that were used after an earlier moment.
func (c counts) since(before counts) []edge {
	var out []edge
	total := map[[2]string]uint64{}
	seconds := c.at.Sub(before.at).Seconds()
	for k, now := range c.edges {
		old := before.edges[k]
		requests := less(now.requests, old.requests)
		if requests == 0 {
			continue
		}
		total[[2]string{k.from, k.to}] += requests
		e := edge{
			From: k.from, To: k.to, Version: k.version, Requests: requests, P50: rounded(now.p50, 2), P99: rounded(now.p99, 2),
			MTLS:    now.mutual > old.mutual && now.plain == old.plain,
			arrived: now.mutual > old.mutual || now.plain > old.plain,
			Success: 1 - float64(less(now.failures, old.failures))/float64(requests),
		}
		if seconds > 0 {
			e.rate = float64(requests) / seconds
		}
		out = append(out, e)
	}
	for i, e := range out {
		out[i].Share = rounded(float64(e.Requests)/float64(total[[2]string{e.From, e.To}]), 4)
	}
	slices.SortFunc(out, func(x, y edge) int {
		return cmp.Or(cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To), cmp.Compare(x.Version, y.Version))
	})
	return out
}

// mtlsShare is the share of requests that came over mTLS, among those that a sidecar received since before.
func (c counts) mtlsShare(before counts) float64 {
	var mutual, all uint64
	for k, now := range c.edges {
		old := before.edges[k]
		m := less(now.mutual, old.mutual)
		mutual += m
		all += m + less(now.plain, old.plain)
	}
	if all == 0 {
		return 0
	}
	return float64(mutual) / float64(all)
}

// less is a-b of counters, which start again at 0 with their proxy.
func less(a, b uint64) uint64 {
	if a < b {
		return a
	}
	return a - b
}

// poll asks all proxies for their edges at once. One that does not answer is left out.
func poll(ctx context.Context, admins []string) counts {
	lists := make([][]proxyEdge, len(admins))
	var group sync.WaitGroup
	for i, socket := range admins {
		group.Go(func() { _ = host.Call(ctx, socket, http.MethodGet, "/edges", nil, &lists[i]) })
	}
	group.Wait()
	return collect(time.Now(), lists)
}
