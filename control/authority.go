package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/source/kube"
)

// authorityFiles are those of an authority's own root.
var authorityFiles = []string{"root-cert.pem", "root-key.pem"}

// share returns the files that all servers of a mesh have in common, given those that this one would bring.
type share func(files map[string][]byte) (map[string][]byte, error)

// openAuthority opens the certificate authority, with the key in the state folder or, where one is named, in a Secret.
func (c *Control) openAuthority() (*ca.Authority, error) {
	cfg := ca.Config{TrustDomain: c.cfg.TrustDomain, Dir: filepath.Join(c.cfg.State, "ca")}
	if c.cfg.CASecret == "" {
		return ca.New(cfg)
	}
	if c.cfg.Kube == nil {
		return nil, errors.New("the authority's key can be in a Secret only where the configuration is in Kubernetes (--kube)")
	}
	return sharedAuthority(cfg, func(files map[string][]byte) (map[string][]byte, error) {
		return kube.Share(context.Background(), c.cfg.Kube, c.cfg.CASecret, files)
	})
}

// sharedAuthority opens an authority with the key that all servers share, given the folder of the one that this server
// would bring. Where the shared one is kept is made anew at each start.
func sharedAuthority(cfg ca.Config, common share) (*ca.Authority, error) {
	if _, err := ca.New(cfg); err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, name := range authorityFiles {
		text, err := os.ReadFile(filepath.Join(cfg.Dir, name))
		if err != nil {
			return nil, fmt.Errorf("read the authority's key: %w", err)
		}
		files[name] = text
	}
	files, err := common(files)
	if err != nil {
		return nil, err
	}
	cfg.Dir += "-shared"
	if err := errors.Join(os.RemoveAll(cfg.Dir), os.Mkdir(cfg.Dir, 0o700)); err != nil {
		return nil, fmt.Errorf("make a folder for the shared key: %w", err)
	}
	for _, name := range authorityFiles {
		if len(files[name]) == 0 {
			return nil, fmt.Errorf("the shared key of the authority has no %s; delete its Secret if no proxy trusts it, and it is made anew", name)
		}
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), files[name], 0o600); err != nil {
			return nil, fmt.Errorf("keep the shared key: %w", err)
		}
	}
	return ca.New(cfg)
}
