package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// report is what a headless demo prints.
type report struct {
	Requests  int     `json:"requests"`
	Failed    int     `json:"failed"`
	MTLSShare float64 `json:"mtls_share"`
	Edges     []struct {
		From, To, Version string
		Requests          int
		Share, Success    float64
		P50               float64 `json:"p50_ms"`
		MTLS              bool
	}
	Proxies []struct {
		Name string
		RSS  float64 `json:"rss_mib"`
	}
	ReadyMS  float64 `json:"ready_ms"`
	Statuses map[string]int
}

// share is the part of an edge's requests that went to a version.
func (r *report) share(from, to, version string) float64 {
	for _, e := range r.Edges {
		if e.From == from && e.To == to && e.Version == version {
			return e.Share
		}
	}
	return 0
}

// about checks a share against what the configuration says, within what chance allows for that many requests.
func about(t *testing.T, what string, got, want float64, n int) {
	t.Helper()
	slack := 5*math.Sqrt(want*(1-want)/float64(max(n, 1))) + 0.01
	if math.Abs(got-want) > slack {
		t.Errorf("%s: share %.3f of %d, want %.2f", what, got, n, want)
	}
}

// takesPart holds a share of three to a tenth: who is held up for a while gets less, as it should be.
func takesPart(t *testing.T, what string, got float64) {
	t.Helper()
	if got < 0.1 {
		t.Errorf("%s: share %.3f", what, got)
	}
}

// TestDemo holds the report of a demo to what Bookinfo and, half way, a route make of it.
func TestDemo(t *testing.T) {
	m := newRig(t, root(t))
	route := filepath.Join(bin, "..", "examples", "bookinfo", "networking", "virtual-service-all-v1.yaml")
	run := func(t *testing.T, wantCode int, args ...string) *report {
		t.Helper()
		out, errs, code := m.lateenStreams(append([]string{"demo", "--headless", "-o", "json", "--port", "0"}, args...)...)
		r := &report{}
		if err := json.Unmarshal([]byte(out), r); err != nil || code != wantCode {
			t.Fatalf("code %d, %v\n%s\n%s", code, err, out, errs)
		}
		t.Logf("%s", out)
		return r
	}
	t.Run("plain", func(t *testing.T) {
		r := run(t, 0, "--for", "6s", "--rate", "50")
		if r.Failed != 0 || r.MTLSShare != 1 || r.Requests < 100 || r.Statuses["200"] != r.Requests || r.ReadyMS <= 0 || len(r.Proxies) != 7 {
			t.Errorf("requests %d, failed %d, mtls share %v, statuses %v, ready after %v ms, %d proxies", r.Requests, r.Failed, r.MTLSShare, r.Statuses, r.ReadyMS, len(r.Proxies))
		}
		for _, v := range []string{"v1", "v2", "v3"} {
			takesPart(t, "reviews "+v, r.share("productpage", "reviews", v))
		}
		for _, e := range r.Edges {
			if !e.MTLS && e.From != "" && e.From != "client" || e.Success != 1 {
				t.Errorf("%+v", e)
			}
		}
	})
	t.Run("a route after some time", func(t *testing.T) {
		r := run(t, 0, "--for", "6s", "--rate", "50", "--apply-at", "2s", route)
		// A third at first, all afterwards; it may be in force late, and fewer may have been asked before.
		if share := r.share("productpage", "reviews", "v1"); r.Failed != 0 || share < 0.5 || share > 0.95 {
			t.Errorf("failed %d, share %v of reviews v1", r.Failed, share)
		}
	})
	t.Run("a mesh that does not work", func(t *testing.T) {
		r := run(t, 1, "--for", "1s", "--config", filepath.Join(bin, "..", "examples", "bookinfo", "policy", "authz-deny-all.yaml"))
		if r.Statuses["403"] == 0 || r.Statuses["200"] != 0 {
			t.Errorf("statuses %v, want 403 only", r.Statuses)
		}
	})
}

// bookinfo is a demo that runs on, and is asked by the test.
type bookinfo struct {
	*rig
	cmd   *exec.Cmd
	said  *buffer
	ended chan struct{}
	url   string
}

// startBookinfo starts a demo and returns when it answers.
func startBookinfo(t *testing.T, who account) *bookinfo {
	t.Helper()
	b := &bookinfo{rig: newRig(t, who), said: &buffer{}, ended: make(chan struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	b.url = "http://127.0.0.1:" + port
	b.cmd = b.command("demo", "--headless", "--for", "1h", "--rate", "2", "--port", port)
	b.cmd.Stdout, b.cmd.Stderr = b.said, b.said
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = b.cmd.Wait()
		close(b.ended)
	}()
	t.Cleanup(b.interrupt)
	eventually(t, "the demo is ready", func() error {
		if text := b.said.String(); !strings.Contains(text, "ready after") {
			return fmt.Errorf("it said %q", text)
		}
		return nil
	})
	return b
}

// interrupt ends the demo as Ctrl-C does.
func (b *bookinfo) interrupt() {
	_ = b.cmd.Process.Signal(os.Interrupt)
	b.wait()
}

func (b *bookinfo) wait() {
	select {
	case <-b.ended:
	case <-time.After(wait):
		b.t.Errorf("the demo does not end: %s", b.said)
		_ = b.cmd.Process.Kill()
		<-b.ended
	}
}

// hop is what a service of Bookinfo tells of a request.
type hop struct {
	Service string
	Version string
	Calls   []struct {
		Service string
		Micros  int64 `json:"us"`
		Status  int
		Failure string
		By      *hop
	}
}

// visit is one answered request.
type visit struct {
	status int
	reason string
	took   time.Duration
	page   hop
}

// ask asks for the product page, n times, some of them at once, as a user or as nobody.
func (b *bookinfo) ask(t *testing.T, n int, path, user string) []visit {
	t.Helper()
	out := make([]visit, n)
	client := &http.Client{Timeout: wait, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	room := make(chan struct{}, 8)
	var group sync.WaitGroup
	for i := range out {
		room <- struct{}{}
		group.Go(func() {
			defer func() { <-room }()
			v, err := b.once(client, path, user)
			if err != nil {
				t.Error(err)
			}
			out[i] = v
		})
	}
	group.Wait()
	return out
}

func (b *bookinfo) once(client *http.Client, path, user string) (visit, error) {
	req, err := http.NewRequest(http.MethodGet, b.url+path, nil) //nolint:noctx // The client has a timeout.
	if err != nil {
		return visit{}, err
	}
	if user != "" {
		req.AddCookie(&http.Cookie{Name: "user", Value: user})
	}
	began := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return visit{}, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	v := visit{status: res.StatusCode, reason: res.Header.Get("X-Lateen-Reason"), took: time.Since(began)}
	if text := res.Header.Get("Bookinfo-Trail"); err == nil && text != "" {
		err = json.Unmarshal([]byte(text), &v.page)
	}
	return v, err
}

// reviews are the answers of reviews to the page's calls: "v1", or the status of an answer that is not theirs.
func (v visit) reviews() []string {
	var out []string
	for _, c := range v.page.Calls {
		switch {
		case c.Service != "reviews":
		case c.By != nil:
			out = append(out, c.By.Version)
		default:
			out = append(out, fmt.Sprint(c.Status))
		}
	}
	return out
}

// page is the path of the product page.
const page = "/productpage"

// counted counts what reviews answered; every page must be whole.
func counted(t *testing.T, list []visit) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, v := range list {
		if r := v.reviews(); v.status != http.StatusOK || len(r) != 1 {
			t.Errorf("status %d (%s), reviews %v", v.status, v.reason, r)
		} else {
			out[r[0]]++
		}
	}
	return out
}

// served waits until reviews are answered as wanted by so many pages in a row.
func (b *bookinfo) served(t *testing.T, user string, n int, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("reviews for %q by %v", user, want), func() error {
		got := counted(t, b.ask(t, n, page, user))
		left := maps.Clone(got)
		for _, w := range want {
			delete(left, w)
		}
		if len(left) > 0 {
			return fmt.Errorf("served by %v", got)
		}
		return nil
	})
}

func TestExamples(t *testing.T) {
	t.Parallel()
	examples(t, startBookinfo(t, root(t)))
}

func TestExamplesAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	examples(t, startBookinfo(t, sailor(t)))
}

// examples applies one example after the other.
func examples(t *testing.T, b *bookinfo) {
	for _, tt := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"no route", b.noRoute},
		{"split", b.split},
		{"header", b.header},
		{"delay", b.delay},
		{"timeout", b.timeout},
		{"abort", b.abort},
		{"cookie", b.cookie},
		{"mirror", b.mirror},
		{"retry", b.retry},
		{"circuit breaker", b.breaker},
		{"strict", b.strict},
		{"authorization", b.authorization},
	} {
		t.Run(tt.name, tt.f)
	}
}

func (b *bookinfo) noRoute(t *testing.T) {
	const n = 300
	got := counted(t, b.ask(t, n, page, ""))
	for _, v := range []string{"v1", "v2", "v3"} {
		takesPart(t, v, float64(got[v])/n)
	}
}

func (b *bookinfo) split(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-90-10.yaml")
	b.served(t, "", 30, "v1", "v3")
	const n = 300
	got := counted(t, b.ask(t, n, page, ""))
	about(t, "v1", float64(got["v1"])/n, 0.9, n)
	about(t, "v3", float64(got["v3"])/n, 0.1, n)
}

func (b *bookinfo) header(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-test-v2.yaml")
	b.served(t, "jason", 30, "v2")
	b.served(t, "", 30, "v1")
	b.served(t, "ann", 30, "v1")
}

func (b *bookinfo) delay(t *testing.T) {
	b.applyExample("networking/virtual-service-ratings-test-delay.yaml")
	eventually(t, "the page gives up on reviews twice", func() error {
		v := b.ask(t, 1, page, "jason")[0]
		if calls := v.reviews(); v.status != http.StatusOK || len(calls) != 2 || v.took < 6*time.Second || v.took > 7*time.Second {
			return fmt.Errorf("status %d after %s, reviews %v", v.status, v.took, calls)
		}
		return nil
	})
	if v := b.ask(t, 1, page, "ann")[0]; v.took > 3*time.Second || strings.Join(v.reviews(), " ") != "v1" {
		t.Errorf("others: after %s, reviews %v", v.took, v.reviews())
	}
}

// timeout comes after delay.
func (b *bookinfo) timeout(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-timeout.yaml")
	eventually(t, "reviews time out twice", func() error {
		v := b.ask(t, 1, page, "jason")[0]
		if calls := strings.Join(v.reviews(), " "); v.status != http.StatusOK || calls != "504 504" || v.took < time.Second || v.took > 3*time.Second {
			return fmt.Errorf("status %d after %s, reviews %s", v.status, v.took, calls)
		}
		return nil
	})
	b.remove("VirtualService", "ratings")
}

func (b *bookinfo) abort(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-test-v2.yaml", "networking/virtual-service-ratings-test-abort.yaml")
	ratings := func(user string) (int, string) {
		for _, c := range b.ask(t, 1, page, user)[0].page.Calls {
			if c.Service == "reviews" && c.By != nil && len(c.By.Calls) > 0 {
				return c.By.Calls[0].Status, c.By.Version
			}
		}
		return 0, ""
	}
	eventually(t, "ratings are aborted for jason", func() error {
		if status, version := ratings("jason"); status != http.StatusInternalServerError || version != "v2" {
			return fmt.Errorf("status %d of ratings, asked by reviews %s", status, version)
		}
		return nil
	})
	b.remove("VirtualService", "ratings")
	b.remove("VirtualService", "reviews")
}

func (b *bookinfo) cookie(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-cookie.yaml")
	b.served(t, "beta-ann", 30, "v3")
	b.served(t, "ann", 30, "v1")
	b.served(t, "", 30, "v1")
	b.remove("VirtualService", "reviews")
}

// arrived is how many requests came to a sidecar, and how many of its connections' requests were not mutual TLS.
func (b *bookinfo) arrived(t *testing.T, name string) (requests, plain int) {
	t.Helper()
	_, text, err := b.unix(filepath.Join(b.run, "proxies", "default."+name+".sock"), http.MethodGet, "/edges", "")
	if err != nil {
		t.Fatal(err)
	}
	var edges []struct {
		Reporter string `json:"reporter"`
		Requests int    `json:"requests"`
		Plain    int    `json:"plain"`
	}
	if err := json.Unmarshal(text, &edges); err != nil {
		t.Fatal(err)
	}
	for _, e := range edges {
		if e.Reporter == "destination" {
			requests, plain = requests+e.Requests, plain+e.Plain
		}
	}
	return requests, plain
}

func (b *bookinfo) mirror(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-mirror.yaml")
	b.served(t, "", 30, "v1")
	first, _ := b.arrived(t, "reviews-v1")
	mirrored, _ := b.arrived(t, "reviews-v3")
	const n = 100
	if got := counted(t, b.ask(t, n, page, "")); got["v1"] != n {
		t.Errorf("served by %v", got)
	}
	eventually(t, "v3 got as many requests as v1", func() error {
		one, _ := b.arrived(t, "reviews-v1")
		three, _ := b.arrived(t, "reviews-v3")
		if one-first < n || three-mirrored < n {
			return fmt.Errorf("%d and %d requests", one-first, three-mirrored)
		}
		return nil
	})
	b.remove("VirtualService", "reviews")
}

// pause stops the processes of a version of reviews, so that they answer nothing, until the function that it returns is called.
func (b *bookinfo) pause(t *testing.T, version string) func() {
	t.Helper()
	var stopped []int
	all := processes()
	for _, pid := range b.children("bookinfo") {
		if strings.Contains(all[pid], "reviews --version "+version) {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			stopped = append(stopped, pid)
		}
	}
	if len(stopped) != 1 {
		t.Errorf("processes of reviews %s: %v", version, stopped)
	}
	return func() {
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

func (b *bookinfo) retry(t *testing.T) {
	b.applyExample("networking/virtual-service-reviews-retry.yaml")
	eventually(t, "the route is in force", func() error {
		_, text, err := b.unix(filepath.Join(b.run, "proxies", "default.productpage-v1.sock"), http.MethodGet, "/config?kind=route&text", "")
		if err == nil && !strings.Contains(string(text), "1s") {
			err = fmt.Errorf("routes:\n%s", text)
		}
		return err
	})
	defer b.pause(t, "v2")()
	late := 0
	for _, v := range b.ask(t, 24, page, "") {
		calls := v.reviews() // a page asks once more after 3 s
		if last := calls[max(len(calls)-1, 0):]; v.status != http.StatusOK || !slices.Contains([]string{"v1", "v3"}, strings.Join(last, "")) {
			t.Errorf("status %d after %s, reviews %v", v.status, v.took, calls)
		}
		if v.took > time.Second {
			late++
		}
	}
	if late == 0 {
		t.Error("no request was asked again")
	}
	b.remove("VirtualService", "reviews")
}

func (b *bookinfo) breaker(t *testing.T) {
	const path = "/api/v1/products/0/reviews"
	defer b.applyExample("networking/destination-rule-all.yaml")
	b.applyExample("networking/destination-rule-circuit-breaker.yaml", "networking/virtual-service-all-v1.yaml")
	resume := b.pause(t, "v1")
	defer resume()
	eventually(t, "some requests are refused at once while others wait", func() error {
		quick, late := 0, 0
		for _, v := range b.ask(t, 8, path, "") {
			if v.took > 2*time.Second {
				late++
			} else if v.status == http.StatusServiceUnavailable {
				quick++
			}
		}
		if quick == 0 || late == 0 {
			return fmt.Errorf("%d at once, %d late", quick, late)
		}
		return nil
	})
	resume()
	eventually(t, "the circuit is closed again", func() error {
		if v := b.ask(t, 1, path, "")[0]; v.status != http.StatusOK {
			return fmt.Errorf("status %d", v.status)
		}
		return nil
	})
	for _, s := range []string{"productpage", "details", "reviews", "ratings"} {
		b.remove("VirtualService", s)
	}
}

func (b *bookinfo) strict(t *testing.T) {
	b.applyExample("policy/peer-authentication-strict.yaml")
	counted(t, b.ask(t, 50, page, ""))
	for _, name := range []string{"productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"} {
		if requests, plain := b.arrived(t, name); plain != 0 || requests == 0 {
			t.Errorf("%s: %d of %d requests without mutual TLS", name, plain, requests)
		}
	}
}

func (b *bookinfo) authorization(t *testing.T) {
	b.applyExample("policy/authz-deny-all.yaml")
	eventually(t, "everything is denied", func() error {
		if v := b.ask(t, 1, page, "")[0]; v.status != http.StatusForbidden {
			return fmt.Errorf("status %d (%s)", v.status, v.reason)
		}
		return nil
	})
	b.applyExample("policy/authz-allow-productpage.yaml")
	eventually(t, "the page alone is allowed", func() error {
		v := b.ask(t, 1, page, "")[0]
		if calls := strings.Join(v.reviews(), " "); v.status != http.StatusOK || calls != "403" && calls != "403 403" {
			return fmt.Errorf("status %d (%s), reviews %s", v.status, v.reason, calls)
		}
		return nil
	})
	b.applyExample("policy/authz-allow-details.yaml", "policy/authz-allow-reviews.yaml", "policy/authz-allow-ratings.yaml")
	eventually(t, "everything that is needed is allowed", func() error {
		for _, v := range b.ask(t, 30, page, "") {
			for _, c := range v.page.Calls {
				if c.Status != http.StatusOK || c.By != nil && len(c.By.Calls) > 0 && c.By.Calls[0].Status != http.StatusOK {
					return fmt.Errorf("%+v", v)
				}
			}
		}
		return nil
	})
	v := b.ask(t, 1, "/api/v1/products/0/ratings", "")[0] // The page itself may not ask ratings.
	if v.status == http.StatusOK {
		t.Errorf("productpage got to ratings: %+v", v)
	}
}

// TestNothingIsLeft ends demos in the ways in which they end.
func TestNothingIsLeft(t *testing.T) {
	who := root(t)
	tests := []struct {
		name string
		end  func(t *testing.T, b *bookinfo)
	}{
		{"interrupted", func(_ *testing.T, b *bookinfo) { b.interrupt() }},
		{"terminated", func(_ *testing.T, b *bookinfo) { _ = b.cmd.Process.Signal(syscall.SIGTERM); b.wait() }},
		{"parent killed", func(_ *testing.T, b *bookinfo) { _ = b.cmd.Process.Kill(); b.wait() }},
		{"host killed", func(t *testing.T, b *bookinfo) {
			hosts := b.children("host")
			for pid, line := range processes() {
				if strings.HasSuffix(line, "lateen host") && parent(pid) == b.cmd.Process.Pid {
					hosts = append(hosts, pid)
				}
			}
			if len(hosts) != 1 {
				t.Fatalf("hosts %v of %v", hosts, processes())
			}
			if err := syscall.Kill(hosts[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			b.wait()
		}},
	}
	accounts := map[string]func(*testing.T) account{"root": func(*testing.T) account { return who }, "ordinary user": sailor}
	for user, account := range accounts {
		for _, tt := range tests {
			t.Run(user+" "+tt.name, func(t *testing.T) {
				links, mounted := listed(t, "/sys/class/net"), mounts(t)
				b := startBookinfo(t, account(t))
				tt.end(t, b)
				eventually(t, "nothing is left", func() error {
					if list := processes(); len(list) > 0 {
						return fmt.Errorf("processes %v", list)
					}
					if now := listed(t, "/sys/class/net"); now != links {
						return fmt.Errorf("links %s, before %s", now, links)
					}
					if now := mounts(t); now != mounted {
						return fmt.Errorf("namespaces are mounted:\n%s, before\n%s", now, mounted)
					}
					return nil // A namespace without process and mount does not exist.
				})
				if strings.HasSuffix(tt.name, "killed") {
					if out, code := b.lateen("demo", "--clean"); code != 0 {
						t.Errorf("clean: code %d: %s", code, out)
					}
				}
				if _, err := os.Stat(b.run); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the run directory is still there: %v", err)
				}
			})
		}
	}
}

// listed is what a folder holds.
func listed(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// mounts are the namespaces that something has mounted, which would keep them without a process.
func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " nsfs ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}
