package kubeadopt

import (
	"strings"
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
      - {name: db, image: "lateen.test/peer:dev", args: [greet, ":3306", ":3307", ":3308"], readinessProbe: {tcpSocket: {port: 3306}, periodSeconds: 1}}
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
					if _, err := r.hello("outsiders", "db.data:3306"); err == nil {
						return "a client without a proxy is greeted"
					}
					return ""
				})
			}
			for _, host := range []string{"db.data", "db-each.data", "db-0.db-each.data"} {
				for _, port := range []string{"3306", "3307", "3308"} {
					r.greeted(mode, host+":"+port)
				}
			}
		})
	}
}

// greeted tries one address from inside the mesh and from outside of it.
func (r *rig) greeted(mode, address string) {
	r.Helper()
	if out, err := r.hello("data", address); err != nil {
		r.Errorf("%s, a client in the mesh, %s: %v", mode, address, err)
	} else {
		r.Logf("        %s, in the mesh, %s: %s", mode, address, out)
	}
	out, err := r.hello("outsiders", address)
	switch {
	case mode == "PERMISSIVE" && err != nil:
		r.Errorf("%s, a client without a proxy, %s: %v", mode, address, err)
	case mode == "PERMISSIVE":
		r.Logf("        %s, without a proxy, %s: %s", mode, address, out)
	case err == nil:
		r.Errorf("%s, a client without a proxy is greeted by %s", mode, address)
	}
}

func (r *rig) hello(namespace, address string) (string, error) {
	return r.Kubectl(r.Context(), "exec", "-n", namespace, "client", "-c", "client", "--", "/peer", "hello", address)
}
