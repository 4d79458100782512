package kube

import (
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/cli/redact"
)

// bareMeta takes from an object's metadata what only repeats it, with all that its user may have written there.
func bareMeta(m *meta.ObjectMeta) {
	m.ManagedFields = nil
	delete(m.Annotations, core.LastAppliedConfigAnnotation)
}

// barePod leaves of a pod's own containers what runs where: their commands and variables are the application's.
func barePod(p *core.Pod) {
	bareMeta(&p.ObjectMeta)
	for _, list := range [][]core.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if c.Name != proxyContainer && p.Labels["app"] != controlApp {
				c.Command, c.Args = nil, nil
			}
			for j := range c.Env {
				if c.Name != proxyContainer && c.Env[j].Value != "" {
					c.Env[j].Value = redact.Hidden
				}
			}
			c.Lifecycle = nil
		}
	}
}
