package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/inject"
)

// initPatience is how long the first containers of a pod may take.
const initPatience = 2 * time.Minute

// proxyChecks judge the data plane.
func proxyChecks() group {
	return group{"proxies", []check{
		{
			name: "every pod that should have a proxy has one", judge: noneMissing,
			next: "start the pods that are named anew, such as by `kubectl rollout restart`: they were made before injection was asked for, or while nobody was asked",
		},
		{
			name: "no pod is held back by what sets its capture rules", judge: noDeadInit,
			next: "read what it says: `kubectl logs -n NAMESPACE POD -c CONTAINER`; docs/injection.md tells what it needs of the node",
		},
		{
			name: "every proxy's container is ready", judge: proxiesReady,
			next: "read what it says: `kubectl logs -n NAMESPACE POD -c " + proxyContainer + "`",
		},
		{
			name: "every proxy can be asked", judge: proxiesAsked,
			next: "you need the right to create pods/portforward in these namespaces, and the proxies their port 15000",
		},
		{
			name: "every proxy's certificate is good", judge: proxyCertificates,
			next: "see why it is not renewed, which lateend and the proxy log; a proxy that has lost its certificate is helped by a new pod",
		},
		{
			name: "every proxy has the control plane's orders, and obeys them", judge: proxiesInSync,
			next: "wait some seconds and check again; `lateen status` shows each, `lateen proxy-config POD -n NAMESPACE` its orders",
		},
		{
			name: "every proxy is of the control plane's version", judge: proxyVersions,
			next: "start the pods that are named anew, such as by `kubectl rollout restart`: a new pod gets the new proxy",
		},
	}}
}

// asker is a revision's registration and what its injector decides.
type asker struct {
	webhooks []admission.MutatingWebhook
	injector *inject.Injector
}

// askers are those of all revisions.
func (l *look) askers(ctx context.Context) ([]asker, error) {
	return once(l, "configuration of injection", func() ([]asker, error) {
		list, err := l.mutating(ctx)
		if err != nil {
			return nil, err
		}
		var out []asker
		for _, m := range list {
			if m.Labels[labelInstallation] == "" {
				continue
			}
			name := injectionName
			if revision := m.Labels[labelRevision]; revision != inject.DefaultRevision {
				name += "-" + revision
			}
			config, err := l.kube.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, name, meta.GetOptions{})
			if err != nil {
				return nil, err
			}
			read, err := inject.ReadConfig([]byte(config.Data["config.yaml"]))
			if err != nil {
				return nil, fmt.Errorf("ConfigMap %s/%s: %w", config.Namespace, config.Name, err)
			}
			injector, err := inject.New(read)
			if err != nil {
				return nil, fmt.Errorf("ConfigMap %s/%s: %w", config.Namespace, config.Name, err)
			}
			out = append(out, asker{m.Webhooks, injector})
		}
		return out, nil
	})
}

// wants says whether a pod would get a proxy if it were made now, and why.
func (a asker) wants(p *core.Pod, namespace labels.Set) (string, bool) {
	for _, w := range a.webhooks {
		n, err := meta.LabelSelectorAsSelector(w.NamespaceSelector)
		if err != nil || !n.Matches(namespace) {
			continue
		}
		o, err := meta.LabelSelectorAsSelector(w.ObjectSelector)
		if err != nil || !o.Matches(labels.Set(p.Labels)) {
			continue
		}
		if d := a.injector.Decide(p, p.Namespace); d.Inject {
			return d.Reason, true
		}
	}
	return "", false
}

func noneMissing(ctx context.Context, l *look) verdict {
	askers, err := l.askers(ctx)
	if err != nil {
		return trouble(err)
	}
	namespaces, err := l.namespaces(ctx)
	if err != nil {
		return trouble(err)
	}
	marked := map[string]labels.Set{}
	for _, n := range namespaces {
		marked[n.Name] = labels.Merge(n.Labels, labels.Set{"kubernetes.io/metadata.name": n.Name})
	}
	pods, err := l.pods(ctx, l.namespace)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, p := range pods {
		if over(&p) || hasProxy(&p) {
			continue
		}
		for _, a := range askers {
			if reason, wanted := a.wants(&p, marked[p.Namespace]); wanted {
				why = append(why, fmt.Sprintf("pod %s/%s has none (%s)", p.Namespace, p.Name, reason))
				break
			}
		}
	}
	return unless(failed, why)
}

func noDeadInit(ctx context.Context, l *look) verdict {
	pods, err := l.proxied(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, p := range pods {
		for _, s := range p.Status.InitContainerStatuses {
			if s.Name != inject.InitContainer && s.Name != inject.ValidationContainer {
				continue
			}
			text := ""
			switch w, t := s.State.Waiting, s.State.Terminated; {
			case t != nil && t.ExitCode != 0:
				text = "has ended with " + ended(t)
			case w != nil && s.LastTerminationState.Terminated != nil:
				text = fmt.Sprintf("waits (%s) after it ended with %s", w.Reason, ended(s.LastTerminationState.Terminated))
			case s.State.Running != nil && l.age(&p) > initPatience:
				text = "has run for " + l.age(&p).Round(time.Second).String()
			}
			if text != "" {
				why = append(why, fmt.Sprintf("pod %s/%s: %s %s", p.Namespace, p.Name, s.Name, text))
			}
		}
	}
	return unless(failed, why)
}

func proxiesReady(ctx context.Context, l *look) verdict {
	pods, err := l.proxied(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, p := range pods {
		statuses := slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
		i := slices.IndexFunc(statuses, func(s core.ContainerStatus) bool { return s.Name == proxyContainer })
		if i >= 0 && statuses[i].Ready {
			continue
		}
		text := ailing(&p, []string{proxyContainer})
		if text == "" {
			text = "it has not started"
		}
		why = append(why, fmt.Sprintf("pod %s/%s: %s", p.Namespace, p.Name, text))
	}
	return unless(failed, why)
}

// eachProxy judges every proxy that could be asked, or all.
func eachProxy(level level, all bool, fault func(*look, *proxy) string) func(context.Context, *look) verdict {
	return func(ctx context.Context, l *look) verdict {
		list, err := l.proxies(ctx)
		if err != nil {
			return trouble(err)
		}
		if len(list) == 0 {
			return skip("no pod has a proxy")
		}
		var why []string
		for i := range list {
			p := &list[i]
			if !all && p.asked != nil {
				continue
			}
			if text := fault(l, p); text != "" {
				why = append(why, fmt.Sprintf("pod %s/%s %s", p.Namespace, p.Name, text))
			}
		}
		return unless(level, why)
	}
}

func proxiesAsked(ctx context.Context, l *look) verdict {
	return eachProxy(warned, true, func(_ *look, p *proxy) string {
		if p.asked == nil {
			return ""
		}
		return "does not answer: " + p.asked.Error()
	})(ctx, l)
}

func proxyCertificates(ctx context.Context, l *look) verdict {
	return eachProxy(failed, false, func(l *look, p *proxy) string {
		switch {
		case p.Expires.IsZero():
			return "has no certificate"
		case !p.Expires.After(l.now()):
			return "has one that ended at " + p.Expires.UTC().Format(time.RFC3339)
		}
		return ""
	})(ctx, l)
}

func proxiesInSync(ctx context.Context, l *look) verdict {
	return eachProxy(failed, true, func(_ *look, p *proxy) string {
		switch {
		case p.Refused != "":
			return "refused its orders, and goes on with the last good ones: " + p.Refused
		case p.asked == nil && !p.Connected && p.known:
			return "has lost the control plane, and goes on with its last orders"
		case !p.known:
			return "is known to no lateend"
		case !p.Connected:
			return "is not connected"
		case !p.Synced:
			return "has not taken its newest orders yet"
		}
		return ""
	})(ctx, l)
}

func proxyVersions(ctx context.Context, l *look) verdict {
	states, err := l.states(ctx)
	if v, may := askable(states, err); !may {
		return v
	}
	var versions []string
	for _, s := range states {
		if !slices.Contains(versions, s.status.Version) {
			versions = append(versions, s.status.Version)
		}
	}
	return eachProxy(warned, false, func(_ *look, p *proxy) string {
		if slices.Contains(versions, p.Version) {
			return ""
		}
		return fmt.Sprintf("is %s; lateend is %s", p.Version, strings.Join(versions, ", "))
	})(ctx, l)
}
