package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/show"
)

// level is how a check came out.
type level string

const (
	passed  level = "ok"
	skipped level = "skipped" // it could not be judged, or has no meaning here
	warned  level = "warning"
	failed  level = "failed"
)

// The bounds of what a check tells and takes.
const (
	reasonsMax   = 10
	checkTimeout = time.Minute
	// checkAgain is how often a check that failed is tried again with --wait.
	checkAgain = 2 * time.Second
)

// verdict is how a check came out, and why.
type verdict struct {
	level level
	why   []string
}

func ok() verdict { return verdict{level: passed} }

// skip says that a check could not be judged.
func skip(why string) verdict { return verdict{skipped, []string{why}} }

// trouble is a check that failed by an error.
func trouble(err error) verdict { return verdict{failed, []string{err.Error()}} }

// unless is passed if there are no reasons, else the level.
func unless(l level, why []string) verdict {
	if len(why) == 0 {
		return ok()
	}
	return verdict{l, why}
}

// check is one thing that should hold.
type check struct {
	name string // what holds if it passes
	next string // the next step if it does not
	// needed ends it all if it fails: nothing after it can be judged.
	needed bool
	judge  func(context.Context, *look) verdict
}

// group is checks of one matter.
type group struct {
	name   string
	checks []check
}

// result is a check that was made, as JSON shows it.
type result struct {
	Name   string   `json:"name"`
	Result level    `json:"result"`
	Why    []string `json:"why,omitempty"`
	Next   string   `json:"next,omitempty"`
}

// groupResult is a group that was made.
type groupResult struct {
	Name   string   `json:"name"`
	Checks []result `json:"checks"`
}

// report is all that was checked.
type report struct {
	Result level         `json:"result"` // the worst
	Groups []groupResult `json:"groups"`
}

// checkOptions are the flags of `lateen check`.
type checkOptions struct {
	pre, proxy bool
	output     string
	failOn     string
	certDays   int
	wait       time.Duration
}

func (o checkOptions) validate() error {
	switch {
	case o.pre && o.proxy:
		return errors.New("--pre is for before an installation, --proxy for after; choose one")
	case !slices.Contains([]string{"", string(failed), string(warned)}, o.failOn):
		return fmt.Errorf("--fail-on %q: choose failed or warning", o.failOn)
	case o.certDays < 0:
		return fmt.Errorf("--cert-days %d: write a number of days", o.certDays)
	}
	return show.Choice(o.output, "text", "json")
}

// groups are the checks that the options ask for.
func (o checkOptions) groups(w *world) []group {
	if o.pre {
		return []group{kubernetesChecks(), permissionChecks(w), meshChecks(), storedChecks(), nodeChecks()}
	}
	out := []group{kubernetesChecks(), controlChecks(), webhookChecks(), identityChecks(), configChecks()}
	if o.proxy {
		out = append(out, proxyChecks())
	}
	return out
}

// check is `lateen check`.
func (a *app) check() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use: "check", Short: "Check a cluster before, and the mesh after an installation", Args: checked(cobra.NoArgs),
		Long: "Check the mesh in a cluster: √ holds, ‼ is odd, × does not hold; what to do then stands below. docs/check.md\n" +
			"explains each. The exit code is 0 if nothing failed, 1 if something did, 2 if the flags were not understood.",
		Example: "  lateen check --pre\n  lateen check --proxy -n shop --fail-on warning --cert-days 30",
	}
	c := newCluster(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.pre, "pre", false, "check whether Lateen can be installed here")
	f.BoolVar(&o.proxy, "proxy", false, "check the proxies, too: of all namespaces, or with -n of one")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	f.StringVar(&o.failOn, "fail-on", string(failed), "failed, or warning: what makes the exit code 1")
	f.IntVar(&o.certDays, "cert-days", 60, "warn of certificates of the authority that end in fewer days")
	f.DurationVar(&o.wait, "wait", 0, "how long to wait for what fails, all in all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.validate(); err != nil {
			return usageError{err}
		}
		w, err := c.world()
		if err != nil {
			return err
		}
		w.namespace = *c.flags.Namespace
		w.certDays = o.certDays
		return o.run(cmd.Context(), w, a.out)
	}
	return cmd
}

// run makes the checks, tells them, and returns errTold if the exit code is to be 1.
func (o checkOptions) run(ctx context.Context, w *world, out io.Writer) error {
	r := runner{world: w, until: w.now().Add(o.wait), style: show.NewStyle(out)}
	if o.output != "json" {
		r.out = out
	}
	result := r.run(ctx, o.groups(w))
	if o.output == "json" {
		if err := show.JSON(out, result); err != nil {
			return err
		}
	}
	if result.Result == failed || result.Result == warned && o.failOn == string(warned) {
		return errTold
	}
	return nil
}

// runner makes checks one after the other.
type runner struct {
	world *world
	until time.Time // when nothing is tried again any more
	style show.Style
	out   io.Writer // nil: nobody
	look  *look
}

func (r *runner) run(ctx context.Context, groups []group) report {
	out := report{Result: passed}
	counts := map[level]int{}
	r.look = r.world.look()
	for i, g := range groups {
		done := groupResult{Name: g.name}
		if i > 0 {
			r.say("\n")
		}
		r.say("%s\n%s\n", r.style.Plain.Bold(true).Render(g.name), strings.Repeat("-", len(g.name)))
		stop := false
		for _, c := range g.checks {
			v := r.try(ctx, c)
			one := result{Name: c.name, Result: v.level, Why: v.why}
			if v.level == warned || v.level == failed {
				one.Next = c.next
			}
			done.Checks = append(done.Checks, one)
			counts[v.level]++
			r.tell(one)
			if stop = c.needed && v.level == failed || ctx.Err() != nil; stop {
				break
			}
		}
		out.Groups = append(out.Groups, done)
		if stop {
			break
		}
	}
	for _, l := range []level{warned, failed} {
		if counts[l] > 0 {
			out.Result = l
		}
	}
	r.say("\n%s\n", r.sum(counts, len(out.Groups) < len(groups)))
	return out
}

// try makes a check, again and again while it fails and there is time.
func (r *runner) try(ctx context.Context, c check) verdict {
	for {
		own, stop := context.WithTimeout(ctx, checkTimeout)
		v := c.judge(own, r.look)
		stop()
		if v.level != failed || ctx.Err() != nil || !r.world.now().Before(r.until) {
			return v
		}
		r.look = r.world.look() // all is read anew
		select {
		case <-ctx.Done():
		case <-time.After(checkAgain):
		}
	}
}

func (r *runner) say(format string, args ...any) {
	if r.out != nil {
		_, _ = fmt.Fprintf(r.out, format, args...)
	}
}

// tell shows a check.
func (r *runner) tell(c result) {
	s := r.style
	mark := map[level]string{
		passed: s.Good.Render("√"), warned: s.Warn.Render("‼"), failed: s.Bad.Render("×"), skipped: s.Dim.Render("-"),
	}[c.Result]
	r.say("%s %s\n", mark, c.Name)
	for i, line := range c.Why {
		if i == reasonsMax && len(c.Why) > reasonsMax+1 {
			r.say("    and %d more; -o json shows all\n", len(c.Why)-reasonsMax)
			break
		}
		line = strings.ReplaceAll(line, "\n", "\n      ")
		if c.Result == skipped {
			line = s.Dim.Render(line)
		}
		r.say("    %s\n", line)
	}
	if c.Next != "" {
		r.say("    %s %s\n", s.Accent.Render("→"), c.Next)
	}
}

// sum is the last line.
func (r *runner) sum(counts map[level]int, cut bool) string {
	s := r.style
	all := counts[passed] + counts[warned] + counts[failed]
	var parts []string
	if n := counts[failed]; n > 0 {
		parts = append(parts, s.Bad.Render(fmt.Sprintf("× %d failed", n)))
	}
	if n := counts[warned]; n > 0 {
		parts = append(parts, s.Warn.Render(fmt.Sprintf("‼ %d odd", n)))
	}
	text := s.Good.Render("√") + fmt.Sprintf(" all %d checks hold", all)
	if len(parts) > 0 {
		text = fmt.Sprintf("of %d checks: %s", all, strings.Join(parts, ", "))
	}
	if n := counts[skipped]; n > 0 {
		text += fmt.Sprintf("; %d could not be made", n)
	}
	if cut {
		text += "; the others need the one that failed"
	}
	return text
}
