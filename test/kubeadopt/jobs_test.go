package kubeadopt

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// lifeNamespace is where these procedures are followed.
const lifeNamespace = "life"

// server is what Jobs call: it counts who has come, by path.
const server = `
apiVersion: v1
kind: Namespace
metadata: {name: life, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: life}
spec: {mtls: {mode: STRICT}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: life}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      containers:
      - name: server
        image: lateen.test/peer:dev
        args: [serve, ":8080"]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 30}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: life}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: life}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http-life, protocol: HTTP}, hosts: [server.example, caller.example]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: life}
spec: {hosts: [server.example], gateways: [edge], http: [{route: [{destination: {host: server}}]}]}
`

// job runs one program COUNT times; none of them has a second try.
const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: NAME, namespace: life}
spec:
  completions: COUNT
  parallelism: 5
  backoffLimit: 0
  template:
    metadata: {annotations: {ANNOTATIONS}}
    spec:
      restartPolicy: Never
      containers: [{name: job, image: "lateen.test/peer:dev", args: [ARGS]}]
`

// Annotations of pods whose proxies are classic containers.
const (
	classic = `sidecar.istio.io/nativeSidecar: "false"`
	hold    = classic + `, proxy.istio.io/config: "holdApplicationUntilProxyStarts: true"`
)

// jobs: programs that call out the moment they start, and end, succeed all, and their pods complete.
func (r *rig) jobs() {
	const each = 5
	r.serve(1)
	r.Step("Jobs with a proxy, native and classic", func() {
		for _, row := range []struct{ name, annotations, flag string }{
			{"native", "", ""},
			{"classic", hold, `"--quit", `},
		} {
			r.Do("delete", "job", "-n", lifeNamespace, row.name, "--ignore-not-found")
			r.Put(strings.NewReplacer("NAME", row.name, "COUNT", strconv.Itoa(each), "ANNOTATIONS", row.annotations,
				"ARGS", `get, `+row.flag+`"http://server/`+row.name+`"`).Replace(job))
		}
		r.completes("job/native")
		r.completes("job/classic")
	})
	seen := r.seen()
	for _, path := range []string{"/native", "/classic"} {
		if seen[path] != each {
			r.Errorf("%d requests to %s came, want %d", seen[path], path, each)
		}
	}
}

// serve has so many servers, and no more.
func (r *rig) serve(replicas int) {
	r.Helper()
	r.Put(strings.Replace(server, "REPLICAS", strconv.Itoa(replicas), 1))
	r.Ready(lifeNamespace, "deploy/server")
	r.gone("app=server", replicas)
}

// gone waits until there are no more pods than so many.
func (r *rig) gone(selector string, replicas int) {
	r.Helper()
	r.Await("the old pods are gone", func() string {
		if pods := strings.Fields(r.Do("get", "pods", "-n", lifeNamespace, "-l", selector, "-o", "name")); len(pods) > replicas {
			return strings.Join(pods, " ")
		}
		return ""
	})
}

// failed tells how the containers of a Job's failed pods ended, and what they said.
func (r *rig) failed(job string) string {
	r.Helper()
	const each = `{.metadata.name}: {range .status.containerStatuses[*]}{.name} {.state.terminated.exitCode} {.state.terminated.reason}; {end}`
	var all strings.Builder
	for pod := range strings.FieldsSeq(r.Do("get", "pods", "-n", lifeNamespace, "-l", "batch.kubernetes.io/job-name="+job,
		"--field-selector=status.phase=Failed", "-o", "name")) {
		ends, _ := r.Kubectl(r.Context(), "get", "-n", lifeNamespace, pod, "-o", "jsonpath="+each)
		logs, _ := r.Kubectl(r.Context(), "logs", "-n", lifeNamespace, pod, "--all-containers", "--prefix", "--tail=30")
		fmt.Fprintln(&all, ends+"\n"+logs)
	}
	return all.String()
}

// completes waits until a Job is complete, and ends the test as soon as it has failed.
func (r *rig) completes(job string) {
	r.Helper()
	r.Await(job+" is complete", func() string {
		conditions := r.Do("get", "-n", lifeNamespace, job, "-o", `jsonpath={.status.conditions[?(@.status=="True")].type}`)
		if strings.Contains(conditions, "Failed") {
			r.Errorf("%s failed:\n%s", job, r.failed(strings.TrimPrefix(job, "job/")))
			return ""
		}
		if strings.Contains(conditions, "Complete") {
			return ""
		}
		return r.Do("get", "-n", lifeNamespace, job, "-o", "jsonpath={.status}")
	})
}

// seen is what the server counts, of which there is one.
func (r *rig) seen() map[string]int {
	r.Helper()
	seen := map[string]int{}
	r.Await("the server tells what it has seen", func() string {
		_, out, err := get(r.client, "http://"+r.gateway+"/seen", "Host", "server.example")
		if err == nil {
			err = json.Unmarshal([]byte(out), &seen)
		}
		return text(nil, err)
	})
	return seen
}

// last is a pod that sends a request in its preStop hook and one at SIGTERM.
const last = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: life, annotations: {ANNOTATIONS}}
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: lateen.test/peer:dev
    args: [last, "http://server/term-NAME"]
    lifecycle: {preStop: {exec: {command: [/peer, get, "http://server/stop-NAME"]}}}
`

// order: the first request of a program finds its proxy ready, and the last one finds it there still.
func (r *rig) order() {
	r.serve(1)
	before := r.seen()
	names := []string{"last-native", "last-classic", "last-hold"}
	r.Step("pods start", func() {
		for i, annotations := range []string{"", classic, hold} {
			r.Put(strings.NewReplacer("NAME", names[i], "ANNOTATIONS", annotations).Replace(last))
		}
		for _, name := range names {
			r.Do("wait", "-n", lifeNamespace, "pod/"+name, "--for=condition=Ready", "--timeout=5m")
		}
	})
	r.Step("they end", func() {
		r.Do(append([]string{"delete", "-n", lifeNamespace, "pod", "--wait=true", "--timeout=5m"}, names...)...)
	})
	after := r.seen()
	for _, name := range names {
		for _, path := range []string{"/stop-" + name, "/term-" + name} {
			if got := after[path] - before[path]; got != 1 {
				r.Errorf("%d requests to %s came, want 1", got, path)
			}
		}
	}
}

// caller is a program in the mesh that calls the server for whoever asks it; the way through the gateway leads to the server.
const caller = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: life}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec: {containers: [{name: caller, image: "lateen.test/peer:dev", args: [relay, ":8080", "http://server"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 30}}]}
---
apiVersion: v1
kind: Service
metadata: {name: caller, namespace: life}
spec: {selector: {app: caller}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: caller, namespace: life}
spec: {hosts: [caller.example], gateways: [edge], http: [{route: [{destination: {host: caller}}]}]}
`

// restart: a Deployment is rolled under load, from the gateway and from inside of the mesh, so that pods with proxies of each
// kind end and start, without any care of the application's own but that it ends what it has begun.
func (r *rig) restart() {
	r.serve(2)
	r.Put(caller)
	r.Ready(lifeNamespace, "deploy/caller")
	edge := r.host("server.example", "/")
	inside := r.host("caller.example", "/")
	for _, row := range []struct{ name, annotations string }{
		{"from native proxies to classic ones", classic}, {"to classic ones that start first", hold}, {"to native ones", ""},
	} {
		patch := `{"spec":{"template":{"metadata":{"annotations":null}}}}`
		if row.annotations != "" {
			patch = "spec: {template: {metadata: {annotations: {" + row.annotations + "}}}}"
		}
		roll := func() {
			r.Do("patch", "-n", lifeNamespace, "deploy/server", "--type=merge", "-p", patch)
			r.Ready(lifeNamespace, "deploy/server")
			r.gone("app=server", 2) // What is sent to the old ones counts.
		}
		second := begin(r.Mesh, "the server from inside", inside)
		first := begin(r.Mesh, "the server by the gateway", edge)
		second.survives(r.Mesh, "rolling restart, "+row.name, func() {
			first.survives(r.Mesh, "rolling restart, "+row.name, roll)
		})
		first.end()
		second.end()
	}
}

// host sends requests through the gateway for a path of a host, which are answered by a server's name.
func (r *rig) host(name, path string) func() (string, error) {
	url := "http://" + r.gateway + path
	ask := func() (string, error) {
		answer, _, err := get(r.client, url, "Host", name)
		if err != nil {
			return "", err
		}
		return answer.Get("Host-Name"), nil
	}
	r.Await(name+" is served", func() string { return text(ask()) })
	return ask
}
