package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestDetails(t *testing.T) {
	h := world{}.start(t, Config{Service: details})
	wantBody(t, get(h, "/details/3"), http.StatusOK, `{"id":3,"author":"William Shakespeare","year":1594,"type":"paperback"`,
		`"ISBN-10":"0-00-000000-0"`)
	wantBody(t, get(h, "/details/three"), http.StatusBadRequest, `{"error":`)
	wantBody(t, get(h, "/health"), http.StatusOK, `{"status":"details is healthy"}`)
	wantBody(t, get(h, "/productpage"), http.StatusNotFound)
}

func TestReviews(t *testing.T) {
	for version, want := range map[string][]string{
		"v1": {`"id":"0"`, `"podname":"reviews-pod"`, `"clustername":"east"`, `"reviewer":"Reviewer1"`, "!rating"},
		"v2": {`"rating":{"stars":5,"color":"black"}`, `"rating":{"stars":4,"color":"black"}`},
		"v3": {`"rating":{"stars":5,"color":"red"}`, `"rating":{"stars":4,"color":"red"}`},
	} {
		wantBody(t, get(bookinfo(t, version, 0)["reviews:9080"], "/reviews/0"), http.StatusOK, want...)
	}
	h := world{}.start(t, Config{Service: reviews})
	wantBody(t, get(h, "/reviews/x"), http.StatusBadRequest)
	wantBody(t, get(h, "/health"), http.StatusOK, `{"status":"reviews is healthy"}`)
}

func TestReviewsWithoutRatings(t *testing.T) {
	const down = `"rating":{"error":"Ratings service is currently unavailable"}`
	for _, tc := range []struct {
		name    string
		backend http.Handler
		want    []string
	}{
		{"silent", silent, []string{down}},
		{"status", says(http.StatusInternalServerError, "fault filter abort"), []string{down}},
		{"no JSON", says(http.StatusOK, "nope"), []string{down}},
		{
			"one reviewer", says(http.StatusOK, `{"ratings":{"Reviewer2":1}}`),
			[]string{`"rating":{"error":"Not rated by this reader"}`, `"rating":{"stars":1,"color":"black"}`},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world{"ratings:9080": tc.backend}
				h := w.start(t, Config{Service: reviews, Version: "v2", RatingsTimeout: time.Second})
				wantBody(t, get(h, "/reviews/0"), http.StatusOK, tc.want...)
			})
		})
	}
}

func TestRatings(t *testing.T) {
	h := world{}.start(t, Config{Service: ratings})
	wantBody(t, get(h, "/ratings/0"), http.StatusOK, `{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}`)
	wantBody(t, post(h, "/ratings/0", "application/json", `{"Reviewer1":1}`), http.StatusOK, `{"id":0,"ratings":{"Reviewer1":1}}`)
	wantBody(t, get(h, "/ratings/0"), http.StatusOK, `{"id":0,"ratings":{"Reviewer1":1}}`)
	wantBody(t, get(h, "/ratings/1"), http.StatusOK, `"Reviewer1":5`)
	wantBody(t, get(h, "/ratings/x"), http.StatusBadRequest)
	wantBody(t, get(h, "/health"), http.StatusOK, `{"status":"ratings is healthy"}`)
}

func TestRatingsRefuses(t *testing.T) {
	h := world{}.start(t, Config{Service: ratings})
	crowd := "{"
	for i := range ratersMax + 1 {
		crowd += fmt.Sprintf(`"r%d":3,`, i)
	}
	for _, body := range []string{
		"", "null", "{}", "[5]", `{"a":6}`, `{"a":0}`, `{"a":"5"}`, `{"":5}`, `{"` + strings.Repeat("a", raterMaxBytes+1) + `":5}`,
		strings.TrimSuffix(crowd, ",") + "}", `{"a":5` + strings.Repeat(" ", ratingsMaxBytes) + "}",
	} {
		wantBody(t, post(h, "/ratings/0", "application/json", body), http.StatusBadRequest, "ratings of 1 to 5 stars")
	}
	for id := range ratedProductsMax {
		if answer := post(h, fmt.Sprint("/ratings/", id), "application/json", `{"a":5}`); answer.Code != http.StatusOK {
			t.Fatalf("product %d: status %d", id, answer.Code)
		}
	}
	wantBody(t, post(h, "/ratings/5000", "application/json", `{"a":5}`), http.StatusInsufficientStorage)
	wantBody(t, post(h, "/ratings/7", "application/json", `{"a":4}`), http.StatusOK)
}

func TestRatingsConcurrently(t *testing.T) {
	h := world{}.start(t, Config{Service: ratings})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			post(h, "/ratings/0", "application/json", `{"Reviewer1":3,"Reviewer2":2}`)
			get(h, "/ratings/0")
		})
	}
	wg.Wait()
	wantBody(t, get(h, "/ratings/0"), http.StatusOK, `{"Reviewer1":3,"Reviewer2":2}`)
}
