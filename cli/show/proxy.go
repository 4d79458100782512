package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Proxy is one proxy: what the control plane knows of it and what it says itself.
type Proxy struct {
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	Role      string    `json:"role"`
	Identity  string    `json:"identity"`
	Connected bool      `json:"connected"`
	Synced    bool      `json:"synced"`
	Ready     bool      `json:"ready"`
	Refused   string    `json:"refused,omitempty"`
	Updated   time.Time `json:"updated"`
	// Accelerator is on, off, or why it is unavailable; empty: unknown.
	Accelerator string         `json:"accelerator,omitempty"`
	RSSMiB      float64        `json:"rss_mib"`
	ReadyMS     float64        `json:"ready_ms"`
	Types       map[string]int `json:"types,omitempty"`
	// Version is that of the proxy's program; empty: unknown.
	Version string `json:"version,omitempty"`
	// Expires is when its certificate does; zero: unknown.
	Expires time.Time `json:"certificate_expires,omitzero"`
}

// Join adds what the proxy says itself.
func (p *Proxy) Join(own Own) {
	p.Identity = cmp.Or(own.Identity, p.Identity)
	p.Ready, p.ReadyMS, p.Updated, p.RSSMiB = own.Ready, own.ReadyMS, own.Updated, own.RSSMiB
	p.Accelerator, p.Version, p.Expires = own.Accelerator, own.Version, own.Expires
	p.Connected = p.Connected && own.Connected
	p.Refused = own.Refused // lateend tells the last refusal of the stream, also of what has been mended since
}

// Own is what a proxy tells of itself (proxy.Status).
type Own struct {
	Identity    string    `json:"identity"`
	Ready       bool      `json:"ready"`
	ReadyMS     float64   `json:"ready_ms"`
	Connected   bool      `json:"connected"`
	Updated     time.Time `json:"updated"`
	Refused     string    `json:"refused"`
	Accelerator string    `json:"accelerator"`
	Version     string    `json:"version"`
	Expires     time.Time `json:"certificate_expires"`
	RSSMiB      float64   `json:"rss_mib"`
}

// Sort orders proxies by namespace and name.
func Sort(list []Proxy) {
	slices.SortFunc(list, func(x, y Proxy) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
}

// Proxies is the table of `lateen status`.
func Proxies(s Style, list []Proxy, now time.Time) string {
	var rows [][]string
	var refused, reasons []string
	for _, p := range list {
		orders := s.Good.Render("synced")
		switch {
		case p.Refused != "":
			orders = s.Bad.Render("refused")
			refused = append(refused, fmt.Sprintf("%s.%s refused its orders, and goes on with the last good ones: %s\n",
				p.Name, p.Namespace, p.Refused))
		case !p.Connected:
			orders = s.Bad.Render("no control plane")
		case !p.Ready:
			orders = s.Warn.Render("starting")
		case !p.Synced:
			orders = s.Warn.Render("on the way")
		}
		since := "-"
		if !p.Updated.IsZero() {
			since = age(now.Sub(p.Updated))
		}
		accelerator, why, _ := strings.Cut(cmp.Or(p.Accelerator, "-"), ": ")
		if why != "" && !slices.Contains(reasons, why) { // One for all of a node.
			reasons = append(reasons, why)
		}
		rows = append(rows, []string{
			p.Name, p.Namespace, p.Role, strings.TrimPrefix(p.Identity, "spiffe://"), orders, since, accelerator,
			fmt.Sprintf("%.1f MiB", p.RSSMiB),
		})
	}
	text := s.Table([]string{"NAME", "NAMESPACE", "ROLE", "IDENTITY", "ORDERS", ">AGE", "ACCELERATOR", ">MEMORY"}, rows)
	for _, why := range reasons {
		refused = append(refused, "the accelerator is unavailable: "+why+"\n")
	}
	return text + strings.Join(refused, "")
}

// age is a duration as one says it.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(max(0, d).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// Sections are what `lateen proxy-config` shows.
func Sections() []string {
	return []string{"all", "listeners", "routes", "clusters", "endpoints", "secrets", "names"}
}

// Kind is what a proxy calls a section; empty: all.
func Kind(section string) (string, error) {
	switch {
	case section == "all":
		return "", nil
	case section == "endpoints":
		return section, nil
	case slices.Contains(Sections(), section):
		return strings.TrimSuffix(section, "s"), nil
	}
	return "", fmt.Errorf("the section %q is unknown; choose %s", section, strings.Join(Sections(), ", "))
}

// Entry is one resource of a proxy (proxy.ConfigEntry).
type Entry struct {
	Kind    string    `json:"kind"`
	Name    string    `json:"name"`
	State   string    `json:"state"`
	Updated time.Time `json:"updated"`
	Text    string    `json:"text,omitempty"`
	Plan    any       `json:"plan,omitempty"`
}

// Config is what `lateen proxy-config` prints.
func Config(s Style, list []Entry) string {
	var out strings.Builder
	for _, e := range list {
		if e.Text == "" {
			e.Text = fmt.Sprintf("%s %s: %s\n", e.Kind, e.Name, e.State)
		}
		first, rest, _ := strings.Cut(e.Text, "\n")
		out.WriteString(s.Accent.Render(first) + "\n" + rest)
		if rest != "" && !strings.HasSuffix(rest, "\n") {
			out.WriteString("\n")
		}
	}
	return out.String()
}
