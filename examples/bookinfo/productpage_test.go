package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestPage(t *testing.T) {
	for version, want := range map[string][]string{
		"v1": {"!stars black", "!stars red", "!ratings-pod"},
		"v2": {`aria-label="5 of 5 black stars"`, `aria-label="4 of 5 black stars"`, "!red stars", "ratings-pod"},
		"v3": {`aria-label="5 of 5 red stars"`, `aria-label="4 of 5 red stars"`, "!black stars", "ratings-pod"},
	} {
		t.Run(version, func(t *testing.T) {
			page := get(bookinfo(t, version, 0)["productpage:9080"], "/productpage")
			want = append(want, "The Comedy of Errors", "William Shakespeare, 1594", "978-0-00-000000-2",
				"served by <b>reviews "+version+"</b> <span>reviews-pod</span>",
				"served by <b>details v1</b> <span>details-pod</span>", "productpage-pod", "!Error fetching", "Sign in")
			wantBody(t, page, http.StatusOK, want...)
		})
	}
}

// TestDelayFault is the fault-injection task that the timeouts are made for.
func TestDelayFault(t *testing.T) {
	for _, tc := range []struct {
		name    string
		version string
		delay   time.Duration
		took    time.Duration
		want    []string
	}{
		{"2 s goes unnoticed", "v2", 2 * time.Second, 2 * time.Second, []string{"5 of 5 black stars", "!Error fetching"}},
		{
			"7 s costs v2 its reviews", "v2", 7 * time.Second, 6 * time.Second,
			[]string{"Error fetching product reviews", "did not answer in time", "!Reviewer1", "details-pod"},
		},
		{
			"7 s costs v3 its stars", "v3", 7 * time.Second, 2500 * time.Millisecond,
			[]string{"Ratings service is currently unavailable", "Reviewer1", "!Error fetching", "timed out"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				page := get(bookinfo(t, tc.version, tc.delay)["productpage:9080"], "/productpage")
				if took := time.Since(began); took != tc.took {
					t.Errorf("the page came after %v, want %v", took, tc.took)
				}
				wantBody(t, page, http.StatusOK, tc.want...)
			})
		})
	}
}

func TestPageWithoutBackends(t *testing.T) {
	for _, tc := range []struct {
		name    string
		backend http.Handler // of details and reviews; nil: nobody there
		want    string
		step    string
	}{
		{"nobody there", nil, "The service could not be reached.", "nobody answered"},
		{
			"refused on the way", says(http.StatusServiceUnavailable, "no healthy upstream"),
			"The answer was 503 Service Unavailable.", "a proxy answered, it seems",
		},
		{"forbidden", says(http.StatusForbidden, "RBAC: access denied"), "The answer was 403 Forbidden.", ">403<"},
		{"redirect", says(http.StatusFound, ""), "The answer was 302 Found.", ">302<"},
		{"no JSON", says(http.StatusOK, "<html>"), "something that this page cannot read", "unreadable"},
		{"wrong JSON", says(http.StatusOK, `{"id":[],"reviews":7}`), "something that this page cannot read", "unreadable"},
		{"endless", says(http.StatusOK, strings.Repeat(" ", bodyMaxBytes+1)), "something that this page cannot read", "unreadable"},
		{"silent", silent, "The service did not answer in time.", "timed out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := world{}
				if tc.backend != nil {
					w["details:9080"], w["reviews:9080"] = tc.backend, tc.backend
				}
				answer := get(w.start(t, Config{Service: productpage, PageTimeout: time.Second}), "/productpage")
				wantBody(t, answer, http.StatusOK, "The Comedy of Errors", "Error fetching product details",
					"Error fetching product reviews", tc.want, tc.step)
				if calls := readTrail(answer.Header().Get(trailHeader)).Calls; len(calls) != 3 {
					t.Errorf("the page made %d calls, want details once and reviews twice: %+v", len(calls), calls)
				}
			})
		})
	}
}

func TestSecondTryOfReviews(t *testing.T) {
	w := bookinfo(t, "v3", 0)
	next := w["reviews:9080"]
	var calls atomic.Int32
	w["reviews:9080"] = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(rw, r)
	})
	wantBody(t, get(w["productpage:9080"], "/productpage"), http.StatusOK, "5 of 5 red stars", ">503<", "!Error fetching")
	if n := calls.Load(); n != 2 {
		t.Errorf("reviews was asked %d times, want 2", n)
	}
}

func TestHostileAnswers(t *testing.T) {
	const evil = `<script>alert(1)</script>`
	w := world{
		"details:9080": says(http.StatusOK, `{"author":"`+evil+`","publisher":"`+evil+`","ISBN-10":"`+evil+`"}`),
		"reviews:9080": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(trailHeader, `{"service":"`+evil+`","version":"`+evil+`","pod":"`+evil+`",`+
				`"calls":[{"service":"`+evil+`","start_us":9223372036854775807,"us":-9,"failure":"`+evil+`"}]}`)
			_, _ = w.Write([]byte(`{"reviews":[
				{"reviewer":"` + evil + `","text":"` + evil + `","rating":{"stars":99,"color":"red\" onload=\"x"}},
				{"reviewer":"b","text":"t","rating":{"stars":-7,"color":"red"}},
				{"reviewer":"c","text":"t","rating":{"error":"` + evil + `"}}]}`))
		}),
	}
	page := get(w.start(t, Config{Service: productpage}), "/productpage", "Cookie", "user=%3Cscript%3Ealert(1)%3C%2Fscript%3E")
	wantBody(t, page, http.StatusOK, "!<script", "!onload", "!99 of 5", "!-7", "5 of 5 black stars", "0 of 5 red stars",
		"Signed in as <strong>&lt;script&gt;alert(1)&lt;/script&gt;</strong>", "<blockquote>&lt;script&gt;")
	if policy := page.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("content security policy is %q", policy)
	}
}

func TestStripIsBounded(t *testing.T) {
	many := hop{Service: reviews}
	for range 100 {
		many.Calls = append(many.Calls, call{Service: ratings, Status: http.StatusOK})
	}
	v := &visit{began: time.Now(), self: hop{Calls: []call{{Service: reviews, By: &many}}}}
	var view bookView
	view.setSteps(v)
	if len(view.Steps) != stepsMax {
		t.Errorf("%d steps, want %d", len(view.Steps), stepsMax)
	}

	deep := &hop{Service: ratings}
	for range 50 {
		deep = &hop{Service: reviews, Calls: []call{{Service: ratings, By: deep}}}
	}
	view = bookView{}
	view.setSteps(&visit{began: time.Now(), self: *deep})
	if len(view.Steps) != 1+stepsDeepest {
		t.Errorf("%d steps of a deep trail, want %d", len(view.Steps), 1+stepsDeepest)
	}
}

func TestLogin(t *testing.T) {
	users := make(chan string, 1)
	w := bookinfo(t, "v1", 0)
	next := w["reviews:9080"]
	w["reviews:9080"] = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		users <- r.Header.Get("end-user")
		next.ServeHTTP(rw, r)
	})
	page := w["productpage:9080"]
	for _, tc := range []struct{ typed, cookie, name, shown string }{
		{"username=jason", "user=jason", "jason", "jason"},
		{"username=beta-ann&password=ignored", "user=beta-ann", "beta-ann", "beta-ann"},
		{"username=+a%3B+%22b%22+", "user=a%3B+%22b%22", `a; "b"`, "a; &#34;b&#34;"},
	} {
		login := post(page, "/login", "application/x-www-form-urlencoded", tc.typed)
		wantRedirect(t, login, tc.cookie+"; Path=/; HttpOnly; SameSite=Lax")
		wantBody(t, get(page, "/productpage", "Cookie", tc.cookie), http.StatusOK,
			"Signed in as <strong>"+tc.shown+"</strong>", "Sign out", "!Sign in<")
		if got := <-users; got != tc.name {
			t.Errorf("reviews heard of user %q, want %q", got, tc.name)
		}
	}
	wantRedirect(t, get(page, "/logout", "Cookie", "user=jason"), "user=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
	wantBody(t, get(page, "/productpage"), http.StatusOK, "Sign in<", "!Signed in as")
	if got := <-users; got != "" {
		t.Errorf("after logout reviews heard of user %q", got)
	}
}

func wantRedirect(t *testing.T, answer *httptest.ResponseRecorder, cookie string) {
	t.Helper()
	if answer.Code != http.StatusSeeOther || answer.Header().Get("Location") != "/productpage" {
		t.Errorf("got %d to %q, want 303 to /productpage", answer.Code, answer.Header().Get("Location"))
	}
	if got := answer.Header().Get("Set-Cookie"); got != cookie {
		t.Errorf("cookie %q, want %q", got, cookie)
	}
}

func TestRefusedNames(t *testing.T) {
	page := bookinfo(t, "v1", 0)["productpage:9080"]
	for _, name := range []string{"", "+", "a%0D%0Ab", "a%00", "J%C3%BCrgen", strings.Repeat("x", userMaxBytes+1)} {
		answer := post(page, "/login", "application/x-www-form-urlencoded", "username="+name)
		wantBody(t, answer, http.StatusBadRequest, "printable ASCII")
		wantBody(t, get(page, "/productpage", "Cookie", "user="+name), http.StatusOK, "!Signed in as")
	}
	long := post(page, "/login", "application/x-www-form-urlencoded", "pad="+strings.Repeat("x", formMaxBytes)+"&username=a")
	wantBody(t, long, http.StatusBadRequest)
	wantBody(t, get(page, "/login"), http.StatusMethodNotAllowed)
}

func TestPageAPI(t *testing.T) {
	w := bookinfo(t, "v3", 0)
	page := w["productpage:9080"]
	for path, want := range map[string]string{
		"/api/v1/products":           `"title":"The Comedy of Errors"`,
		"/api/v1/products/0":         `"author":"William Shakespeare"`,
		"/api/v1/products/0/reviews": `"rating":{"stars":5,"color":"red"}`,
		"/api/v1/products/7/ratings": `{"id":7,"ratings":{"Reviewer1":5,"Reviewer2":4}}`,
	} {
		answer := get(page, path)
		wantBody(t, answer, http.StatusOK, want)
		if kind := answer.Header().Get("Content-Type"); kind != "application/json" {
			t.Errorf("%s has content type %q", path, kind)
		}
	}
	for _, path := range []string{"/api/v1/products/x", "/api/v1/products/-1/reviews", "/api/v1/products/1234567890/ratings"} {
		wantBody(t, get(page, path), http.StatusBadRequest, `{"error":"the product id must be a number"}`)
	}
	w["ratings:9080"] = says(http.StatusForbidden, "RBAC: access denied")
	wantBody(t, get(page, "/api/v1/products/0/ratings"), http.StatusForbidden, `{"error":"product ratings are currently unavailable"}`)
	delete(w, "details:9080")
	wantBody(t, get(page, "/api/v1/products/0"), http.StatusInternalServerError, `{"error":"product details are currently unavailable"}`)
}

func TestOtherPaths(t *testing.T) {
	page := bookinfo(t, "v1", 0)["productpage:9080"]
	wantBody(t, get(page, "/"), http.StatusOK, "<title>Bookinfo</title>", "/productpage")
	wantBody(t, get(page, "/static/bookinfo.css"), http.StatusOK, "prefers-color-scheme")
	wantBody(t, get(page, "/static/cover.svg"), http.StatusOK, "<svg")
	wantBody(t, get(page, "/health"), http.StatusOK, `{"status":"productpage is healthy"}`)
	for _, path := range []string{"/static/", "/static/none.css", "/static/..%2Ftemplates%2Fhome.html", "/nothing"} {
		if answer := get(page, path); answer.Code == http.StatusOK {
			t.Errorf("%s answers 200", path)
		}
	}
}

// TestNoOutsideResources holds the page to what this service itself serves.
func TestNoOutsideResources(t *testing.T) {
	page := bookinfo(t, "v3", 0)["productpage:9080"]
	for _, path := range []string{"/", "/productpage", "/static/bookinfo.css"} {
		wantBody(t, get(page, path), http.StatusOK, "!http://", "!https://", "!@import", "!url(", "!style=", "!<script")
	}
}
