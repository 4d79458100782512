package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/deploy/apply"
)

// contextLines is how much of an object is shown around a difference.
const contextLines = 3

func (a *app) diff() *cobra.Command {
	var w wanted
	cmd := &cobra.Command{
		Use: "diff [FILE FILE]", Short: "Show what an installation would change, or how two manifests differ",
		Long: "Show what `lateen install` with the same flags would change in the cluster, or how two files that\n" +
			"`lateen manifest generate` wrote differ. The exit code is 0 if nothing differs, 1 if something does, and 2 if it\n" +
			"cannot be found out.",
		Example: "  lateen manifest diff --set tag=v2\n  lateen manifest diff before.yaml after.yaml",
		Args: checked(func(_ *cobra.Command, args []string) error {
			if len(args) != 0 && len(args) != 2 {
				return errors.New("give two files, or none to compare with the cluster")
			}
			return nil
		}),
	}
	c := newCluster(cmd)
	w.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var differences []apply.Difference
		var err error
		if len(args) == 2 {
			differences, err = a.files(args[0], args[1])
		} else {
			differences, err = w.live(cmd, a, c)
		}
		if err == nil {
			err = a.write(differences)
		}
		if err == nil || errors.Is(err, errTold) {
			return err
		}
		return usageError{err}
	}
	return cmd
}

// live compares what the flags want with the cluster.
func (w *wanted) live(cmd *cobra.Command, a *app, c *cluster) ([]apply.Difference, error) {
	wish, err := w.installation(a, cmd.Flags().Changed("profile"))
	if err != nil {
		return nil, err
	}
	_, applier, err := a.applier(c)
	if err != nil {
		return nil, err
	}
	return applier.Compare(cmd.Context(), wish)
}

// files compares two manifests, object by object.
func (a *app) files(before, after string) ([]apply.Difference, error) {
	var texts [2]map[string]string
	var order []deploy.Object
	for i, name := range []string{before, after} {
		text, err := readFile(name, a.in)
		if err != nil {
			return nil, err
		}
		objects, err := deploy.Parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		texts[i] = map[string]string{}
		for _, o := range objects {
			if texts[i][o.String()], err = apply.Normal(o); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if i == 0 || texts[0][o.String()] == "" {
				order = append(order, o)
			}
		}
	}
	var out []apply.Difference
	for _, o := range order {
		d := apply.Difference{Object: o, Change: apply.Changed, Before: texts[0][o.String()], After: texts[1][o.String()]}
		if d.Before == d.After {
			d.Change = apply.Unchanged
		}
		out = append(out, d)
	}
	return out, nil
}

// write shows differences as diff -u does, each object as a file.
func (a *app) write(differences []apply.Difference) error {
	differs := false
	for _, d := range differences {
		if d.Change == apply.Unchanged {
			continue
		}
		differs = true
		text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
			A: slices.Collect(strings.Lines(d.Before)), B: slices.Collect(strings.Lines(d.After)),
			FromFile: side(d.Object, d.Before), ToFile: side(d.Object, d.After), Context: contextLines,
		})
		if err != nil {
			return fmt.Errorf("compare %s: %w", d.Object, err)
		}
		if _, err := fmt.Fprint(a.out, text); err != nil {
			return err
		}
	}
	if differs {
		return errTold
	}
	return nil
}

// side names one side of a comparison.
func side(o deploy.Object, text string) string {
	if text == "" {
		return "/dev/null"
	}
	return o.String()
}
