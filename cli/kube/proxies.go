package kube

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/lateen-mesh/lateen/cli/show"
)

// The bounds of asking proxies, each by a connection of its own.
const (
	proxiesAtOnce = 16
	proxiesMax    = 2000
)

// proxy is a pod with a proxy, and what is known of that.
type proxy struct {
	pod *core.Pod
	show.Proxy
	// asked is why the proxy could not be asked; nil: it was.
	asked error
	// known is whether a lateend knows it.
	known bool
}

// hasProxy says whether a pod was given a proxy.
func hasProxy(p *core.Pod) bool {
	isProxy := func(c core.Container) bool { return c.Name == proxyContainer }
	return p.Annotations[annotationStatus] != "" &&
		(slices.ContainsFunc(p.Spec.InitContainers, isProxy) || slices.ContainsFunc(p.Spec.Containers, isProxy))
}

// over says whether a pod has ended, or is about to.
func over(p *core.Pod) bool {
	return p.DeletionTimestamp != nil || p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed
}

// proxied are the pods with a proxy, of the namespace that is meant or of all.
func (l *look) proxied(ctx context.Context) ([]core.Pod, error) {
	pods, err := l.pods(ctx, l.namespace)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(pods), func(p core.Pod) bool { return over(&p) || !hasProxy(&p) }), nil
}

// proxies joins what is known of every proxy: of its pod, by every lateend, and by itself. The control plane may be away.
func (l *look) proxies(ctx context.Context) ([]proxy, error) {
	return once(l, "state of the proxies", func() ([]proxy, error) {
		pods, err := l.proxied(ctx)
		if err != nil {
			return nil, err
		}
		if len(pods) > proxiesMax {
			return nil, fmt.Errorf("there are %d, and only %d are asked at once; choose a namespace with -n", len(pods), proxiesMax)
		}
		states, _ := l.states(ctx) // where it is away the proxies say so themselves
		out := make([]proxy, len(pods))
		var group sync.WaitGroup
		room := make(chan struct{}, proxiesAtOnce)
		for i := range pods {
			out[i] = knownAs(&pods[i], states)
			group.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				var own show.Own
				if _, out[i].asked = l.dial.page(ctx, pods[i].Namespace, pods[i].Name, portProxyAdmin, "/status", &own); out[i].asked == nil {
					out[i].Join(own)
				}
			})
		}
		group.Wait()
		return out, ctx.Err()
	})
}

// knownAs is what the servers know of a pod's proxy. One that has changed servers is known to several.
func knownAs(p *core.Pod, states []controlState) proxy {
	out := proxy{pod: p, Proxy: show.Proxy{Name: p.Name, Namespace: p.Namespace, Role: "sidecar"}}
	if p.Annotations["inject.istio.io/templates"] == "gateway" {
		out.Role = "gateway"
	}
	for _, s := range states {
		for _, k := range s.proxies {
			if k.Name != p.Name || k.Namespace != p.Namespace || out.known && !k.Connected {
				continue
			}
			out.Proxy, out.known = k, true
		}
	}
	return out
}

// age is how long ago a pod was made.
func (l *look) age(p *core.Pod) time.Duration { return l.now().Sub(p.CreationTimestamp.Time) }
