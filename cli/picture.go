package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/cli/show"
)

// frame is all that the live picture shows at one moment.
type frame struct {
	edges    []edge
	requests uint64
	failed   uint64
	lastErr  error
	running  time.Duration
	page     string
	admins   []address
	refused  string // What could not be applied; empty: nothing.
	trouble  string // What is wrong with the control plane; empty: nothing.
	mesh     string
	examples string // Folder of the examples, as one would type it.
	lateen   string // The program, as one would type it.
}

// address is a page to open.
type address struct{ name, url string }

// text draws the frame.
func (f frame) text(s show.Style) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s  Bookinfo in the mesh, for %s\n\n", s.Accent.Bold(true).Render("lateen"), f.running.Round(time.Second))
	out.WriteString(edgeTable(s, f.edges))
	failed := s.Good.Render("0 failed")
	if f.failed > 0 {
		failed = s.Bad.Render(fmt.Sprintf("%d failed", f.failed)) + s.Dim.Render(fmt.Sprintf(" (the last: %v)", f.lastErr))
	}
	fmt.Fprintf(&out, "\n%d requests from outside, %s\n", f.requests, failed)
	for _, text := range []string{f.refused, f.trouble} {
		if text != "" {
			out.WriteString(s.Warn.Render(text) + "\n")
		}
	}
	fmt.Fprintf(&out, "\n%s  %s\n", s.Head.Render("product page"), s.Accent.Render(f.page))
	for i, a := range f.admins {
		head := "            "
		if i == 0 {
			head = "admin pages "
		}
		fmt.Fprintf(&out, "%s  %s  %s\n", s.Head.Render(head), a.url, s.Dim.Render(a.name))
	}
	out.WriteString("\n" + s.Head.Render("try, in another terminal") + "\n")
	program := f.lateen
	if f.mesh != host.DefaultMesh {
		program += " --mesh " + f.mesh
	}
	for _, command := range []string{
		"apply -f " + f.examples + "/networking/virtual-service-reviews-90-10.yaml",
		"status",
		"proxy-config productpage-v1 clusters",
	} {
		out.WriteString("  " + program + " " + command + "\n")
	}
	out.WriteString(s.Dim.Render("Ctrl-C ends it all") + "\n")
	return out.String()
}

// edgeTable draws the arrows.
func edgeTable(s show.Style, edges []edge) string {
	var rows [][]string
	last := ""
	for _, e := range edges {
		from := e.From
		if from == last {
			from = ""
		}
		last = e.From
		lock := ""
		switch {
		case e.MTLS:
			lock = s.Good.Render("🔒 mTLS")
		case e.arrived:
			lock = s.Warn.Render("plain")
		}
		success := s.Good
		if e.Success < 1 {
			success = s.Bad
		}
		rows = append(rows, []string{
			from, "→ " + e.To + " " + s.Dim.Render(e.Version), fmt.Sprintf("%.1f", e.rate),
			fmt.Sprintf("%.0f %%", 100*e.Share), success.Render(percent(e.Success)), fmt.Sprintf("%.1f", e.P50),
			fmt.Sprintf("%.1f", e.P99), lock,
		})
	}
	if len(rows) == 0 {
		return s.Dim.Render("no calls yet") + "\n"
	}
	return s.Table([]string{"FROM", "TO", ">REQ/S", ">SHARE", ">SUCCESS", ">P50 ms", ">P99 ms", ""}, rows)
}

// percent never rounds a failure away.
func percent(share float64) string {
	if p := 100 * share; p < 100 && p > 99.9 {
		return "99.9 %"
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", 100*share), ".0") + " %"
}

// screen shows frames on a terminal, each over the one before.
type screen struct {
	lines int
	size  func() (columns, rows int)
}

// draw returns what replaces the last frame by text.
func (c *screen) draw(text string) string {
	_, rows := c.size()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if rows > 2 && len(lines) > rows-1 {
		lines = lines[:rows-1]
	}
	var out strings.Builder
	if c.lines > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\r", c.lines)
	}
	out.WriteString("\x1b[?7l") // A line that is too long is cut, not wrapped.
	for _, l := range lines {
		out.WriteString(l + "\x1b[K\n")
	}
	out.WriteString("\x1b[J\x1b[?7h")
	c.lines = len(lines)
	return out.String()
}
