package kube

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The client's own bounds of calls to the API server: a command asks for many things at once, and ends.
const (
	callsPerSecond = 100
	callsBurst     = 200
)

// nowhere is what kubectl asks when nothing says which cluster is meant.
const nowhere = "http://localhost:8080"

// cluster is the one that a command speaks with: what kubectl's flags, variables and files say.
type cluster struct {
	flags *genericclioptions.ConfigFlags
}

// newCluster gives a command kubectl's flags.
func newCluster(cmd *cobra.Command) *cluster {
	c := &cluster{flags: genericclioptions.NewConfigFlags(true)}
	c.flags.CacheDir = nil // we keep nothing
	c.flags.AddFlags(cmd.Flags())
	c.complete(cmd)
	return c
}

// config is how the API server is reached.
func (c *cluster) config() (*rest.Config, error) {
	cfg, err := c.flags.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("find out which cluster is meant: %w; name one with --kubeconfig or --context", err)
	}
	if cfg.Host == nowhere && *c.flags.APIServer == "" {
		return nil, errors.New("no kubeconfig is there; name one with --kubeconfig, or in the variable KUBECONFIG")
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = callsPerSecond, callsBurst, "lateen"
	return cfg, nil
}

// clients are those of the cluster: for Kubernetes' own kinds, and for any kind.
func (c *cluster) clients() (kubernetes.Interface, dynamic.Interface, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	typed, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("reach the API server: %w", err)
	}
	everything, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("reach the API server: %w", err)
	}
	return typed, everything, nil
}

// namespace is the one that is meant: that of the flag, or of the context.
func (c *cluster) namespace() (string, error) {
	name, _, err := c.flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return "", fmt.Errorf("find out which namespace is meant: %w", err)
	}
	return name, nil
}
