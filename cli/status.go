package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
)

// proxyStatus is one proxy: what the control plane knows of it and what it says itself.
type proxyStatus struct {
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
}

// ownStatus is what a proxy tells of itself (proxy.Status).
type ownStatus struct {
	Identity    string    `json:"identity"`
	Ready       bool      `json:"ready"`
	ReadyMS     float64   `json:"ready_ms"`
	Connected   bool      `json:"connected"`
	Updated     time.Time `json:"updated"`
	Refused     string    `json:"refused"`
	Accelerator string    `json:"accelerator"`
	RSSMiB      float64   `json:"rss_mib"`
}

// workloads asks the mesh's host what runs.
func (a *app) workloads() ([]host.Status, error) {
	c, err := host.Dial(a.dir)
	if err != nil {
		return nil, a.absent(err)
	}
	defer func() { _ = c.Close() }()
	return c.List()
}

// proxies joins what is known of every proxy. The control plane may be away.
func (a *app) proxies(ctx context.Context) ([]proxyStatus, error) {
	running, err := a.workloads()
	if err != nil {
		return nil, err
	}
	var known []proxyStatus
	err = host.Call(ctx, a.dir.API(), http.MethodGet, "/proxies", nil, &known)
	if err != nil && !errors.Is(err, host.ErrNobody) {
		return nil, err
	}
	var out []proxyStatus
	for _, w := range running {
		p := proxyStatus{Name: w.Name, Namespace: w.Namespace, Role: w.Role}
		if i := slices.IndexFunc(known, func(k proxyStatus) bool { return k.Name == w.Name && k.Namespace == w.Namespace }); i >= 0 {
			p = known[i]
			p.Role = w.Role
		}
		var own ownStatus
		if err := host.Call(ctx, w.AdminSocket, http.MethodGet, "/status", nil, &own); err == nil {
			p.Identity = cmp.Or(own.Identity, p.Identity)
			p.Ready, p.ReadyMS, p.Updated, p.RSSMiB = own.Ready, own.ReadyMS, own.Updated, own.RSSMiB
			p.Accelerator = own.Accelerator
			p.Connected = p.Connected && own.Connected
			p.Refused = cmp.Or(p.Refused, own.Refused)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y proxyStatus) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	return out, nil
}

// status is `lateen status`.
func (a *app) status() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show every proxy: identity, orders, memory", Args: checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := format(output, "text", "json"); err != nil {
				return err
			}
			list, err := a.proxies(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(a.out, list)
			}
			say(a.out, "%s", statusTable(newStyle(a.out), list, time.Now()))
			return a.folderState(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// folderState tells why the mesh's folder of configuration is not in force, if it is not, and what is odd about what is.
func (a *app) folderState(ctx context.Context) error {
	var folder struct {
		Faults   []finding `json:"faults"`
		Warnings []finding `json:"warnings"`
	}
	err := host.Call(ctx, a.dir.API(), http.MethodGet, "/status", nil, &folder)
	switch {
	case errors.Is(err, host.ErrNobody):
		say(a.out, "the control plane is away; the proxies go on with their last orders\n")
		return nil
	case err != nil:
		return err
	}
	if len(folder.Faults) > 0 {
		say(a.out, "%s is refused; the last good configuration stays in force, because of:\n", a.dir.Config())
	}
	for _, f := range folder.Faults {
		say(a.out, "  %s\n", f.text(nil))
	}
	for _, w := range folder.Warnings {
		say(a.out, "%s %s\n", newStyle(a.out).warn.Render("Warning:"), w.text(nil))
	}
	return nil
}

func statusTable(s style, list []proxyStatus, now time.Time) string {
	var rows [][]string
	var refused, reasons []string
	for _, p := range list {
		orders := s.good.Render("synced")
		switch {
		case p.Refused != "":
			orders = s.bad.Render("refused")
			refused = append(refused, fmt.Sprintf("%s.%s refused its orders, and goes on with the last good ones: %s\n",
				p.Name, p.Namespace, p.Refused))
		case !p.Connected:
			orders = s.bad.Render("no control plane")
		case !p.Ready:
			orders = s.warn.Render("starting")
		case !p.Synced:
			orders = s.warn.Render("on the way")
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
	text := s.table([]string{"NAME", "NAMESPACE", "ROLE", "IDENTITY", "ORDERS", ">AGE", "ACCELERATOR", ">MEMORY"}, rows)
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

// sections are what `lateen proxy-config` shows, by the kind that a proxy calls it.
func sections() map[string]string {
	return map[string]string{
		"all": "", "listeners": "listener", "routes": "route", "clusters": "cluster", "endpoints": "endpoints",
		"secrets": "secret", "names": "name",
	}
}

// configEntry is one resource of a proxy (proxy.ConfigEntry).
type configEntry struct {
	Kind    string    `json:"kind"`
	Name    string    `json:"name"`
	State   string    `json:"state"`
	Updated time.Time `json:"updated"`
	Text    string    `json:"text,omitempty"`
	Plan    any       `json:"plan,omitempty"`
}

// proxyConfig is `lateen proxy-config`.
func (a *app) proxyConfig() *cobra.Command {
	var output, filter, namespace string
	cmd := &cobra.Command{
		Use:     "proxy-config NAME [all|listeners|routes|clusters|endpoints|secrets|names]",
		Aliases: []string{"pc"}, Short: "Show the orders that a proxy obeys", Args: checked(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format(output, "text", "json"); err != nil {
				return err
			}
			section := "all"
			if len(args) > 1 {
				section = args[1]
			}
			kind, ok := sections()[section]
			if !ok {
				return usage(fmt.Errorf("the section %q is unknown; choose all, listeners, routes, clusters, endpoints, "+
					"secrets or names", section))
			}
			list, err := a.config(cmd.Context(), args[0], namespace, kind)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(e configEntry) bool { return !strings.Contains(e.Name, filter) })
			if output == "json" {
				return writeJSON(a.out, list)
			}
			say(a.out, "%s", configText(newStyle(a.out), list))
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&filter, "name", "", "only what has this in its name")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "the proxy's namespace")
	return cmd
}

// config asks a proxy for its orders.
func (a *app) config(ctx context.Context, name, namespace, kind string) ([]configEntry, error) {
	running, err := a.workloads()
	if err != nil {
		return nil, err
	}
	if short, in, ok := strings.Cut(name, "."); ok {
		name, namespace = short, in
	}
	var names []string
	for _, w := range running {
		if w.Name != name || w.Namespace != namespace {
			names = append(names, w.Name+"."+w.Namespace)
			continue
		}
		var list []configEntry
		query := url.Values{}
		if kind != "" {
			query.Set("kind", kind)
		}
		if err := host.Call(ctx, w.AdminSocket, http.MethodGet, "/config?"+query.Encode(), nil, &list); err != nil {
			return nil, fmt.Errorf("ask the proxy of %s for its orders: %w", name, err)
		}
		return list, nil
	}
	slices.Sort(names)
	return nil, fmt.Errorf("no proxy %q runs in namespace %q; choose %s", name, namespace, strings.Join(names, ", "))
}

func configText(s style, list []configEntry) string {
	var out strings.Builder
	for _, e := range list {
		if e.Text == "" {
			e.Text = fmt.Sprintf("%s %s: %s\n", e.Kind, e.Name, e.State)
		}
		first, rest, _ := strings.Cut(e.Text, "\n")
		out.WriteString(s.accent.Render(first) + "\n" + rest)
		if rest != "" && !strings.HasSuffix(rest, "\n") {
			out.WriteString("\n")
		}
	}
	return out.String()
}
