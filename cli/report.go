package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

// demoReport is what a headless demo prints.
type demoReport struct {
	Requests  uint64            `json:"requests"`
	Failed    uint64            `json:"failed"`
	MTLSShare float64           `json:"mtls_share"`
	Edges     []edge            `json:"edges"`
	Proxies   []proxyReport     `json:"proxies"`
	ReadyMS   float64           `json:"ready_ms"` // From the start to the first page.
	Statuses  map[string]uint64 `json:"statuses"`
	lastErr   error
}

// proxyReport is one proxy of a demoReport.
type proxyReport struct {
	Name    string  `json:"name"`
	RSSMiB  float64 `json:"rss_mib"`
	ReadyMS float64 `json:"ready_ms"` // From its start to its first orders.
}

// report prints what a headless demo saw, and says whether the mesh worked.
func (d *demoRun) report(ctx context.Context, before counts) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	<-time.After(settle)
	now := poll(ctx, d.sockets)
	r := demoReport{Edges: now.since(before), MTLSShare: now.mtlsShare(before), ReadyMS: float64(d.ready.Milliseconds())}
	r.Requests, r.Failed, r.Statuses, r.lastErr = d.load.totals()
	for i, socket := range d.sockets {
		p := proxyReport{Name: d.admins[i].name}
		var own show.Own
		if err := host.Call(ctx, socket, http.MethodGet, "/status", nil, &own); err == nil {
			p.RSSMiB, p.ReadyMS = rounded(own.RSSMiB, 1), rounded(own.ReadyMS, 1)
		}
		r.Proxies = append(r.Proxies, p)
	}
	if d.opts.output == "json" {
		if err := show.JSON(d.app.out, r); err != nil {
			return err
		}
	} else {
		say(d.app.out, "%s%d requests, %d failed; %.0f %% of the calls between services over mTLS\n",
			edgeTable(show.NewStyle(d.app.out), r.Edges), r.Requests, r.Failed, 100*r.MTLSShare)
	}
	plain := !d.configured && len(d.opts.files) == 0 && len(d.opts.headers) == 0 && d.opts.path == pagePath
	return r.verdict(plain)
}

// wanted are the calls that Bookinfo makes when nothing is configured.
func wanted() []edgeKey {
	return []edgeKey{
		{"ingressgateway", "productpage", "v1"},
		{"productpage", "details", "v1"},
		{"productpage", "reviews", "v1"},
		{"productpage", "reviews", "v2"},
		{"productpage", "reviews", "v3"},
		{"reviews", "ratings", "v1"},
	}
}

// verdict is nil if the mesh worked. With the plain configuration every call must have been seen, all over mTLS.
func (r *demoReport) verdict(plain bool) error {
	var faults []string
	if r.Requests == 0 {
		faults = append(faults, "no request was sent")
	}
	if r.Failed > 0 {
		faults = append(faults, fmt.Sprintf("%d of %d requests failed, the last with: %v", r.Failed, r.Requests, r.lastErr))
	}
	if r.Requests > r.Failed && !slices.ContainsFunc(slices.Collect(maps.Keys(r.Statuses)), worked) {
		faults = append(faults, fmt.Sprintf("no request got through: the statuses were %v", slices.Sorted(maps.Keys(r.Statuses))))
	}
	if plain {
		for _, k := range wanted() {
			if !slices.ContainsFunc(r.Edges, func(e edge) bool { return edgeKey{e.From, e.To, e.Version} == k }) {
				faults = append(faults, fmt.Sprintf("no call from %s to %s %s was seen", k.from, k.to, k.version))
			}
		}
		if r.MTLSShare < 1 {
			faults = append(faults, fmt.Sprintf("only %.1f %% of the calls were over mTLS", 100*r.MTLSShare))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New("the mesh did not work: " + strings.Join(faults, "; "))
}

// worked says whether a status is 2xx or 3xx.
func worked(status string) bool {
	return strings.HasPrefix(status, "2") || strings.HasPrefix(status, "3")
}

// rounded is a figure with some digits after the point.
func rounded(v float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(v*scale) / scale
}
