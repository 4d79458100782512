package apply

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lateen-mesh/lateen/deploy"
)

const (
	// pace is how often an object that is waited for is looked at.
	pace = 250 * time.Millisecond
	// patience is after how long the pods of a workload are asked why it is not ready, and asked again.
	patience = 2 * time.Second
)

// await waits until an object that was applied is ready. It says what is missing; if ctx ends first it returns that, and
// what to do about it.
func (a *Applier) await(ctx context.Context, o deploy.Object, missing check, say func(string)) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	why := trouble{text: "nothing is known of it"}
	for asked := time.Now(); ; {
		live, err := a.live(ctx, o)
		switch {
		case err != nil && ctx.Err() == nil:
			why = trouble{text: err.Error()}
		case err == nil && live == nil:
			why = trouble{text: "somebody has deleted it"}
		case err == nil:
			text := missing(live)
			if text == "" {
				return nil
			}
			if why.pod == "" || time.Since(asked) > patience {
				why.text = text
			}
			if time.Since(asked) > patience {
				asked = time.Now()
				if found := a.diagnose(ctx, live); found.text != "" {
					why = found
				}
			}
		}
		say(why.text)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s%s", context.Cause(ctx), why.text, why.next)
		case <-tick.C:
		}
	}
}

// established says whether a definition is served.
func established(o *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		m, _ := c.(map[string]any)
		if m["type"] == "NamesAccepted" && m["status"] == "False" {
			return fmt.Sprintf("%s: its names are taken: %v", o.GetName(), m["message"])
		}
	}
	for _, c := range conditions {
		if m, _ := c.(map[string]any); m["type"] == "Established" && m["status"] == "True" {
			return ""
		}
	}
	return o.GetName() + " is not served yet"
}

// number is a field of an object; absent: otherwise.
func number(o *unstructured.Unstructured, otherwise int64, path ...string) int64 {
	n, found, _ := unstructured.NestedInt64(o.Object, path...)
	if !found {
		return otherwise
	}
	return n
}

// rolledOut says whether all pods of a Deployment are of its present template, and available.
func rolledOut(o *unstructured.Unstructured) string {
	if number(o, 0, "status", "observedGeneration") < o.GetGeneration() {
		return "Kubernetes has not looked at it yet"
	}
	want := number(o, 1, "spec", "replicas")
	updated, available := number(o, 0, "status", "updatedReplicas"), number(o, 0, "status", "availableReplicas")
	switch all := number(o, 0, "status", "replicas"); {
	case updated < want:
		return fmt.Sprintf("%d of %d new pods were made", updated, want)
	case all > updated:
		return fmt.Sprintf("%d old pods have not ended", all-updated)
	case available < want:
		return fmt.Sprintf("%d of %d pods are ready", available, want)
	}
	return ""
}

// onAllNodes says whether each node has its pod of a DaemonSet's present template, and that is available.
func onAllNodes(o *unstructured.Unstructured) string {
	if number(o, 0, "status", "observedGeneration") < o.GetGeneration() {
		return "Kubernetes has not looked at it yet"
	}
	want := number(o, 0, "status", "desiredNumberScheduled")
	if updated := number(o, 0, "status", "updatedNumberScheduled"); updated < want {
		return fmt.Sprintf("%d of %d nodes have it", updated, want)
	}
	if available := number(o, 0, "status", "numberAvailable"); available < want {
		return fmt.Sprintf("it is ready on %d of %d nodes", available, want)
	}
	return ""
}

// believed says whether a webhook's registration has the roots by which the API server knows it.
func believed(o *unstructured.Unstructured) string {
	hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	for _, h := range hooks {
		m, _ := h.(map[string]any)
		if bundle, _, _ := unstructured.NestedString(m, "clientConfig", "caBundle"); bundle == "" {
			return "lateend has not written its caBundle yet"
		}
	}
	return ""
}
