package kubelife

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/deploy"
	"github.com/lateen-mesh/lateen/test/kubemesh"
)

// rig is the mesh, and the clients that send requests all the time.
type rig struct {
	*kubemesh.Mesh
	client *http.Client
	// anchor is the node where the clients are, victim the one that is killed.
	anchor, victim string
	// root is what pods are given as roots at first.
	root string
}

// report is what load tells of the requests of one name; see there.
type report struct {
	Requests, Failures int
	Slowest            time.Duration
	First, Last        *failure
}

type failure struct {
	At           time.Time
	Took         time.Duration
	Status       int
	Reason, Text string
}

func (f *failure) String() string {
	return fmt.Sprintf("at %s after %v: status %d, reason %q: %s", f.At.Format(time.StampMilli), f.Took.Round(time.Millisecond), f.Status, f.Reason, f.Text)
}

// clients are the pods that send requests, by namespace.
var clients = map[string]string{"shop": "inside", "outside": "outside"}

// reports asks the clients what became of their requests since they were asked last.
func (r *rig) reports() map[string]report {
	r.Helper()
	all := map[string]report{}
	for namespace, pod := range clients {
		address := r.Do("get", "pod", "-n", namespace, pod, "-o", "jsonpath={.status.podIP}")
		response, err := r.client.Get("http://" + address + ":8080/report")
		if err != nil {
			r.Broken(err)
		}
		names := map[string]report{}
		if err := json.NewDecoder(response.Body).Decode(&names); err != nil {
			r.Broken(err)
		}
		_ = response.Body.Close()
		for name, of := range names {
			all[pod+" "+name] = of
		}
	}
	return all
}

// flow waits until so many requests of each name have been answered, and returns all that became of requests meanwhile.
func (r *rig) flow(n int) map[string]report {
	r.Helper()
	sum := map[string]report{}
	r.Await("requests flow", func() string {
		var lacking []string
		for name, of := range r.reports() {
			s := sum[name]
			if s.First == nil {
				s.First = of.First
			}
			if of.Last != nil {
				s.Last = of.Last
			}
			s.Requests, s.Failures, s.Slowest = s.Requests+of.Requests, s.Failures+of.Failures, max(s.Slowest, of.Slowest)
			sum[name] = s
			if s.Requests-s.Failures < n {
				lacking = append(lacking, fmt.Sprintf("%s: %+v", name, s))
			}
		}
		return strings.Join(lacking, "; ")
	})
	return sum
}

// quiet waits until all requests that are sent succeed, and forgets those before.
func (r *rig) quiet() {
	r.Helper()
	r.Await("no request fails", func() string {
		for name, of := range r.flow(20) {
			if of.Failures > 0 {
				return fmt.Sprintf("%s: %d of %d, the last one %v", name, of.Failures, of.Requests, of.Last)
			}
		}
		return ""
	})
}

// during does something while requests are sent, and goes on until some more were answered. What has failed since the last
// step's end must be permitted; nil permits nothing.
func (r *rig) during(what string, do func(), permitted func(name string, of report) bool) {
	r.Helper()
	r.Step(what, do)
	all := r.flow(20)
	requests, failures, slowest := 0, 0, time.Duration(0)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		of := all[name]
		requests, failures, slowest = requests+of.Requests, failures+of.Failures, max(slowest, of.Slowest)
		switch {
		case of.Failures == 0:
		case permitted != nil && permitted(name, of):
			r.Logf("%s: %s: %d of %d requests failed, as some may\n\tthe first %v", what, name, of.Failures, of.Requests, of.First)
		default:
			r.Errorf("%s: %s: %d of %d requests failed\n\tthe first %v\n\tthe last %v", what, name, of.Failures, of.Requests, of.First, of.Last)
			r.accesses(name, of.First.At)
		}
	}
	r.Logf("        %d requests, %d failed, the slowest took %v: %s", requests, failures, slowest.Round(time.Millisecond), what)
}

// accesses logs what the client's proxy, or the gateways, have written of requests that failed, from the first one on.
func (r *rig) accesses(name string, first time.Time) {
	r.Helper()
	args := []string{"logs", "--since-time=" + first.UTC().Format(time.RFC3339), "-n", "shop", "inside", "-c", "istio-proxy"}
	if strings.HasPrefix(name, "outside") {
		args = append(args[:2], "-n", deploy.Namespace, "-l", "istio=ingressgateway", "--tail=-1", "--prefix")
	}
	text, err := r.Kubectl(r.Context(), args...)
	if err != nil {
		r.Log(err)
	}
	const most = 5
	n := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, `" 50`) && n < most {
			n++
			r.Logf("\t%s", strings.TrimSpace(line))
		}
	}
}
