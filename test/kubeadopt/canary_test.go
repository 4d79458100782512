package kubeadopt

import (
	"fmt"
	"strings"
)

// shop has two versions of a program, blue and green, behind one Service and behind one each; and a caller in the mesh.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: blue, labels: {version: blue}}, {name: green, labels: {version: green}}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: shop}
spec:
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec: {containers: [{name: caller, image: "lateen.test/peer:dev", args: [relay, ":8080", "http://web"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 30}}]}
---
apiVersion: v1
kind: Service
metadata: {name: caller, namespace: shop}
spec: {selector: {app: caller}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http-shop, protocol: HTTP}, hosts: [web.example, inside.example]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: caller, namespace: shop}
spec: {hosts: [inside.example], gateways: [edge], http: [{route: [{destination: {host: caller}}]}]}
`

// color is one of the versions.
const color = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: COLOR, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web, version: COLOR}}
  template:
    metadata: {labels: {app: web, version: COLOR}}
    spec:
      containers:
      - name: web
        image: lateen.test/peer:dev
        args: [serve, ":8080"]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 30}
---
apiVersion: v1
kind: Service
metadata: {name: web-COLOR, namespace: shop}
spec: {selector: {app: web, version: COLOR}, ports: [{name: http, port: 80, targetPort: 8080}]}
`

// route is the way to the shop, from outside and from inside.
const route = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web.example, web], gateways: [edge, mesh], http: [HTTP]}
`

// Ways for users: everybody to one, by subset or by Service.
const (
	blue  = `{route: [{destination: {host: web, subset: blue}}]}`
	green = `{route: [{destination: {host: web, subset: green}}]}`

	blueService  = `{route: [{destination: {host: web-blue}}]}`
	greenService = `{route: [{destination: {host: web-green}}]}`
)

// canary gives chosen users and shares of users the new version, by header, cookie, weight and as a copy.
func (r *rig) canary() {
	r.Step("two versions", func() {
		r.Put(shop + "---" + strings.ReplaceAll(color, "COLOR", "blue") + "---" + strings.ReplaceAll(color, "COLOR", "green"))
		r.route(blue)
		r.Ready("shop", "deploy/blue", "deploy/green", "deploy/caller")
	})
	hosts := []string{"web.example", "inside.example"}
	for _, host := range hosts {
		r.settle(host, "blue")
	}
	r.Step("canary by header and cookie", func() {
		r.route(`{match: [{headers: {x-canary: {exact: always}}}, {headers: {cookie: {regex: "^(.*?;)?(canary=always)(;.*)?$"}}}], route: [{destination: {host: web, subset: green}}]}, ` + blue)
		for _, host := range hosts {
			r.settle(host, "green", "X-Canary", "always")
			r.settle(host, "green", "Cookie", "a=b;canary=always;c=d")
			for range some {
				r.answers(host, "green", "X-Canary", "always")
				r.answers(host, "green", "Cookie", "canary=always")
				r.answers(host, "blue", "Cookie", "canary=never")
				r.answers(host, "blue", "X-Canary", "never")
				r.answers(host, "blue")
			}
		}
	})
	r.Step("canary by weight", func() {
		r.route(`{route: [{destination: {host: web, subset: blue}, weight: 90}, {destination: {host: web, subset: green}, weight: 10}]}`)
		for _, host := range hosts {
			r.settle(host, "green")
			r.weighed(host)
		}
	})
	r.Step("mirror", func() {
		r.route(`{route: [{destination: {host: web, subset: blue}}], mirror: {host: web, subset: green}, mirrorPercentage: {value: 100}}`)
		for _, host := range hosts {
			r.mirrored(host)
		}
	})
}

// weighed sends enough requests that a share of 10 % is told from others: of 1500, whose standard deviation is 11.6, the new
// version gets 150, or by chance some 60 more or fewer.
func (r *rig) weighed(host string) {
	r.Helper()
	const requests, share, slack = 1500, 150, 60
	got := map[string]int{}
	for range requests {
		got[r.color(host)]++
	}
	r.Logf("        of %d requests to %s: %v", requests, host, got)
	if n := got["green"]; n < share-slack || n > share+slack || got["blue"] != requests-n {
		r.Errorf("of %d requests to %s: %v", requests, host, got)
	}
}

// mirrored: the old version answers all, the new one sees a copy of each.
func (r *rig) mirrored(host string) {
	r.Helper()
	copied := func() float64 { return r.requests("shop", "app=web,version=green", `reporter="destination"`) }
	// Once a copy comes, the rule is in force.
	var before float64
	r.Await("a copy of a request to "+host+" comes", func() string {
		before = copied() // what came before may be of the rule before
		if c := r.color(host); c == "blue" && copied() > before {
			return ""
		}
		return "none"
	})
	before = copied()
	for range some {
		r.answers(host, "blue")
	}
	r.Await("all copies come", func() string {
		if got := copied() - before; got < some {
			return fmt.Sprintf("%v of %d", got, some)
		}
		return ""
	})
}

// blueGreen switches all users at once, under load, and takes away the old version.
func (r *rig) blueGreen() {
	outside := r.host("web.example", "/")
	inside := r.host("inside.example", "/")
	for _, row := range []struct{ name, from, to string }{
		{"by subset", blue, green},
		{"by Service", blueService, greenService},
	} {
		r.Put(strings.ReplaceAll(color, "COLOR", "blue"))
		r.Ready("shop", "deploy/blue")
		r.route(row.from)
		for _, host := range []string{"web.example", "inside.example"} {
			r.settle(host, "blue")
		}
		loads := []*load{begin(r.Mesh, "web by the gateway", outside), begin(r.Mesh, "web from inside", inside)}
		both := func(step string, change func()) {
			loads[0].survives(r.Mesh, step, func() { loads[1].survives(r.Mesh, step, change) })
		}
		both("switch to green, "+row.name, func() {
			r.route(row.to)
			for _, host := range []string{"web.example", "inside.example"} {
				r.settle(host, "green")
			}
			for _, l := range loads {
				for host, n := range l.since(r.Mesh) {
					if !strings.HasPrefix(host, "green-") {
						r.Errorf("after the switch %s answers %d requests", host, n)
					}
				}
			}
		})
		both("take blue away, "+row.name, func() {
			r.Do("delete", "deployment", "-n", "shop", "blue", "--cascade=foreground", "--timeout=5m")
		})
		for _, l := range loads {
			l.end()
		}
	}
}

// route changes the way of users.
func (r *rig) route(http string) {
	r.Helper()
	r.Put(strings.Replace(route, "HTTP", http, 1))
}

// color is the version that answers; "" and a fault of the test, if none does.
func (r *rig) color(host string, header ...string) string {
	r.Helper()
	answer, _, err := get(r.client, "http://"+r.gateway+"/", append([]string{"Host", host}, header...)...)
	if err != nil {
		r.Errorf("%s: %v", host, err)
		return ""
	}
	c, _, _ := strings.Cut(answer.Get("Host-Name"), "-")
	return c
}

// settle waits until a version answers.
func (r *rig) settle(host, version string, header ...string) {
	r.Helper()
	r.Await(host+" is answered by "+version, func() string {
		answer, _, err := get(r.client, "http://"+r.gateway+"/", append([]string{"Host", host}, header...)...)
		if err == nil && !strings.HasPrefix(answer.Get("Host-Name"), version+"-") {
			err = fmt.Errorf("by %q", answer.Get("Host-Name"))
		}
		return text(nil, err)
	})
}

// answers is for what must be so already.
func (r *rig) answers(host, version string, header ...string) {
	r.Helper()
	if c := r.color(host, header...); c != version {
		r.Errorf("%s with %q is answered by %q, not %s", host, header, c, version)
	}
}
