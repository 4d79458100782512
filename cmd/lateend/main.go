// Command lateend is the control plane of a Lateen mesh. `lateend kube-inject` puts proxies into Kubernetes' workloads
// in files instead; it is what `lateen kube-inject` starts.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/lateen-mesh/lateen/cmd/limits"
	"github.com/lateen-mesh/lateen/control"
	"github.com/lateen-mesh/lateen/inject"
	"github.com/lateen-mesh/lateen/source/kube"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "kube-inject" {
		os.Exit(kubeInject(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	var cfg control.Config
	var cluster bool
	var kubeconfig, kubecontext string
	flag.StringVar(&cfg.Dir, "dir", "", "folder of configuration `YAML`")
	flag.BoolVar(&cluster, "kube", kube.InCluster(), "read the configuration from Kubernetes; what a pod with a service account does unless --dir is given")
	flag.StringVar(&kubeconfig, "kubeconfig", "", "`file` that says how to reach Kubernetes; implies --kube")
	flag.StringVar(&kubecontext, "context", "", "`name` of the kubeconfig's context; implies --kube")
	flag.StringVar(&cfg.State, "state", "", "`folder` for the authority's key and what must survive a restart")
	flag.StringVar(&cfg.Listen, "listen", "127.0.0.1:15012", "`address` for proxies")
	flag.StringVar(&cfg.API, "api", "", "Unix `socket` for the command line")
	flag.StringVar(&cfg.Admin, "admin", "", "`address` of metrics and readiness, and for callers from here of a page that shows what goes on, such as :15014; empty: none")
	flag.StringVar(&cfg.Plaintext, "plaintext", "", "`address` for xDS without TLS, such as :15010; whoever reaches it may read the configuration of any namespace; empty: none")
	flag.StringVar(&cfg.TrustDomain, "trust-domain", "cluster.local", "trust `domain` of the mesh's identities")
	flag.StringVar(&cfg.CASecret, "ca-secret", "", "`name` of the Secret in this server's namespace that holds the authority's key for all servers; made if missing")
	flag.Func("name", "DNS `name` in the control plane's certificate besides lateend; may be repeated", func(name string) error {
		cfg.Names = append(cfg.Names, name)
		return nil
	})
	flag.Func("inject", "`file` of the configuration of injection: serve Kubernetes' webhooks", func(file string) error {
		cfg.InjectAnew = func() (inject.Config, error) { return readInjection(file) }
		read, err := cfg.InjectAnew()
		cfg.Inject = &read
		return err
	})
	flag.StringVar(&cfg.Webhooks, "webhooks", control.DefaultWebhooks, "`address` for the API server's webhooks")
	flag.Parse()
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if limit, err := limits.Memory(); err != nil {
		cfg.Logger.Warn("memory is not limited", "cause", err)
	} else if limit > 0 {
		cfg.Logger.Info("memory is limited as by the cgroup", "bytes", limit)
	}
	var err error
	if kubeconfig != "" || kubecontext != "" || cluster && cfg.Dir == "" {
		cfg.Kube, err = kube.Reach(kubeconfig, kubecontext)
	}
	if err == nil {
		err = run(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(cfg control.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := control.New(cfg)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
