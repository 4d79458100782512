package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"

	admission "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bounds of reviews, for which any pod of the cluster can ask.
const (
	// bodyMax is more than two objects of the greatest size that a cluster stores.
	bodyMax = 4 << 20
	// reviewsMax is how many requests are read at a time, and reviewsFrom how many of them come from one address; others
	// wait. One pod that sends slowly must not keep the API server out.
	reviewsMax  = 64
	reviewsFrom = 8
	// warningMax is how long a warning may be for the API server not to cut it off, and warningsMax how many there may be.
	warningMax  = 256
	warningsMax = 16
)

// Reviews answers the API server's admission reviews (admission.k8s.io/v1).
type Reviews struct {
	judge func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse
	room  chan struct{}

	mu    sync.Mutex
	lines map[string]*line // by address
}

// line is where the requests of one address wait for each other.
type line struct {
	room  chan struct{}
	users int // who waits or is read
}

// NewReviews returns a handler that answers with what judge says of each request. judge gets the HTTP request as well,
// for its path, and need not tell the UID; it may be called concurrently.
func NewReviews(judge func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse) *Reviews {
	return &Reviews{judge: judge, room: make(chan struct{}, reviewsMax), lines: map[string]*line{}}
}

// enter waits until a request may be read; ok is false if its client went away before.
func (h *Reviews) enter(r *http.Request) (leave func(), ok bool) {
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	h.mu.Lock()
	l := h.lines[from]
	if l == nil {
		l = &line{room: make(chan struct{}, reviewsFrom)}
		h.lines[from] = l
	}
	l.users++
	h.mu.Unlock()
	forget := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(h.lines, from)
		}
	}
	for i, room := range []chan struct{}{l.room, h.room} {
		select {
		case room <- struct{}{}:
		case <-r.Context().Done():
			if i > 0 {
				<-l.room
			}
			forget()
			return nil, false
		}
	}
	return func() {
		<-h.room
		<-l.room
		forget()
	}, true
}

// ServeHTTP answers one review.
func (h *Reviews) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	leave, ok := h.enter(r)
	if !ok {
		return
	}
	defer leave()
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
	answer, err := h.review(r, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// review answers a review. The error is for a body that is none.
func (h *Reviews) review(r *http.Request, body []byte) ([]byte, error) {
	var review admission.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("read the admission review: %w", err)
	}
	if review.Request == nil {
		return nil, errors.New("read the admission review: it has no request")
	}
	review.Response = h.judge(r, review.Request)
	review.Response.UID, review.Request = review.Request.UID, nil
	review.TypeMeta = meta.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}
	return json.Marshal(review)
}

// Allowed lets a request pass, with warnings for whoever made it, as many and as long as the API server takes.
func Allowed(warnings ...string) *admission.AdmissionResponse {
	out := &admission.AdmissionResponse{Allowed: true}
	for _, warning := range warnings[:min(len(warnings), warningsMax)] {
		out.Warnings = append(out.Warnings, cut(warning, warningMax))
	}
	return out
}

// Denied refuses a request with a message for whoever made it.
func Denied(message string) *admission.AdmissionResponse {
	return &admission.AdmissionResponse{Result: &meta.Status{
		Status: meta.StatusFailure, Reason: meta.StatusReasonInvalid, Code: http.StatusUnprocessableEntity, Message: message,
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
