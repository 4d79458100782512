package main

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCarriedHeaders follows the headers of one request over two calls.
func TestCarriedHeaders(t *testing.T) {
	incoming := http.Header{
		"X-Request-Id": {"r1"}, "X-B3-Traceid": {"t"}, "X-B3-Spanid": {"s"}, "X-B3-Parentspanid": {"p"}, "X-B3-Sampled": {"1"},
		"X-B3-Flags": {"0"}, "B3": {"t-s-1"}, "Traceparent": {"00-a-b-01"}, "Tracestate": {"a=1", "b=2"},
		"X-Ot-Span-Context": {"ot"}, "X-Cloud-Trace-Context": {"c"}, "Grpc-Trace-Bin": {"g"}, "Sw8": {"w"},
		"X-Datadog-Trace-Id": {"1"}, "X-Datadog-Parent-Id": {"2"}, "X-Datadog-Sampling-Priority": {"1"},
		"User-Agent": {"test"}, "Cookie": {"user=jason; canary=on"}, "Authorization": {"Bearer x"}, "Jwt": {"y"},
	}
	sent := incoming.Clone()
	sent["End-User"] = []string{"somebody-else"}
	sent["X-Forwarded-For"] = []string{"10.0.0.1"}
	sent["Accept-Language"] = []string{"de"}

	w := bookinfo(t, "v2", 0)
	next := w["ratings:9080"]
	heard := make(chan http.Header, 1)
	w["ratings:9080"] = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		heard <- r.Header.Clone()
		next.ServeHTTP(rw, r)
	})
	var pairs []string
	for name, values := range sent {
		for _, value := range values {
			pairs = append(pairs, name, value)
		}
	}
	wantBody(t, get(w["productpage:9080"], "/productpage", pairs...), http.StatusOK, "5 of 5 black stars")
	want := incoming.Clone()
	want["End-User"] = []string{"jason"} // Decided by the page's session, not by the browser's header.
	if diff := cmp.Diff(want, <-heard); diff != "" {
		t.Errorf("headers at ratings (-want +got):\n%s", diff)
	}

	wantBody(t, get(w["productpage:9080"], "/productpage", "End-User", "jason"), http.StatusOK)
	if got := (<-heard).Values("End-User"); got != nil {
		t.Errorf("without a session ratings heard of user %q", got)
	}
}

func TestTrail(t *testing.T) {
	answer := get(bookinfo(t, "v2", 0)["productpage:9080"], "/productpage")
	got := readTrail(answer.Header().Get(trailHeader))
	want := &hop{Service: productpage, Version: "v1", Pod: "productpage-pod", Calls: []call{
		{Service: details, Status: 200, By: &hop{Service: details, Version: "v1", Pod: "details-pod"}},
		{Service: reviews, Status: 200, By: &hop{Service: reviews, Version: "v2", Pod: "reviews-pod", Calls: []call{
			{Service: ratings, Status: 200, By: &hop{Service: ratings, Version: "v1", Pod: "ratings-pod"}},
		}}},
	}}
	timeless := cmp.FilterPath(func(p cmp.Path) bool {
		return p.Last().String() == ".StartMicros" || p.Last().String() == ".Micros"
	}, cmp.Ignore())
	if diff := cmp.Diff(want, got, timeless); diff != "" {
		t.Errorf("trail (-want +got):\n%s", diff)
	}
}

// FuzzTrail feeds the page whatever a backend could send as its trail and answer.
func FuzzTrail(f *testing.F) {
	f.Add(hop{Service: reviews, Version: "v1", Pod: "p", Calls: []call{{Service: ratings, Micros: 7, Failure: late}}}.encode(),
		`{"id":"0","podname":"p","reviews":[{"reviewer":"a","text":"b","rating":{"stars":3,"color":"red"}}]}`)
	f.Add(`{"service":"x","calls":[{"start_us":-1,"us":9223372036854775807,"by":{"service":"y"}}]}`, `{"reviews":[{"rating":{}}]}`)
	f.Add("{", "null")
	f.Fuzz(func(t *testing.T, trail, body string) {
		w := world{"reviews:9080": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(trailHeader, trail)
			_, _ = w.Write([]byte(body))
		})}
		page := get(w.start(t, Config{Service: productpage}), "/productpage")
		wantBody(t, page, http.StatusOK, "!<script", "!<iframe", "What just happened")
	})
}
