package kubegateway

import (
	"fmt"
	"net/http"

	"github.com/google/go-cmp/cmp"
)

// producer is a route of the Service's own namespace, for everybody; consumer one of a caller's, for its callers alone.
const (
	producer = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: producer, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{headers: [{name: Version, value: second}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /split}}]
    backendRefs: [{name: v1, port: 80, weight: 1}, {name: v2, port: 80, weight: 1}]
  - matches: [{path: {value: /known}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: By, value: producer}]}}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {value: /gone}}]
    backendRefs: [{name: nobody, port: 80}]
`
	consumer = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: consumer, namespace: buyer}
spec:
  parentRefs: [{group: "", kind: Service, name: web, namespace: shop}]
  rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: By, value: consumer}]}}], backendRefs: [{name: v2, namespace: shop, port: 80}]}]
`
)

// between: routes with a Service as their parent, for requests of one pod to others.
func (r *rig) between() {
	const web = "http://web.shop"
	one := func(namespace, path string, fields ...string) answer {
		return r.ask(namespace, web+path, 1, fields...)[0]
	}
	// came are the marks of an answer: its status, the server's version and the field that a route sets.
	came := func(a answer) string {
		return fmt.Sprintf("%d %s %s%s", a.Status, a.version(), a.Header.Get("By"), a.Failure)
	}
	versions := func(namespace, path string) map[string]int {
		count := map[string]int{}
		for _, a := range r.ask(namespace, web+path, 100) {
			count[a.version()]++
		}
		return count
	}
	if v := versions("shop", "/"); v["v1"]+v["v2"] != 100 || v["v1"] == 0 || v["v2"] == 0 {
		r.Errorf("without a route the Service is served by %v", v)
	}
	r.Step("attach a route to a Service", func() {
		r.Put(producer)
		r.Await("it is in force", func() string {
			if got := came(one("shop", "/known")) + ", " + came(one("buyer", "/known")); got != "200 v1 producer, 200 v1 producer" {
				return got
			}
			return ""
		})
	})
	r.awaitField("shop", "httproute/producer", `{range .status.parents[*].conditions[*]}{.type}={.status} {end}`, "Accepted=True ResolvedRefs=False")
	for _, x := range []struct {
		namespace, path string
		fields          []string
		want            string
	}{
		{"shop", "/any", []string{"Version:second"}, "200 v2 "},
		{"buyer", "/any", []string{"Version:second"}, "200 v2 "},
		{"shop", "/any", nil, "404  "},
		{"shop", "/gone", nil, "500  "},
	} {
		if diff := cmp.Diff(x.want, came(one(x.namespace, x.path, x.fields...))); diff != "" {
			r.Errorf("%s of %s, %v (-want +got):\n%s", x.path, x.namespace, x.fields, diff)
		}
	}
	if v := versions("shop", "/split"); v["v1"] < 25 || v["v2"] < 25 || v["v1"]+v["v2"] != 100 {
		r.Errorf("two of the same weight got %v", v)
	}
	r.Step("attach a route of a caller", func() {
		r.Put(consumer)
		r.Await("it is in force", func() string {
			if got := came(one("buyer", "/any")); got != "200 v2 consumer" {
				return got
			}
			return ""
		})
	})
	if got := came(one("shop", "/any")); got != "404  " {
		r.Errorf("a caller's route counts for others: %s", got)
	}
	r.Step("remove both", func() {
		r.Do("delete", "-n", "buyer", "httproute", "consumer")
		r.Do("delete", "-n", "shop", "httproute", "producer")
		r.Await("nothing is routed", func() string {
			for _, namespace := range []string{"shop", "buyer"} {
				if a := one(namespace, "/any"); a.Status != http.StatusOK || a.Header.Get("By") != "" {
					return came(a)
				}
			}
			return ""
		})
	})
}

const spoiled = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{name: front, namespace: edge}]
  hostnames: [canary.example]
  rules: [{matches: [{path: {type: RegularExpression, value: "/(a"}}], backendRefs: [{name: v2, port: 80}]}]
`

// refused: an object that Kubernetes takes and we do not says so, and its last good version stays in force. The webhook
// would not have let it in.
func (r *rig) refused() {
	r.Do("delete", "validatingwebhookconfiguration", "lateen-validator")
	is := func(accepted string) {
		r.Helper()
		generation := r.field("shop", "httproute/canary", "{.metadata.generation}")
		r.awaitField("shop", "httproute/canary", `{range .status.parents[*].conditions[?(@.type=="Accepted")]}{.status}/{.observedGeneration}{end}`, accepted+"/"+generation)
	}
	r.Put(fmt.Sprintf(canary, 1, 0))
	is("True")
	r.Await("the canary is answered by v1", func() string { // its status and the gateway's orders go separate ways
		a, err := get(r.client, r.address("front"), "canary.example", "/")
		if err == nil && a.version() == "v1" {
			return ""
		}
		return fmt.Sprint(a, err)
	})
	r.Put(spoiled)
	is("False")
	if a, err := get(r.client, r.address("front"), "canary.example", "/"); err != nil || a.version() != "v1" {
		r.Errorf("the last good version is not in force: %+v, %v", a, err)
	}
	r.Put(fmt.Sprintf(canary, 0, 1))
	is("True")
}
