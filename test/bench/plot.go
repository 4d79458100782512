package main

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The measures of the plot, in pixels.
const (
	plotWidth   = 960
	plotTop     = 104
	plotRow     = 26
	plotLabel   = 176 // width of the rows' names
	plotPanel   = 352 // width of a panel
	plotGap     = 40  // between the panels
	plotRadius  = 4.5
	plotFoot    = 34
	ratioLeast  = 0.5
	ratioMost   = 32.0
	spreadLeast = 0.02 // a smaller one is hidden by the dot
)

const plotStyle = `text{font:13px system-ui,sans-serif;fill:#24292f}.t{font-size:20px;font-weight:600}.s,.x{fill:#6e7781;font-size:11px}` +
	`.g{stroke:#d8dee4}.one{stroke:#6e7781;stroke-width:1.5}.b{fill:#f6f8fa}` +
	`.envoy{fill:#8250df;stroke:#8250df}.haproxy{fill:#0969da;stroke:#0969da}.nginx{fill:#1a7f37;stroke:#1a7f37}` +
	`@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s,.x{fill:#8d96a0}.g{stroke:#30363d}.b{fill:#161b22}` +
	`.envoy{fill:#a371f7;stroke:#a371f7}.haproxy{fill:#58a6ff;stroke:#58a6ff}.nginx{fill:#3fb950;stroke:#3fb950}}`

// panel is one half of the plot: for each row the ratios of the first metric that it has.
type panel struct {
	title   string
	metrics []string
}

// plot draws the ratios as an SVG picture: a row for each load, a dot for each peer, a line for the spread.
func (t *table) plot(peers []string) string {
	type load struct{ scenario, variant string }
	var loads []load
	for _, r := range t.Rows {
		if l := (load{r.Scenario, r.Variant}); slices.Contains(peers, r.Peer) && !slices.Contains(loads, l) {
			loads = append(loads, l)
		}
	}
	panels := []panel{
		{"CPU per operation", []string{metricCPU, metricBytes}}, {"p99 latency (h1-rate: added)", []string{added + metricP99, metricP99}},
	}
	height := plotTop + plotRow*len(loads) + plotFoot
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img"><style>%s</style>`, plotWidth, height, plotStyle)
	fmt.Fprintf(&b, `<text class="t" x="16" y="32">How many times as much each peer needs</text><text class="s" x="16" y="52">%s</text>`,
		html.EscapeString(fmt.Sprintf("%s, commit %s, %s; right of the line at 1 Lateen is ahead", t.Date.Format(time.DateOnly), t.Commit, t.Machine.CPU)))
	for i, p := range peers {
		x := plotWidth - 96*(len(peers)-i)
		fmt.Fprintf(&b, `<circle class="%s" cx="%d" cy="28" r="%g"/><text x="%d" y="32">%s</text>`, p, x, plotRadius, x+10, p)
	}
	for i, l := range loads {
		y := plotTop + plotRow*i
		if i%2 == 0 {
			fmt.Fprintf(&b, `<rect class="b" x="8" y="%d" width="%d" height="%d" rx="4"/>`, y, plotWidth-16, plotRow)
		}
		fmt.Fprintf(&b, `<text x="16" y="%d">%s <tspan class="x">%s</tspan></text>`, y+17, html.EscapeString(l.scenario), html.EscapeString(l.variant))
	}
	for i, p := range panels {
		left := plotLabel + i*(plotPanel+plotGap)
		p.grid(&b, left, plotRow*len(loads))
		for j, l := range loads {
			for _, peer := range peers {
				t.dot(&b, p, l.scenario, l.variant, peer, left, plotTop+plotRow*j+plotRow/2)
			}
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// grid draws the scale of a panel.
func (p panel) grid(b *strings.Builder, left, height int) {
	fmt.Fprintf(b, `<text class="x" x="%d" y="%d">%s</text>`, left, plotTop-24, p.title)
	for v := ratioLeast; v <= ratioMost; v *= 2 {
		class := "g"
		if v == 1 {
			class = "one"
		}
		x := float64(left) + place(v)
		fmt.Fprintf(b, `<line class="%s" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, class, x, x, plotTop-4, plotTop+height)
		fmt.Fprintf(b, `<text class="x" x="%.1f" y="%d" text-anchor="middle">%s×</text>`, x, plotTop-8, strconv.FormatFloat(v, 'g', -1, 64))
	}
}

// place is where a ratio stands in a panel, on a logarithmic scale.
func place(ratio float64) float64 {
	ratio = min(max(ratio, ratioLeast), ratioMost)
	return plotPanel * math.Log(ratio/ratioLeast) / math.Log(ratioMost/ratioLeast)
}

// dot draws the ratio to one peer.
func (t *table) dot(b *strings.Builder, p panel, scenario, variant, peer string, left, y int) {
	var r *row
	for _, m := range p.metrics {
		r = cmp.Or(r, t.find(scenario, variant, peer, m))
	}
	if r == nil {
		return
	}
	x := float64(left) + place(r.Ratio)
	if r.Spread > spreadLeast {
		fmt.Fprintf(b, `<line class="%s" x1="%.1f" x2="%.1f" y1="%d" y2="%d" opacity=".45"/>`, peer, float64(left)+place(r.Ratio*(1-r.Spread)),
			float64(left)+place(r.Ratio*(1+r.Spread)), y, y)
	}
	fmt.Fprintf(b, `<circle class="%s" cx="%.1f" cy="%d" r="%g"><title>%s %s: %.2f × %s</title></circle>`, peer, x, y, plotRadius,
		html.EscapeString(scenario), html.EscapeString(variant), r.Ratio, peer)
}
