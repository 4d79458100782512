package kubeadopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lateen-mesh/lateen/deploy"
)

// direct is how users come to the page before there is a gateway.
const direct = `
apiVersion: v1
kind: Service
metadata: {name: productpage-direct, namespace: default}
spec: {type: LoadBalancer, selector: {app: productpage}, ports: [{name: http, port: 80, targetPort: 9080}]}
`

// bookinfo brings Bookinfo into the mesh, pod by pod, with the commands of docs/adoption.md.
func (r *rig) bookinfo() {
	r.Put(direct)
	r.Step("the application without a mesh", func() { r.follow("The application without a mesh") })
	client := r.Client()
	old := "http://" + r.Address("default", "productpage-direct")
	visitOld := func() (string, error) { return visit(client, old) }
	r.Await("the page works", func() string { return text(visitOld()) })
	users := begin(r.Mesh, "the page", visitOld)
	users.survives(r.Mesh, "nothing", func() {})

	users.survives(r.Mesh, "opt everybody out", func() { r.follow("Label the namespace, opt everybody out") })
	users.survives(r.Mesh, "an opted-out pod starts anew", func() {
		r.shell("kubectl rollout restart deployment details-v1; kubectl rollout status deployment details-v1 --timeout=5m")
	})
	if proxies := r.proxies(); len(proxies) > 0 {
		r.Errorf("opted out, and have a proxy: %v", proxies)
	}

	users.survives(r.Mesh, "inject ratings", func() { r.follow("The first pod: a leaf") })
	if got := strings.Join(r.proxies(), " "); got != "ratings-v1" {
		r.Errorf("%q have a proxy", got)
	}
	r.proven(r.reviews, "ratings", "reviews, which has no proxy, by the proxy of ratings", `connection_security_policy="none"`)

	users.survives(r.Mesh, "routes and the gateway", func() {
		if out := r.follow("Routes for it, and the gateway"); !strings.Contains(out, `"ratings"`) {
			r.Errorf("ratings through the gateway: %s", out)
		}
	})
	r.proven(r.host("ratings.example", "/ratings/0"), "ratings", "the gateway, by the proxy of ratings", `connection_security_policy="mutual_tls"`, `source_workload="istio-ingressgateway"`)

	for _, name := range []string{"details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "productpage-v1"} {
		users.survives(r.Mesh, "inject "+name, func() { r.inject(name) })
	}
	r.proven(r.reviews, "ratings", "reviews, by the proxy of ratings", `connection_security_policy="mutual_tls"`,
		`source_principal="spiffe://cluster.local/ns/default/sa/bookinfo-reviews"`)
	r.proven(visitOld, "productpage", "users without the gateway", `connection_security_policy="none"`)

	edge := "http://" + r.gateway
	visitEdge := func() (string, error) { return visit(client, edge) }
	r.Await("the page works through the gateway", func() string { return text(visitEdge()) })
	atGateway := begin(r.Mesh, "the gateway", visitEdge)
	atGateway.survives(r.Mesh, "users come by the gateway", users.end)
	r.Do("delete", "service", "productpage-direct")
	r.strict(atGateway)
	r.releases(atGateway)
	r.Memory("lateend with Bookinfo", deploy.Namespace, "app=lateend", "lateend")
	r.Memory("the gateway under load", deploy.Namespace, "istio=ingressgateway", "lateen-proxy")
	r.Memory("Bookinfo's sidecars under load", "default", "", "lateen-proxy")
	atGateway.end()
}

// pages asks for the page through the gateway so often that what counts the requests behind it has to count as many.
func (r *rig) pages() {
	r.Helper()
	for range some {
		if _, err := visit(r.client, "http://"+r.gateway); err != nil {
			r.Errorf("the page: %v", err)
		}
	}
}

// releases gives some users another version of reviews, which productpage calls inside of the mesh.
func (r *rig) releases(users *load) {
	r.Helper()
	edge := "http://" + r.gateway
	gets := func(user, version string) string {
		var header []string
		if user != "" {
			header = []string{"Cookie", "user=" + user}
		}
		trail, err := page(r.client, edge, header...)
		if err == nil && trail.version("reviews") != version {
			err = fmt.Errorf("user %q gets reviews %q, not %s", user, trail.version("reviews"), version)
		}
		return text(nil, err)
	}
	for _, row := range []struct {
		section string
		users   [][2]string // name and version
	}{
		{"A canary by header", [][2]string{{"jason", "v2"}, {"", "v1"}, {"ann", "v1"}}},
		{"A canary by cookie", [][2]string{{"beta-ann", "v3"}, {"", "v1"}, {"jason", "v1"}}},
		{"A copy for the canary", [][2]string{{"beta-ann", "v1"}, {"", "v1"}}},
	} {
		users.survives(r.Mesh, row.section, func() {
			r.follow(row.section)
			// One right answer may be by chance, while what was there before is still in force.
			r.Await("the route is in force", func() string {
				for range 5 {
					for _, u := range row.users {
						if fault := gets(u[0], u[1]); fault != "" {
							return fault
						}
					}
				}
				return ""
			})
		})
	}
	copies := r.requests("default", "app=reviews,version=v3", `reporter="destination"`)
	users.survives(r.Mesh, "a copy for the canary", r.pages)
	r.Await("copies come to reviews v3", func() string {
		if now := r.requests("default", "app=reviews,version=v3", `reporter="destination"`); now < copies+some/2 {
			return fmt.Sprintf("they were %v and are %v", copies, now)
		}
		return ""
	})
	users.survives(r.Mesh, "A canary by weight", func() {
		r.follow("A canary by weight")
		r.Await("reviews v3 is seen", func() string { return gets("", "v3") })
		r.Await("reviews v1 is seen", func() string { return gets("", "v1") })
	})
}

// inject runs the two commands of docs/adoption.md that bring one of the next pods into the mesh.
func (r *rig) inject(deployment string) {
	r.Helper()
	var lines []string
	for _, line := range r.sections["The next pods"] {
		if strings.Contains(line, " "+deployment+" ") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 2 {
		r.Fatalf("docs/adoption.md has the commands %q for %s", lines, deployment)
	}
	r.shell(strings.Join(lines, "\n"))
}

// strict has everybody refuse plain text, and looks that all went by mutual TLS and that plain text is refused.
func (r *rig) strict(users *load) {
	r.Helper()
	users.survives(r.Mesh, "mutual TLS only", func() {
		r.follow("Mutual TLS only")
		for _, app := range []string{"productpage", "details", "reviews", "ratings"} {
			r.Await("plain text to "+app+" is refused", func() string {
				return r.plain(r.Do("get", "pods", "-l", "app="+app, "-o", "jsonpath={.items[0].status.podIP}") + ":9080")
			})
		}
	})
	tls := r.requests("default", "", `reporter="destination"`, `connection_security_policy="mutual_tls"`)
	r.pages()
	r.Await("requests by mutual TLS are counted", func() string {
		if now := r.requests("default", "", `reporter="destination"`, `connection_security_policy="mutual_tls"`); now < tls+some {
			return fmt.Sprintf("they were %v and are %v", tls, now)
		}
		return ""
	})
	before := r.requests("default", "", `reporter="destination"`, `connection_security_policy="none"`)
	users.survives(r.Mesh, "all of it", r.pages)
	if now := r.requests("default", "", `reporter="destination"`, `connection_security_policy="none"`); now != before {
		r.Errorf("requests in plain text, refused all: they were %v and are %v", before, now)
	}
}

// plainWait bounds an attempt of somebody without a proxy.
const plainWait = 5 * time.Second

// plain says what somebody without a proxy is answered; "" if the connection is closed.
func (r *rig) plain(address string) string {
	ctx, cancel := context.WithTimeout(r.Context(), plainWait) // of a pod that has just gone nothing comes back
	defer cancel()
	conn, err := r.Dial(ctx, "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(plainWait)); err != nil {
		return err.Error()
	}
	if _, err := conn.Write([]byte("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return ""
	}
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	var netErr net.Error
	if n > 0 || errors.As(err, &netErr) && netErr.Timeout() {
		return fmt.Sprintf("answered %q, %v", answer[:n], err)
	}
	return ""
}

// visit is one page of a user.
func visit(client *http.Client, url string) (string, error) {
	trail, err := page(client, url)
	if err != nil {
		return "", err
	}
	return trail.Pod, nil
}

func text(_ any, err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// proxies are the Deployments of Bookinfo of which a pod has a proxy.
func (r *rig) proxies() []string {
	r.Helper()
	var with []string
	out := r.Do("get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.labels.app}-{.metadata.labels.version}{" "}{.metadata.deletionTimestamp}{" "}{.spec.initContainers[*].name}{"\n"}{end}`)
	for line := range strings.SplitSeq(out, "\n") {
		if name, rest, ok := strings.Cut(line, " "); ok && strings.Contains(rest, "istio-proxy") {
			with = append(with, name)
		}
	}
	return with
}

// reviews asks the version of reviews that calls ratings: without a proxy the page keeps to the one that it is connected with.
func (r *rig) reviews() (string, error) {
	r.Helper()
	pods := strings.Fields(r.Do("get", "pods", "-l", "app=reviews,version=v2", "-o", "jsonpath={.items[*].status.podIP}"))
	if len(pods) == 0 {
		return "", errors.New("there is no pod of reviews v2")
	}
	_, answer, err := get(r.client, "http://"+pods[len(pods)-1]+":9080/reviews/0")
	return answer, err
}

// proven sends requests until the proxies of an application have counted some of a kind.
func (r *rig) proven(send func() (string, error), app, of string, labels ...string) {
	r.Helper()
	labels = append(labels, `reporter="destination"`, `response_code="200"`)
	r.Await("requests of "+of+", are counted", func() string {
		if _, err := send(); err != nil {
			return err.Error()
		}
		if r.requests("default", "app="+app, labels...) == 0 {
			return "none with " + strings.Join(labels, ",")
		}
		return ""
	})
}

// requests is what the proxies of pods that are selected count in istio_requests_total with some labels.
func (r *rig) requests(namespace, selector string, labels ...string) float64 {
	r.Helper()
	sum := 0.0
	out := r.Do("get", "pods", "-n", namespace, "-l", selector, "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[?(@.metadata.annotations.sidecar\.istio\.io/status)]}{.status.podIP}{"\n"}{end}`)
	for address := range strings.FieldsSeq(out) {
		_, body, err := get(r.client, "http://"+address+":15020/stats/prometheus")
		if err != nil {
			r.Logf("metrics of %s: %v", address, err) // it may end just now
			continue
		}
		sum += count(body, labels)
	}
	return sum
}

// count adds up the samples of istio_requests_total that have some labels.
func count(metrics string, labels []string) float64 {
	sum := 0.0
lines:
	for line := range strings.SplitSeq(metrics, "\n") {
		if !strings.HasPrefix(line, "istio_requests_total{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				continue lines
			}
		}
		value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err == nil {
			sum += value
		}
	}
	return sum
}
