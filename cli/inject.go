package cli

import (
	"errors"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/lateen-mesh/lateen/cli/host"
)

// inject is `lateen kube-inject`. lateend does it: this program, which is every workload's first process, would hold all
// of Kubernetes' types in memory for it (some 6 MiB).
func (a *app) inject() *cobra.Command {
	var files []string
	var config, proxyImage, initImage string
	var explain bool
	cmd := &cobra.Command{
		Use: "kube-inject -f FILE|-", Short: "Put proxies into Kubernetes' workloads in files",
		Long: "Write the objects of files with a proxy in each Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and\n" +
			"CronJob that gets one. Other objects are written as they are, and what has a proxy stays as it is.",
		Example: "  lateen kube-inject -f app.yaml --config injection.yaml | kubectl apply -f -",
		Args:    checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usage(errors.New("nothing to inject is named; use -f"))
			}
			_, lateend, _, err := host.Programs()
			if err != nil {
				return err
			}
			args := []string{"kube-inject"}
			for _, f := range files {
				args = append(args, "-f", f)
			}
			for name, value := range map[string]string{"--config": config, "--proxy-image": proxyImage, "--init-image": initImage} {
				if value != "" {
					args = append(args, name, value)
				}
			}
			if explain {
				args = append(args, "--explain")
			}
			child := exec.CommandContext(cmd.Context(), lateend, args...)
			child.Stdin, child.Stdout, child.Stderr = a.in, a.out, a.err
			err = child.Run()
			if failed, ok := errors.AsType[*exec.ExitError](err); ok {
				return &exitError{failed.ExitCode(), nil} // it has said why
			}
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, or - for standard input; may be repeated")
	cmd.Flags().StringVar(&config, "config", "", "file with the configuration of injection")
	cmd.Flags().StringVar(&proxyImage, "proxy-image", "", "image of lateen-proxy")
	cmd.Flags().StringVar(&initImage, "init-image", "", "image of lateen-cni")
	cmd.Flags().BoolVar(&explain, "explain", false, "say on standard error what was injected, and why or why not")
	return cmd
}
