package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/source/kube"
)

// openAuthority opens the certificate authority, with the key in the state folder or, where one is named, in a Secret
// that all servers share. A key of a Secret is in memory only.
func (c *Control) openAuthority() (*ca.Authority, error) {
	cfg := ca.Config{TrustDomain: c.cfg.TrustDomain}
	if c.cfg.CASecret == "" {
		cfg.Dir = filepath.Join(c.cfg.State, "ca")
		return ca.New(cfg)
	}
	if c.cfg.Kube == nil {
		return nil, errors.New("the authority's key can be in a Secret only where the configuration is in Kubernetes (--kube)")
	}
	keys, err := kube.ReadKeys(context.Background(), c.cfg.Kube, c.cfg.CASecret, func() (map[string][]byte, error) {
		return ca.NewKeys(c.cfg.TrustDomain, time.Now())
	})
	if err != nil {
		return nil, err
	}
	cfg.Keys = keys.Files
	if !keys.Forced {
		cfg.Trusted = keys.Trusted
	}
	a, err := ca.New(cfg)
	if err != nil {
		return nil, refusedKeys(keys, err)
	}
	c.log.Info("the authority's keys are those of a Secret", "secret", keys.Secret, "expires", a.Expires())
	return a, nil
}

// refusedKeys says why the keys of a Secret are not used, and what to do.
func refusedKeys(keys kube.Keys, err error) error {
	if errors.Is(err, ca.ErrUnsafe) {
		return fmt.Errorf("Secret %s: %w; to have it all the same, annotate the Secret %s=true, and take that away afterwards", //nolint:staticcheck // the kind's name
			keys.Secret, err, kube.AnnotationForce)
	}
	return fmt.Errorf("Secret %s: %w", keys.Secret, err) //nolint:staticcheck // the kind's name
}

// useKeys takes over what is in the Secret of the authority's keys now.
func (c *Control) useKeys(keys kube.Keys) error {
	changed, err := c.authority.Use(keys.Files, keys.Forced)
	if err != nil {
		return refusedKeys(keys, err)
	}
	if changed {
		c.log.Info("the authority's keys have changed", "secret", keys.Secret, "roots", len(c.authority.Bundle().Roots(c.cfg.TrustDomain)),
			"expires", c.authority.Expires())
		c.cluster.RootsChanged()
	}
	return nil
}

// rotateKeys takes the step that is due in the replacement of our own root.
func (c *Control) rotateKeys(files map[string][]byte, overlap time.Duration, since time.Time) (map[string][]byte, time.Duration, time.Time, error) {
	keys, r, err := ca.Keys(files).Rotate(ca.Rotation{Overlap: overlap, Since: since}, c.cfg.TrustDomain, time.Now())
	return keys, r.Overlap, r.Since, err
}
