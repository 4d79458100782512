package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
	gatewayapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/source"
)

// The condition that tells what became of an object, in the words of the Gateway API.
const (
	conditionAccepted = "Accepted"
	reasonAccepted    = "Accepted"
	reasonInvalid     = "Invalid"
)

// Bounds of what is written.
const (
	// writesPerSecond and writesBurst ration the writing of status, and of all else.
	writesPerSecond = 20
	writesBurst     = 50
	// statusRetry is how long a status waits that could not be written. If it was refused it waits twice as long each time, up
	// to statusRetryMax.
	statusRetry    = 5 * time.Second
	statusRetryMax = 5 * time.Minute
	// statusLook is how often it is looked whether one has waited for long enough.
	statusLook = time.Second
	// messagesMax is how many faults and findings the status of an object tells.
	messagesMax = 10
	// messageBytes is more than a message of ours has; Kubernetes allows a condition's 32 KiB.
	messageBytes = 8 << 10
)

// standing is what an object's status says, as it was last read.
type standing struct {
	resource   schema.GroupVersionResource
	generation int64
	uid        string
	version    string // of the object, so that nothing newer is overwritten
	observed   int64
	conditions []any // of whomever
	messages   []any
	// whole is the status of a kind of the Gateway API.
	whole map[string]any
	// class and parents are what one that is refused refers to.
	class   string
	parents []gatewayapi.ParentReference
}

// plurals are the resources' names by kind.
func plural(kind string) string {
	for _, c := range customs {
		if c.kind == kind {
			return c.resource
		}
	}
	return ""
}

func standingOf(u *unstructured.Unstructured) *standing {
	gvk := u.GroupVersionKind()
	s := &standing{
		resource:   schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: plural(gvk.Kind)},
		generation: u.GetGeneration(), uid: string(u.GetUID()), version: u.GetResourceVersion(),
	}
	if gvk.Group == api.GroupGateway {
		s.whole, _, _ = unstructured.NestedMap(u.Object, "status") // a copy
		return s
	}
	s.observed, _, _ = unstructured.NestedInt64(u.Object, "status", "observedGeneration") // a text is none of ours
	s.conditions, _, _ = unstructured.NestedSlice(u.Object, "status", "conditions")
	s.messages, _, _ = unstructured.NestedSlice(u.Object, "status", "validationMessages")
	return s
}

// statusWriter writes what became of objects into their status (Istio's IstioStatus): the condition Accepted, and what
// the analysis found. It writes only what differs from what is there, and only while this server leads.
type statusWriter struct {
	api    *clients
	log    *slog.Logger
	ration flowcontrol.RateLimiter
	wake   chan struct{}

	mu       sync.Mutex
	objects  map[api.Ref]*account
	findings map[string][]source.Finding // by object; nil: nobody has looked yet
	attached map[api.Ref]any             // what the Gateway API's objects come to; nil: not everything was read
	dirty    map[api.Ref]struct{}
	failures map[api.Ref]*failure // of those that could not be written
}

// failure is why a status could not be written, and when that is tried again.
type failure struct {
	cause string
	wait  time.Duration
	again time.Time
}

// account is an object's status as it is, and the faults for which the object is refused.
type account struct {
	*standing
	faults []api.Fault
}

func newStatusWriter(c *clients, log *slog.Logger) *statusWriter {
	return &statusWriter{
		api: c, log: log, ration: newRation(), wake: make(chan struct{}, 1),
		objects: map[api.Ref]*account{}, dirty: map[api.Ref]struct{}{}, failures: map[api.Ref]*failure{},
	}
}

func newRation() flowcontrol.RateLimiter {
	return flowcontrol.NewTokenBucketRateLimiter(writesPerSecond, writesBurst)
}

// read takes over an object, of which it was told before what it comes to.
func (w *statusWriter) read(ref api.Ref, a *account) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.objects[ref] = a
	if f := w.failures[ref]; f != nil {
		f.again = time.Time{} // another version may be taken
	}
	w.judge(ref)
}

// uid is that of an object which has a status; empty if there is none.
func (w *statusWriter) uid(ref api.Ref) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.objects[ref]; a != nil {
		return a.uid
	}
	return ""
}

func (w *statusWriter) forget(ref api.Ref) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.objects, ref)
	delete(w.dirty, ref)
	delete(w.failures, ref)
}

// found takes over all findings.
func (w *statusWriter) found(list []source.Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.findings = map[string][]source.Finding{}
	for _, f := range list {
		w.findings[f.Object] = append(w.findings[f.Object], f)
	}
	for ref := range w.objects {
		w.judge(ref)
	}
}

// judge notes whether a status must be written. The caller holds mu.
func (w *statusWriter) judge(ref api.Ref) {
	if w.patch(ref) == nil {
		delete(w.dirty, ref)
		return
	}
	w.dirty[ref] = struct{}{}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// patch is the status that an object should have, as a merge patch; nil if it has it, or not all of it is known. The caller
// holds mu.
func (w *statusWriter) patch(ref api.Ref) map[string]any {
	a := w.objects[ref]
	if a.resource.Group == api.GroupGateway {
		return w.attachedPatch(ref, a)
	}
	if w.findings == nil {
		return nil
	}
	messages := w.messages(ref)
	accepted, reason, message := "True", reasonAccepted, told(w.findings[ref.String()])
	if len(a.faults) > 0 {
		accepted, reason, message = "False", reasonInvalid, told(a.faults)
	}
	own := map[string]any{
		"type": conditionAccepted, "status": accepted, "reason": reason, "message": message, "observedGeneration": a.generation,
	}
	var rest []any
	since := time.Now().UTC().Format(time.RFC3339)
	same := false
	for _, c := range a.conditions {
		m, _ := c.(map[string]any)
		if m["type"] != conditionAccepted {
			rest = append(rest, c)
			continue
		}
		if m["status"] == accepted {
			since = cmp.Or(value(m["lastTransitionTime"]), since)
		}
		same = m["status"] == accepted && m["reason"] == reason && value(m["message"]) == message && m["observedGeneration"] == a.generation
	}
	if same && a.observed == a.generation && (len(messages)+len(a.messages) == 0 || reflect.DeepEqual(messages, a.messages)) {
		return nil
	}
	own["lastTransitionTime"] = since
	return map[string]any{
		"metadata": map[string]any{"resourceVersion": a.version},
		"status":   map[string]any{"observedGeneration": a.generation, "conditions": append(rest, own), "validationMessages": messages},
	}
}

func value(v any) string { s, _ := v.(string); return s }

// told writes faults or findings one a line; they stand at their object, which they need not name.
func told[T interface{ Told() string }](list []T) string {
	var lines []string
	for _, f := range list[:min(len(list), messagesMax)] {
		lines = append(lines, f.Told())
	}
	text := strings.Join(lines, "\n")
	return strings.ToValidUTF8(text[:min(len(text), messageBytes)], "")
}

// messages are an object's findings in the form of Istio's analysis, which has no room for their text.
func (w *statusWriter) messages(ref api.Ref) []any {
	var out []any
	for _, f := range w.findings[ref.String()] {
		if len(out) == messagesMax {
			break
		}
		out = append(out, map[string]any{"level": strings.ToUpper(string(f.Level)), "type": map[string]any{"code": f.Code, "name": f.Code}})
	}
	return out
}

// run writes until ctx ends, which it does when this server leads no more.
func (w *statusWriter) run(ctx context.Context) {
	look := time.NewTicker(statusLook)
	defer look.Stop()
	for {
		for _, ref := range w.waiting() {
			if err := w.ration.Wait(ctx); err != nil {
				return
			}
			w.write(ctx, ref)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-look.C:
		}
	}
}

// waiting are those whose turn it is.
func (w *statusWriter) waiting() []api.Ref {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []api.Ref
	now := time.Now()
	for ref := range w.dirty {
		if f := w.failures[ref]; f == nil || !f.again.After(now) {
			out = append(out, ref)
		}
	}
	return out
}

// write writes one status. What is read or found meanwhile is judged by itself, as what we have written is when it comes back
// to us; so an object that somebody else has changed meanwhile is left until its change is read, which may be before we hear
// that it stood in our way.
func (w *statusWriter) write(ctx context.Context, ref api.Ref) {
	w.mu.Lock()
	if _, dirty := w.dirty[ref]; !dirty {
		w.mu.Unlock()
		return
	}
	resource, patch := w.objects[ref].resource, w.patch(ref)
	delete(w.dirty, ref)
	w.mu.Unlock()
	raw, err := json.Marshal(patch)
	if err == nil {
		_, err = w.api.dynamic.Resource(resource).Namespace(ref.Namespace).Patch(ctx, ref.Name, types.MergePatchType, raw, metav1.PatchOptions{FieldManager: userAgent}, "status")
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = nil
	}
	if news := w.wrote(ctx, ref, err); news {
		w.log.Warn("a status cannot be written; trying again", "object", ref.String(), "cause", err)
	}
}

// wrote notes how writing a status has ended, and reports whether that is a failure of which nothing was said. One that is
// refused, for want of a right or by a definition of its kind, stays so until somebody does something about it; of an API
// server that is away nobody knows.
func (w *statusWriter) wrote(ctx context.Context, ref api.Ref, err error) (news bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.failures, ref)
		return false
	}
	if w.objects[ref] == nil {
		return false
	}
	w.dirty[ref] = struct{}{}
	if ctx.Err() != nil {
		return false
	}
	f := w.failures[ref]
	if f == nil {
		f = &failure{}
		w.failures[ref] = f
	}
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		f.wait = min(max(2*f.wait, statusRetry), statusRetryMax)
	} else {
		f.wait = statusRetry
	}
	f.again = time.Now().Add(f.wait)
	news, f.cause = f.cause != err.Error(), err.Error()
	return news
}
