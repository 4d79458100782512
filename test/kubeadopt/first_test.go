package kubeadopt

import (
	"strings"
	"sync"
)

// database speaks first on three ports: undeclared, and declared by two names; and again as a headless Service.
const database = `
apiVersion: v1
kind: Namespace
metadata: {name: data, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outsiders}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: data}
spec:
  serviceName: db-each
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - {name: db, image: "lateen.test/peer:dev", args: [greet, ":3306", ":3307", ":3308"], readinessProbe: {tcpSocket: {port: 3306}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 30}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data}
spec: {selector: {app: db}, ports: [{name: db, port: 3306}, {name: tcp-db, port: 3307}, {name: mysql-db, port: 3308}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-each, namespace: data}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: db, port: 3306}, {name: tcp-db, port: 3307}, {name: mysql-db, port: 3308}]}
`

const databaseMode = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: data}
spec: {mtls: {mode: MODE}}
`

// shellPod is a client that stays, in which programs are run.
const shellPod = `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: NAMESPACE}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: "lateen.test/peer:dev", args: [serve, ":8080"]}]
`

// speaksFirst: a server that speaks first greets a client that says nothing, whether its port is declared or not; under
// STRICT only clients in the mesh.
func (r *rig) speaksFirst() {
	r.Put(database)
	for _, namespace := range []string{"data", "outsiders"} {
		r.Put(strings.Replace(shellPod, "NAMESPACE", namespace, 1))
	}
	r.Ready("data", "statefulset/db")
	for _, namespace := range []string{"data", "outsiders"} {
		r.Do("wait", "-n", namespace, "pod/client", "--for=condition=Ready", "--timeout=5m")
	}
	for _, mode := range []string{"PERMISSIVE", "STRICT"} {
		r.Step("a server that speaks first, "+mode, func() {
			r.Put(strings.Replace(databaseMode, "MODE", mode, 1))
			if mode == "STRICT" {
				r.Await("STRICT is in force", func() string {
					if _, err := r.hello("outsiders", "db.data:3306", "5s"); err == nil {
						return "a client without a proxy is greeted"
					}
					return ""
				})
			}
			for _, host := range []string{"db.data", "db-each.data", "db-0.db-each.data"} {
				for _, port := range []string{"3306", "3307", "3308"} {
					r.greeted("data", host+":"+port)
				}
			}
			r.outside(mode)
		})
	}
}

// outside tries all ports at once from outside of the mesh: under STRICT each attempt is refused only after a while, as
// nobody says anything.
func (r *rig) outside(mode string) {
	r.Helper()
	if mode == "PERMISSIVE" {
		for _, port := range []string{"3306", "3307", "3308"} {
			r.greeted("outsiders", "db.data:"+port)
		}
		return
	}
	var group sync.WaitGroup
	for _, port := range []string{"3306", "3307", "3308"} {
		group.Go(func() {
			if out, err := r.hello("outsiders", "db.data:"+port, "5s"); err == nil {
				r.Errorf("%s, a client without a proxy is greeted at port %s: %s", mode, port, out)
			}
		})
	}
	group.Wait()
}

// greeted tries one address from a namespace.
func (r *rig) greeted(namespace, address string) {
	r.Helper()
	out, err := r.hello(namespace, address, "30s")
	if err != nil {
		r.Errorf("from %s to %s: %v", namespace, address, err)
		return
	}
	r.Logf("        from %s to %s: %s", namespace, address, out)
}

func (r *rig) hello(namespace, address, within string) (string, error) {
	return r.Kubectl(r.Context(), "exec", "-n", namespace, "client", "-c", "client", "--", "/peer", "hello", address, within)
}
