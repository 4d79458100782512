package kube

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/show"
)

// versionTimeout bounds the asking of a whole mesh for its versions.
const versionTimeout = 30 * time.Second

// version is `lateen version` of a cluster.
func (a *app) version() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "version", Short: "Print the versions of this program and of the mesh", Args: checked(cobra.NoArgs)}
	c := newCluster(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := show.Choice(output, "text", "json"); err != nil {
			return usageError{err}
		}
		v := show.Versions{Client: ownVersion() + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
		w, err := c.world()
		if err == nil {
			w.namespace = *c.flags.Namespace
			err = w.versions(cmd.Context(), &v)
		}
		if output == "json" {
			err = errors.Join(err, show.JSON(a.out, v))
		} else {
			_, failed := fmt.Fprint(a.out, v.Text())
			err = errors.Join(err, failed)
		}
		return err
	}
	return cmd
}

// versions asks lateend and the proxies.
func (w *world) versions(ctx context.Context, v *show.Versions) error {
	ctx, stop := context.WithTimeout(ctx, versionTimeout)
	defer stop()
	l := w.look()
	states, err := l.states(ctx)
	if err != nil {
		return err
	}
	for _, s := range states {
		v.Control = append(v.Control, s.status.Version)
	}
	list, err := l.proxies(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.asked == nil {
			v.Proxies = append(v.Proxies, p.Version)
		}
	}
	return nil
}
