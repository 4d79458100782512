package kubegateway

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
)

// owned are the kinds of what is deployed for a Gateway.
const owned = "deployment,service,serviceaccount,horizontalpodautoscaler,poddisruptionbudget"

// conditions of a Gateway that is in order, each with the generation it is about.
const conditions = `{range .status.conditions[*]}{.type}={.status}/{.observedGeneration} {end}`

const gateway = "gateways.gateway.networking.k8s.io/"

// address is the URL of a Gateway.
func (r *rig) address(name string) string {
	r.Helper()
	r.Do("wait", "-n", "edge", gateway+name, "--for=condition=Programmed", "--timeout=5m")
	return "http://" + r.field("edge", gateway+name, "{.status.addresses[0].value}")
}

// deployed: what runs a Gateway is there, ready, owned by it and told of in its status.
func (r *rig) deployed() {
	for _, x := range []struct{ name, deployed string }{{"front", "front-lateen"}, {"side", "side-istio"}} {
		r.Step("deploy "+x.name, func() { r.address(x.name) })
		generation := r.field("edge", gateway+x.name, "{.metadata.generation}")
		if got, want := r.field("edge", gateway+x.name, conditions), fmt.Sprintf("Accepted=True/%s Programmed=True/%[1]s", generation); got != want {
			r.Errorf("Gateway %s has the conditions %q, not %q", x.name, got, want)
		}
		if got, want := r.field("edge", gateway+x.name, "{.status.addresses[*].value}"), r.field("edge", "service/"+x.deployed, "{.status.loadBalancer.ingress[*].ip}"); got != want || got == "" {
			r.Errorf("Gateway %s has the addresses %q, its Service %q", x.name, got, want)
		}
		if got := r.field("edge", gateway+x.name, "{.status.listeners[*].attachedRoutes}"); (got != "2") != (x.name != "front") {
			r.Errorf("Gateway %s counts %s routes", x.name, got)
		}
		uid := r.field("edge", gateway+x.name, "{.metadata.uid}")
		text := r.Do("get", owned, "-n", "edge", "-l", "gateway.networking.k8s.io/gateway-name="+x.name,
			"-o", "jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.ownerReferences[*].uid} {.metadata.labels.team}\n{end}")
		var got, want []string
		for line := range strings.Lines(text) {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		team := map[string]string{"side": " shop"}[x.name]
		for _, kind := range []string{"Deployment", "Service", "ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget"} {
			want = append(want, fmt.Sprintf("%s %s %s%s", kind, x.deployed, uid, team))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.Errorf("what is deployed for %s (-want +got):\n%s", x.name, diff)
		}
	}
	const image = "{.items[*].spec.containers[?(@.name=='istio-proxy')].image}"
	if got := r.Do("get", "pods", "-n", "edge", "-o", "jsonpath="+image); strings.Contains(got, "auto") || got == "" {
		r.Errorf("the gateways' pods have the images %q", got)
	}
}

// rights: beside the policy of the examples lateend has no power over what it has not made, nor over more than it makes.
func (r *rig) rights() {
	const lateend = "--as=system:serviceaccount:istio-system:lateend"
	mark := filepath.Join(r.TempDir(), "mark.yaml")
	if err := os.WriteFile(mark, []byte("{apiVersion: v1, kind: Service, metadata: {name: v1, namespace: shop, labels: {lateen.dev/managed: gateway}}}"), 0o600); err != nil {
		r.Fatal(err)
	}
	for _, x := range []struct {
		name string
		args []string
	}{
		{"delete another's", []string{"delete", "-n", "shop", "deployment/v1"}},
		{"put its mark on another's", []string{"apply", "--server-side", "-f", mark}},
		{"make something else", []string{"create", "-n", "shop", "serviceaccount", "other"}},
	} {
		out, err := r.Kubectl(r.Context(), append(x.args, lateend, "--dry-run=server")...)
		if err == nil || !strings.Contains(err.Error(), "lateend-gateways") {
			r.Errorf("lateend may %s: %s, %v", x.name, out, err)
		}
	}
	// That it may do with its own what it must, the other parts show.
}

// examples: the API server and lateend take what users are shown.
func (r *rig) examples() {
	r.Put("{apiVersion: v1, kind: Namespace, metadata: {name: testers}}")
	for _, name := range []string{"edge.yaml", "mesh.yaml"} {
		r.Do("apply", "--dry-run=server", "-f", examples+name)
	}
}

// routes: the rules of an HTTPRoute are obeyed by the gateways of both classes.
func (r *rig) routes() {
	for _, name := range []string{"front", "side"} {
		address := r.address(name)
		r.Await("the routes are in force", func() string {
			a, err := get(r.client, address, "shop.example", "/")
			if err != nil || a.Status != http.StatusOK {
				return fmt.Sprintf("status %d, %v", a.Status, err)
			}
			return ""
		})
		r.rules(address)
	}
}

func (r *rig) rules(address string) {
	is := func(version string) func(answer) string {
		return func(a answer) string {
			if a.Status != http.StatusOK || a.version() != version {
				return "answered by " + a.Pod
			}
			return ""
		}
	}
	status := func(want int) func(answer) string {
		return func(a answer) string {
			if a.Status != want {
				return "another status"
			}
			return ""
		}
	}
	for _, x := range []struct {
		name, host, path string
		fields           []string
		wrong            func(answer) string
	}{
		{"all others", "shop.example", "/some/path", nil, is("v1")},
		{"a header", "shop.example", "/some/path", []string{"Version: second"}, is("v2")},
		{"an exact path", "shop.example", "/exact", nil, is("v2")},
		{"a longer path", "shop.example", "/exact/longer", nil, is("v1")},
		{"a host of no route", "other.example", "/", nil, status(http.StatusNotFound)},
		{"a backend that is not there", "shop.example", "/gone/deep", nil, status(http.StatusInternalServerError)},
		{"a redirect", "shop.example", "/old/page?a=b", nil, func(a answer) string {
			return cmp.Diff([]string{"301", "https://new.example/new/page?a=b"}, []string{fmt.Sprint(a.Status), a.Response.Get("Location")})
		}},
		{"a rewrite", "shop.example", "/outside/page", nil, func(a answer) string {
			return cmp.Diff([]string{"inside.example", "/inside/page"}, []string{a.Host, a.Path})
		}},
		{"edited headers", "shop.example", "/headers", []string{"Set: before", "Added: a", "Secret: s", "Other: o"}, func(a answer) string {
			return cmp.Diff([][]string{{"a"}, {"a,b"}, nil, {"o"}, {"c"}, nil},
				[][]string{a.Header["Set"], {strings.Join(a.Header["Added"], ",")}, a.Header["Secret"], a.Header["Other"], a.Response["Answered"], a.Response["Server-Version"]})
		}},
	} {
		a, err := get(r.client, address, x.host, x.path, x.fields...)
		if err != nil {
			r.Errorf("%s: %v", x.name, err)
		} else if wrong := x.wrong(a); wrong != "" {
			r.Errorf("%s: status %d: %s", x.name, a.Status, wrong)
		}
	}
	statuses := map[int]int{}
	const times = 60
	for range times {
		a, err := get(r.client, address, "shop.example", "/half")
		if err != nil {
			r.Error(err)
		}
		statuses[a.Status]++
	}
	if statuses[200] < times/5 || statuses[500] < times/5 || statuses[200]+statuses[500] != times {
		r.Errorf("of two backends one is not there: statuses %v", statuses)
	}
}

const canary = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{name: front, namespace: edge}]
  hostnames: [canary.example]
  rules: [{backendRefs: [{name: v1, port: 80, weight: %d}, {name: v2, port: 80, weight: %d}]}]
`

// running: weights are shifted and listeners opened and closed while requests go on.
func (r *rig) running() {
	address := r.address("front")
	send := func() (answer, error) { return get(r.client, address, "canary.example", "/") }
	l := r.begin("a canary", send)
	shift := func(v1, v2 int, when func(map[string]int) bool) {
		l.survives(r, fmt.Sprintf("shift to %d:%d", v1, v2), func() {
			r.Put(fmt.Sprintf(canary, v1, v2))
			r.Await("requests follow", func() string {
				if versions := l.more(r); !when(versions) {
					return fmt.Sprint(versions)
				}
				return ""
			})
		})
	}
	shift(1, 1, func(v map[string]int) bool { return v["v1"] > some/5 && v["v2"] > some/5 })
	shift(1, 9, func(v map[string]int) bool { return v["v1"] < v["v2"] && v["v1"] > 0 })
	shift(0, 1, func(v map[string]int) bool { return v["v1"] == 0 && v["v2"] > 0 })

	other := strings.TrimPrefix(address, "http://") + ":8080"
	// A packet to a port that is not open yet is lost, and sent again late.
	brief := &http.Client{Transport: r.client.Transport, Timeout: 2 * time.Second}
	open := func() error {
		a, err := get(brief, "http://"+other, "canary.example", "/")
		if err == nil && a.Status != http.StatusOK {
			err = fmt.Errorf("status %d", a.Status)
		}
		return err
	}
	l.survives(r, "add a listener", func() {
		r.Put(fmt.Sprintf(front, "\n  - {name: more, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}"))
		r.Await("it answers", func() string { return text(open()) })
		r.awaitField("edge", gateway+"front", `{.status.listeners[?(@.name=="more")].conditions[?(@.type=="Programmed")].status}`, "True")
	})
	l.survives(r, "remove the listener", func() {
		r.Put(fmt.Sprintf(front, ""))
		r.Await("it is closed", func() string {
			r.client.CloseIdleConnections()
			if open() == nil {
				return "it answers"
			}
			return ""
		})
		r.awaitField("edge", gateway+"front", `{.status.listeners[*].name}`, "http")
	})
}

const front = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: edge}
spec:
  gatewayClassName: lateen
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}%s
`

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// removed: with a Gateway all goes that was deployed for it.
func (r *rig) removed() {
	r.Step("remove a Gateway", func() {
		r.Do("delete", "-n", "edge", gateway+"front", gateway+"side")
		r.Await("everything is gone", func() string {
			return r.Do("get", owned+",pods", "-n", "edge", "-l", "gateway.networking.k8s.io/gateway-name", "-o", "jsonpath={.items[*].metadata.name}")
		})
	})
	r.awaitField("shop", "httproute/web", "{.status.parents}", "[]")
}
