package kube

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/deploy"
)

func (a *app) operator() *cobra.Command {
	group := &cobra.Command{
		Use: "operator", Short: "Have a program of the cluster keep what is installed in it",
		Long: "Have a program of the cluster keep what is installed in it: the operator makes what objects of the kind\n" +
			"Installation want, and repairs what others change of it.",
		Args: checked(cobra.NoArgs), RunE: help,
	}
	group.AddCommand(a.operatorInit(), a.operatorDump(), a.operatorRemove())
	return group
}

// operatorFlags give a command the values of the operator's chart.
func operatorFlags(cmd *cobra.Command, w *wanted) {
	cmd.Flags().StringArrayVarP(&w.files, "filename", "f", nil, "file of values of deploy/operator; - for standard input; may be repeated, the last goes first")
	cmd.Flags().StringArrayVar(&w.config.Set, "set", nil, "one value, such as tag=v2; goes before files; may be repeated")
}

// operatorObjects are the operator's, as the flags want them.
func (a *app) operatorObjects(w *wanted) ([]deploy.Object, error) {
	for _, name := range w.files {
		text, err := readFile(name, a.in)
		if err != nil {
			return nil, err
		}
		values, err := deploy.ReadValues(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		w.config.Values = append(w.config.Values, values)
	}
	return deploy.RenderOperator(w.config)
}

func (a *app) operatorInit() *cobra.Command {
	var w wanted
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "init", Short: "Put the operator in a cluster, or bring it up to date",
		Long: "Put the operator in a cluster, or bring it up to date. It goes on with what is installed, and with what is\n" +
			"wanted from then on: by `lateen install`, or by `kubectl apply` of an Installation.",
		Example: "  lateen operator init --set hub=example.org/lateen --set tag=v1",
		Args:    checked(cobra.NoArgs),
	}
	c := newCluster(cmd)
	operatorFlags(cmd, &w)
	cmd.Flags().DurationVar(&wait, "wait", waitDefault, "how long it may take until it is ready; 0: do not wait")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		objects, err := a.operatorObjects(&w)
		if err != nil {
			return err
		}
		p, applier, err := a.applier(c)
		if err != nil {
			return err
		}
		err = applier.InitOperator(cmd.Context(), objects, wait)
		p.end()
		if err != nil {
			return fmt.Errorf("put the operator in the cluster: %w", err)
		}
		_, err = fmt.Fprintln(a.out, "The operator is there. `kubectl get installations` says what it keeps.")
		return err
	}
	return cmd
}

func (a *app) operatorDump() *cobra.Command {
	var w wanted
	cmd := &cobra.Command{
		Use: "dump", Short: "Write the operator's objects",
		Example: "  lateen operator dump --set hub=example.org/lateen | kubectl apply --server-side -f -",
		Args:    checked(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			objects, err := a.operatorObjects(&w)
			if err != nil {
				return err
			}
			_, err = a.out.Write(deploy.Manifest([]deploy.Object{deploy.Ground()}, objects))
			return err
		},
	}
	operatorFlags(cmd, &w)
	return cmd
}

func (a *app) operatorRemove() *cobra.Command {
	var yes bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "remove", Short: "Take the operator out of a cluster; what it has installed stays",
		Long: "Take the operator out of a cluster. What it has installed stays, and is nobody's care any more but that of\n" +
			"`lateen upgrade` and `lateen uninstall`.",
		Args: checked(cobra.NoArgs),
	}
	c := newCluster(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().DurationVar(&wait, "wait", waitDefault, "how long it may take")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, applier, err := a.applier(c)
		if err != nil {
			return err
		}
		installed, err := applier.Installed(cmd.Context())
		if err != nil {
			return err
		}
		for _, i := range installed {
			if i.DeletionTimestamp != nil {
				return errors.New("the Installation " + i.Name + " is being deleted, which the operator has to bring to an end; see `kubectl get installations -o wide`")
			}
		}
		if !yes {
			if err := a.confirm(); err != nil {
				return err
			}
		}
		err = applier.RemoveOperator(cmd.Context(), wait)
		p.end()
		if err != nil {
			return fmt.Errorf("take the operator away: %w", err)
		}
		_, err = fmt.Fprintf(a.out, "The operator is gone. Installations that stay: %d.\n", len(installed))
		return err
	}
	return cmd
}
