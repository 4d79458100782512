package inject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	admission "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lateen-mesh/lateen/fair"
)

// Bounds of reviews, for which any pod of the cluster can ask. One pod, or some of them, that send slowly must not keep
// the API server out.
const (
	// bodyMax is more than two objects of the greatest size that a cluster stores, and bodyTimeout how long it may take to
	// come, which need not be short: when it is crowded, who is slow gives way before that.
	bodyMax     = 4 << 20
	bodyTimeout = 5 * time.Second
	// reviewsMax is how many bodies are read, or wait to be judged, at a time, and how many are judged; for one more, one of
	// the address that has most is given up.
	reviewsMax = 32
	// reviewsFrom is how many requests of one address are under way at a time, behind which reviewsWaiting wait.
	reviewsFrom    = 8
	reviewsWaiting = 1024
	// warningMax is how long a warning may be for the API server not to cut it off, and warningsMax how many there may be.
	warningMax  = 256
	warningsMax = 16
)

// Reviews answers the API server's admission reviews (admission.k8s.io/v1).
type Reviews struct {
	judge   func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse
	line    *fair.Line
	reading *fair.Crowd
	judging chan struct{}
}

// NewReviews returns a handler that answers with what judge says of each request. judge gets the HTTP request as well,
// for its path, and need not tell the UID; it may be called concurrently.
func NewReviews(judge func(*http.Request, *admission.AdmissionRequest) *admission.AdmissionResponse) *Reviews {
	return &Reviews{
		judge: judge, line: fair.NewLine(0, reviewsFrom, reviewsWaiting), reading: fair.NewCrowd(reviewsMax),
		judging: make(chan struct{}, reviewsMax),
	}
}

// ServeHTTP answers one review.
func (h *Reviews) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "an admission review is sent by POST", http.StatusMethodNotAllowed)
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		http.Error(w, "an admission review is application/json", http.StatusUnsupportedMediaType)
		return
	}
	leave, err := h.line.Enter(r.Context(), fair.Address(r.RemoteAddr))
	if err != nil {
		http.Error(w, "wait for other admission reviews: "+err.Error(), http.StatusTooManyRequests)
		return
	}
	defer leave()
	body, status, err := h.read(w, r)
	if err != nil {
		http.Error(w, "read the admission review: "+err.Error(), status)
		return
	}
	answer, err := h.answer(r, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// errCrowded says that a body came too slowly for as many as there were.
var errCrowded = errors.New("too many come at once, and this was not among the first; send it again")

// read reads a body and takes a place among those that are judged, which answer leaves, unless there is an error.
func (h *Reviews) read(w http.ResponseWriter, r *http.Request) (body []byte, status int, err error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	stream := http.NewResponseController(w)
	_ = stream.SetReadDeadline(time.Now().Add(bodyTimeout)) // a recorder in a test has none
	leave := h.reading.Enter(fair.Address(r.RemoteAddr), func() {
		cancel(errCrowded)
		_ = stream.SetReadDeadline(time.Unix(1, 0))
	})
	defer leave()
	if body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax)); err == nil {
		select {
		case h.judging <- struct{}{}:
			leave()
			_ = stream.SetReadDeadline(time.Time{})
			return body, 0, nil
		case <-ctx.Done():
		}
	}
	cause := context.Cause(ctx)
	switch _, large := errors.AsType[*http.MaxBytesError](err); {
	case large:
		return nil, http.StatusRequestEntityTooLarge, err
	case errors.Is(cause, errCrowded):
		return nil, http.StatusServiceUnavailable, cause
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, http.StatusRequestTimeout, fmt.Errorf("it did not come within %s: %w", bodyTimeout, err)
	case cause != nil: // the client has gone
		return nil, http.StatusBadRequest, cause
	}
	return nil, http.StatusBadRequest, err
}

// answer answers a review that has a place among those that are judged, and leaves it.
func (h *Reviews) answer(r *http.Request, body []byte) ([]byte, error) {
	defer func() { <-h.judging }()
	return h.review(r, body)
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
