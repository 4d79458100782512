package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strings"

	admission "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Path is where the webhook serves. It may be followed by what Istio's injection URLs carry:
// /inject/cluster/<cluster>/net/<network>.
const Path = "/inject"

// Bounds of the webhook, which any pod of the cluster can call.
const (
	// bodyMax is more than two objects of the greatest size that a cluster stores.
	bodyMax = 4 << 20
	// reviewsMax is how many requests are read at a time; others wait.
	reviewsMax = 16
	// warningMax is how long a warning may be for the API server not to cut it off, and warningsMax how many there may be.
	warningMax  = 256
	warningsMax = 16
)

// Webhook answers the API server's admission reviews of pods (admission.k8s.io/v1).
type Webhook struct {
	injector *Injector
	log      *slog.Logger
	room     chan struct{}
}

// NewWebhook returns the handler of Path and what is below it. A nil logger discards.
func NewWebhook(in *Injector, logger *slog.Logger) *Webhook {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Webhook{injector: in, log: logger, room: make(chan struct{}, reviewsMax)}
}

// ServeHTTP answers one review. What cannot be injected is denied with the reason, so that the user sees it.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case h.room <- struct{}{}:
		defer func() { <-h.room }()
	case <-r.Context().Done():
		return
	}
	cluster, network, err := fromPath(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if r.Method != http.MethodPost {
		http.Error(w, "an admission review is sent by POST", http.StatusMethodNotAllowed)
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		http.Error(w, "an admission review is application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		status := http.StatusBadRequest
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "read the admission review: "+err.Error(), status)
		return
	}
	answer, err := h.review(body, cluster, network)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
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

// review answers a review. The error is for a body that is none.
func (h *Webhook) review(body []byte, cluster, network string) ([]byte, error) {
	var review admission.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("read the admission review: %w", err)
	}
	if review.Request == nil {
		return nil, errors.New("read the admission review: it has no request")
	}
	review.Response = h.respond(review.Request, cluster, network)
	review.Response.UID, review.Request = review.Request.UID, nil
	review.TypeMeta = meta.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}
	return json.Marshal(review)
}

func (h *Webhook) respond(r *admission.AdmissionRequest, cluster, network string) *admission.AdmissionResponse {
	if r.Kind.Kind != "Pod" || r.Kind.Group != "" || r.Operation != admission.Create {
		return &admission.AdmissionResponse{Allowed: true}
	}
	result, err := h.injector.Inject(Request{Pod: r.Object.Raw, Namespace: r.Namespace, Cluster: cluster, Network: network})
	if err != nil {
		h.log.Warn("pod refused", "namespace", r.Namespace, "name", r.Name, "cause", err)
		return denied(err)
	}
	h.log.Debug("pod judged", "namespace", r.Namespace, "name", r.Name, "inject", result.Inject, "reason", result.Reason)
	out := &admission.AdmissionResponse{Allowed: true}
	for i, warning := range result.Warnings {
		if i == warningsMax {
			break
		}
		out.Warnings = append(out.Warnings, cut(warning, warningMax))
	}
	if !result.Inject {
		return out
	}
	patch, err := json.Marshal(result.Patch)
	if err != nil {
		return denied(fmt.Errorf("write the patch: %w", err))
	}
	out.Patch, out.PatchType = patch, new(admission.PatchTypeJSONPatch)
	return out
}

func denied(err error) *admission.AdmissionResponse {
	return &admission.AdmissionResponse{Result: &meta.Status{
		Status: meta.StatusFailure, Reason: meta.StatusReasonInvalid, Code: http.StatusUnprocessableEntity, Message: err.Error(),
	}}
}

// cut shortens a text to so many bytes.
func cut(text string, limit int) string {
	const more = "…"
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit-len(more)], "") + more
}
