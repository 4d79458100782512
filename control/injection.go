package control

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/lateen-mesh/lateen/inject"
)

// injectionEvery is how often the configuration of injection is read. Where it is a ConfigMap that is mounted, the kubelet
// takes up to two minutes to bring a change.
const injectionEvery = 5 * time.Second

// followInjection has the webhook inject as the newest good configuration says, until ctx ends.
func (c *Control) followInjection(ctx context.Context, hook *inject.Webhook) {
	tick := time.NewTicker(injectionEvery)
	defer tick.Stop()
	used, refused := *c.cfg.Inject, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		read, injector, err := c.injection()
		switch {
		case err != nil:
			if refused != err.Error() {
				refused = err.Error()
				c.log.Warn("the new configuration of injection has a fault, the last good one stays in force; correct the ConfigMap or file that --inject names", "cause", err)
			}
		case !reflect.DeepEqual(read, used):
			hook.Use(injector)
			used, refused = read, ""
			c.log.Info("pods are injected by a new configuration from now on")
		default:
			refused = ""
		}
	}
}

// injection reads the configuration of injection and judges it.
func (c *Control) injection() (inject.Config, *inject.Injector, error) {
	cfg, err := c.cfg.InjectAnew()
	if err != nil {
		return cfg, nil, err
	}
	if cfg.Revision != c.cfg.Inject.Revision {
		return cfg, nil, fmt.Errorf("the revision %q is not that of this server, %q; a server keeps its revision as long as it runs", cfg.Revision, c.cfg.Inject.Revision)
	}
	injector, err := inject.New(cfg)
	return cfg, injector, err
}
