package main

import (
	"fmt"
	"net/http"
	"time"
)

// The bounds of the strip that tells what happened.
const (
	stepsMax     = 16
	stepsDeepest = 3
	barLeast     = 0.8 // percent, so that the shortest call can be seen
)

// bookView is what the product page's template shows.
type bookView struct {
	User string
	Book product

	Details        *bookDetails // nil when DetailsFailure says why
	DetailsFailure string
	DetailsBy      *hop

	Reviews        []reviewView // empty when ReviewsFailure says why
	ReviewsFailure string
	ReviewsBy      *hop

	Steps []step
}

// reviewView is a review with its stars ready to draw.
type reviewView struct {
	Reviewer, Text string
	Rated          bool // whether there is a row of stars
	Stars          int
	Row            [starsMax]bool // which of the stars are filled
	Color          string         // black or red
	Error          string         // in place of stars
}

// step is one line of the strip: the page itself, or a call.
type step struct {
	Depth   int
	Service string
	By      *hop
	Nobody  string // in place of By, when nobody said to have answered
	Outcome string
	Failed  bool
	Took    string
	Start   float64 // of the bar, in percent of the page's whole time
	Width   float64 // likewise
}

// setDetails shows the answer of details.
func (b *bookView) setDetails(asked call, about bookDetails) {
	b.DetailsBy = asked.By
	if asked.Failure != "" {
		b.DetailsFailure = sentence(asked)
		return
	}
	b.Details = &about
}

// setReviews shows the answer of reviews.
func (b *bookView) setReviews(asked call, set reviewSet) {
	b.ReviewsBy = asked.By
	if asked.Failure != "" {
		b.ReviewsFailure = sentence(asked)
		return
	}
	if b.ReviewsBy == nil && set.Pod != "" {
		b.ReviewsBy = &hop{Service: reviews, Pod: set.Pod}
	}
	for _, r := range set.Reviews {
		b.Reviews = append(b.Reviews, viewReview(r))
	}
}

// viewReview makes a review ready to draw. Numbers and colors come from
// another service: what does not fit is brought into range.
func viewReview(r review) reviewView {
	view := reviewView{Reviewer: r.Reviewer, Text: r.Text}
	if r.Rating == nil {
		return view
	}
	if r.Rating.Error != "" {
		view.Error = r.Rating.Error
		return view
	}
	view.Rated, view.Color = true, "black"
	if r.Rating.Color == "red" {
		view.Color = "red"
	}
	view.Stars = min(max(r.Rating.Stars, 0), starsMax)
	for i := range view.Stars {
		view.Row[i] = true
	}
	return view
}

// sentence tells a reader why a backend's part is missing.
func sentence(c call) string {
	switch c.Failure {
	case late:
		return "The service did not answer in time."
	case refused:
		return fmt.Sprintf("The answer was %d %s.", c.Status, http.StatusText(c.Status))
	case unreadable:
		return "The service answered with something that this page cannot read."
	default:
		return "The service could not be reached."
	}
}

// setSteps fills the strip from the visit's trail.
func (b *bookView) setSteps(v *visit) {
	whole := max(time.Since(v.began).Microseconds(), 1)
	b.Steps = append(b.Steps, step{Service: v.self.Service, By: &v.self, Outcome: "200", Took: took(whole), Width: 100})
	b.addSteps(&v.self, 1, 0, whole)
}

// addSteps adds the calls of h, which began start microseconds into the visit,
// and beneath each the calls that it led to.
func (b *bookView) addSteps(h *hop, depth int, start, whole int64) {
	if depth > stepsDeepest {
		return
	}
	for _, c := range h.Calls {
		if len(b.Steps) == stepsMax {
			return
		}
		from := min(max(start+c.StartMicros, 0), whole)
		length := min(max(c.Micros, 0), whole-from)
		b.Steps = append(b.Steps, step{
			Depth: depth, Service: c.Service, By: c.By, Nobody: nobody(c), Outcome: outcome(c), Failed: c.Failure != "",
			Took: took(c.Micros), Start: min(percent(from, whole), 100-barLeast), Width: max(percent(length, whole), barLeast),
		})
		if c.By != nil {
			b.addSteps(c.By, depth+1, from, whole)
		}
	}
}

// outcome is a call's result in a word or two.
func outcome(c call) string {
	switch c.Failure {
	case late:
		return "timed out"
	case unreachable:
		return "no connection"
	case unreadable:
		return "unreadable"
	default:
		return fmt.Sprint(c.Status)
	}
}

// nobody tells what is known of who answered a call when no service said so.
func nobody(c call) string {
	switch {
	case c.Status == 0:
		return "nobody answered"
	case c.Failure == refused:
		return "a proxy answered, it seems"
	default:
		return ""
	}
}

// percent is part of whole, in percent, of which whole is at least 1.
func percent(part, whole int64) float64 {
	return float64(part*1000/whole) / 10
}

// took is a duration for people: 0.4 ms, 12 ms, 3.0 s.
func took(micros int64) string {
	switch {
	case micros < 10_000:
		return fmt.Sprintf("%.1f ms", float64(micros)/1000)
	case micros < 1_000_000:
		return fmt.Sprintf("%d ms", micros/1000)
	default:
		return fmt.Sprintf("%.1f s", float64(micros)/1e6)
	}
}
