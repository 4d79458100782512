package inject

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"

	admission "k8s.io/api/admission/v1"
)

// Path is where the webhook serves. It may be followed by what Istio's injection URLs carry:
// /inject/cluster/<cluster>/net/<network>.
const Path = "/inject"

// Webhook answers the API server's admission reviews of pods.
type Webhook struct {
	injector atomic.Pointer[Injector]
	log      *slog.Logger
	reviews  *Reviews
}

// NewWebhook returns the handler of Path and what is below it. A nil logger discards.
func NewWebhook(in *Injector, logger *slog.Logger) *Webhook {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	h := &Webhook{log: logger}
	h.Use(in)
	h.reviews = NewReviews(h.respond)
	return h
}

// Use has the reviews that come from now on answered by another Injector.
func (h *Webhook) Use(in *Injector) { h.injector.Store(in) }

// ServeHTTP answers one review. What cannot be injected is denied with the reason, so that the user sees it.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, _, err := fromPath(r.URL.Path); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	h.reviews.ServeHTTP(w, r)
}

// fromPath reads the pairs of a webhook's path. Those that we do not know are passed over, as in Istio.
func fromPath(path string) (cluster, network string, err error) {
	rest, ok := strings.CutPrefix(path, Path)
	if !ok || rest != "" && rest[0] != '/' {
		return "", "", fmt.Errorf("nothing is served at %s; the webhook is at %s", path, Path)
	}
	parts := strings.Split(strings.Trim(rest, "/"), "/")
	for i := 0; i+1 < len(parts); i += 2 {
		switch parts[i] {
		case "cluster":
			cluster = parts[i+1]
		case "net":
			network = parts[i+1]
		}
	}
	return cluster, network, nil
}

func (h *Webhook) respond(r *http.Request, review *admission.AdmissionRequest) *admission.AdmissionResponse {
	if review.Kind.Kind != "Pod" || review.Kind.Group != "" || review.Operation != admission.Create {
		return Allowed()
	}
	cluster, network, _ := fromPath(r.URL.Path) // judged by ServeHTTP
	result, err := h.injector.Load().Inject(Request{Pod: review.Object.Raw, Namespace: review.Namespace, Cluster: cluster, Network: network})
	if err != nil {
		h.log.Warn("pod refused", "namespace", review.Namespace, "name", review.Name, "cause", err)
		return Denied(err.Error())
	}
	h.log.Debug("pod judged", "namespace", review.Namespace, "name", review.Name, "inject", result.Inject, "reason", result.Reason)
	out := Allowed(result.Warnings...)
	if !result.Inject {
		return out
	}
	patch, err := json.Marshal(result.Patch)
	if err != nil {
		return Denied(fmt.Errorf("write the patch: %w", err).Error())
	}
	out.Patch, out.PatchType = patch, new(admission.PatchTypeJSONPatch)
	return out
}
