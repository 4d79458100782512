package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/cli/show"
	"github.com/lateen-mesh/lateen/deploy"
)

// workTree is the version of a program that was built without one, such as by `go run`.
const workTree = "(devel)"

// logsHint is how one reads what lateend says.
const logsHint = "`kubectl logs -n " + deploy.Namespace + " -l " + controlSelector + "`"

// controlChecks judge the control plane.
func controlChecks() group {
	return group{"control plane", []check{
		{
			name: "lateend is installed", needed: true, judge: controlInstalled,
			next: "install it: `lateen check --pre`, then docs/install.md",
		},
		{
			name: "all its replicas are ready", judge: controlReady,
			next: "see what they wait for: `kubectl describe pods -n " + deploy.Namespace + " -l " + controlSelector + "`, and " + logsHint,
		},
		{
			name: "the replicas of each revision are of one image", judge: controlImages,
			next: "wait for the rollout: `kubectl rollout status -n " + deploy.Namespace + " deploy -l " + controlSelector + "`",
		},
		{
			name: "lateend and this program are of one version", judge: controlVersion,
			next: "use the lateen of the version that is installed, or upgrade the control plane",
		},
		{
			name: "one of them leads, and writes statuses", judge: leaseHeld,
			next: "see why nobody takes the Lease " + deploy.Namespace + "/" + leaseName + ": " + logsHint,
		},
		{
			name: "Istio's CustomResourceDefinitions are installed, in the versions that Lateen knows", judge: definitionsThere,
			next: "apply them: `lateen manifest generate | kubectl apply --server-side -f -`",
		},
		{
			name: "every namespace has the mesh's roots", judge: rootsEverywhere,
			next: "see why lateend cannot write the ConfigMap " + rootsName + ": " + logsHint,
		},
	}}
}

func controlInstalled(ctx context.Context, l *look) verdict {
	list, err := l.controls(ctx)
	if err != nil {
		return trouble(err)
	}
	if len(list) == 0 {
		return verdict{failed, []string{"no Deployment with the label " + controlSelector + " is in the namespace " + deploy.Namespace}}
	}
	return ok()
}

func controlReady(ctx context.Context, l *look) verdict {
	list, err := l.controls(ctx)
	if err != nil {
		return trouble(err)
	}
	var why []string
	for _, d := range list {
		wanted := int32(1)
		if d.Spec.Replicas != nil {
			wanted = *d.Spec.Replicas
		}
		switch {
		case wanted == 0:
			why = append(why, fmt.Sprintf("Deployment %s has been scaled to 0 replicas", d.Name))
		case d.Status.ReadyReplicas < wanted:
			why = append(why, fmt.Sprintf("Deployment %s has %d of %d replicas ready", d.Name, d.Status.ReadyReplicas, wanted))
		}
	}
	if len(why) == 0 {
		return ok()
	}
	pods, err := l.controlPods(ctx)
	if err != nil {
		return verdict{failed, append(why, err.Error())}
	}
	for _, p := range pods {
		if text := ailing(&p, nil); text != "" {
			why = append(why, fmt.Sprintf("pod %s: %s", p.Name, text))
		}
	}
	states, _ := l.states(ctx) // where they cannot be asked, another check says why
	return verdict{failed, append(why, unready(states)...)}
}

// ailing says why a pod is not ready, looking at the containers of these names, or at all; empty: it is.
func ailing(p *core.Pod, names []string) string {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if names != nil && !slices.Contains(names, s.Name) {
			continue
		}
		last := ""
		if t := s.LastTerminationState.Terminated; t != nil {
			last = fmt.Sprintf("; it ended %d times, the last time with %s", s.RestartCount, ended(t))
		}
		switch {
		case s.State.Waiting != nil:
			w := s.State.Waiting
			return strings.TrimSuffix(fmt.Sprintf("%s waits: %s: %s", s.Name, w.Reason, w.Message), ": ") + last
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			return s.Name + " has ended with " + ended(s.State.Terminated)
		case s.State.Running != nil && !s.Ready:
			return s.Name + " runs and is not ready" + last
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == core.PodScheduled && c.Status == core.ConditionFalse {
			return "it has no node: " + c.Message
		}
	}
	return ""
}

// ended is how a container ended.
func ended(t *core.ContainerStateTerminated) string {
	return strings.TrimSpace(fmt.Sprintf("exit code %d %s %s", t.ExitCode, t.Reason, strings.TrimSpace(t.Message)))
}

func controlImages(ctx context.Context, l *look) verdict {
	pods, err := l.controlPods(ctx)
	if err != nil {
		return trouble(err)
	}
	images := map[string]map[string]bool{} // by revision
	for _, p := range pods {
		revision := p.Labels[labelRevision]
		if images[revision] == nil {
			images[revision] = map[string]bool{}
		}
		for _, c := range p.Spec.Containers {
			images[revision][c.Image] = true
		}
	}
	var why []string
	for _, revision := range slices.Sorted(maps.Keys(images)) {
		if all := slices.Sorted(maps.Keys(images[revision])); len(all) > 1 {
			why = append(why, fmt.Sprintf("revision %s: %s", revision, strings.Join(all, ", ")))
		}
	}
	return unless(warned, why)
}

// controlState is what one lateend says.
type controlState struct {
	pod     string
	ready   bool // else it has no proxies yet
	proxies []show.Proxy
	status  controlStatus
	at      time.Time // by its clock
}

// controlStatus is /status of lateend's admin page.
type controlStatus struct {
	Version  string    `json:"version"`
	Faults   []message `json:"faults"`
	Warnings []message `json:"warnings"`
}

// message is a fault or a finding of lateend's.
type message struct {
	Object  string `json:"object"`
	Path    string `json:"path"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (m message) String() string {
	parts := slices.DeleteFunc([]string{m.Object, m.Path, m.Message}, func(s string) bool { return s == "" })
	text := strings.Join(parts, ": ")
	if m.Code != "" {
		text += " [" + m.Code + "]"
	}
	return text
}

// states asks every lateend that runs for its state. One that is not ready yet may not answer yet, either.
func (l *look) states(ctx context.Context) ([]controlState, error) {
	return once(l, "state of lateend", func() ([]controlState, error) {
		pods, err := l.controlPods(ctx)
		if err != nil {
			return nil, err
		}
		var out []controlState
		for _, p := range pods {
			if p.Status.Phase != core.PodRunning {
				continue
			}
			s := controlState{pod: p.Name, ready: podReady(&p)}
			s.at, err = l.dial.page(ctx, p.Namespace, p.Name, portControlAdmin, "/status", &s.status)
			if err != nil && !s.ready {
				continue
			}
			if err != nil {
				return nil, err
			}
			if s.ready {
				if _, err = l.dial.page(ctx, p.Namespace, p.Name, portControlAdmin, "/proxies", &s.proxies); err != nil {
					return nil, err
				}
			}
			out = append(out, s)
		}
		return out, nil
	})
}

// unready are the faults of those that answer, but are not ready: what holds them up is among them.
func unready(list []controlState) (why []string) {
	for _, s := range list {
		for _, m := range s.status.Faults {
			if !s.ready {
				why = append(why, fmt.Sprintf("pod %s is not ready: %s", s.pod, m))
			}
		}
	}
	return why
}

func podReady(p *core.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == core.PodReady {
			return c.Status == core.ConditionTrue
		}
	}
	return false
}

// askable says why lateend cannot be asked; needs is what could be judged if it could.
func askable(list []controlState, err error) (verdict, bool) {
	switch {
	case err != nil:
		return verdict{warned, []string{err.Error(), "this needs the right to create pods/portforward in the namespace " + deploy.Namespace}}, false
	case len(list) == 0:
		return skip("no lateend is ready"), false
	}
	return verdict{}, true
}

func controlVersion(ctx context.Context, l *look) verdict {
	list, err := l.states(ctx)
	if v, may := askable(list, err); !may {
		return v
	}
	if l.version == workTree {
		return ok() // nothing is known of it
	}
	var why []string
	for _, s := range list {
		if s.status.Version != l.version {
			why = append(why, fmt.Sprintf("pod %s is %s; this program is %s", s.pod, s.status.Version, l.version))
		}
	}
	return unless(warned, why)
}

func leaseHeld(ctx context.Context, l *look) verdict {
	held, err := l.kube.CoordinationV1().Leases(deploy.Namespace).Get(ctx, leaseName, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return verdict{failed, []string{"the Lease is not there: no lateend has ever led"}}
	}
	if err != nil {
		return trouble(err)
	}
	if held.Spec.HolderIdentity == nil || *held.Spec.HolderIdentity == "" {
		return verdict{failed, []string{"nobody holds the Lease"}}
	}
	holder := *held.Spec.HolderIdentity
	now, err := l.date(ctx)
	if err != nil {
		now = l.now()
	}
	if held.Spec.RenewTime == nil || held.Spec.LeaseDurationSeconds == nil {
		return verdict{failed, []string{holder + " holds the Lease and has never renewed it"}}
	}
	lasts := time.Duration(*held.Spec.LeaseDurationSeconds) * time.Second
	if since := now.Sub(held.Spec.RenewTime.Time); since > lasts+skewMax {
		return verdict{failed, []string{fmt.Sprintf("%s holds the Lease and renewed it %s ago; it lasts %s", holder, since.Round(time.Second), lasts)}}
	}
	return ok()
}

func definitionsThere(ctx context.Context, l *look) verdict {
	there, err := l.definitions(ctx)
	if err != nil {
		return trouble(err)
	}
	own, err := l.world.known()
	if err != nil {
		return trouble(err)
	}
	level := warned
	var why []string
	for _, name := range slices.Sorted(maps.Keys(own)) {
		is, found := there[name]
		switch {
		case !found:
			level = failed
			why = append(why, name+" is not installed")
		case !is.established:
			level = failed
			why = append(why, name+" is not established: `kubectl describe crd "+name+"` says why")
		default:
			why = append(why, unserved(name, is, own[name])...)
		}
	}
	return unless(level, why)
}

func rootsEverywhere(ctx context.Context, l *look) verdict {
	want, err := l.roots(ctx)
	if err != nil {
		return trouble(err)
	}
	namespaces, err := l.namespaces(ctx)
	if err != nil {
		return trouble(err)
	}
	maps, err := l.kube.CoreV1().ConfigMaps("").List(ctx, meta.ListOptions{FieldSelector: "metadata.name=" + rootsName})
	if err != nil {
		return trouble(fmt.Errorf("read the ConfigMaps %s: %w", rootsName, err))
	}
	have := map[string]string{}
	for _, m := range maps.Items {
		if m.Name == rootsName {
			have[m.Namespace] = m.Data[rootsKey]
		}
	}
	var why []string
	for _, n := range namespaces {
		if n.Status.Phase == core.NamespaceTerminating || slices.Contains(unmeshed(), n.Name) {
			continue
		}
		switch text, there := have[n.Name]; {
		case !there:
			why = append(why, "namespace "+n.Name+" has none: proxies do not start there")
		case text != want:
			why = append(why, "namespace "+n.Name+" has others than "+deploy.Namespace)
		}
	}
	return unless(failed, why)
}
