package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// accessLogFile is in each proxy's own folder, where it runs.
const accessLogFile = "access.log"

// meshYAML is what the mesh is before it begins to change.
const meshYAML = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: ` + accessLogFile + `
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  clusterIP: 10.8.0.1
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http2, port: 81, targetPort: 8080}
  - {name: grpc, port: 82, targetPort: 8082}
  - {name: auto, port: 83, targetPort: 8081}
  - {name: tls, port: 443, targetPort: 9443}
  - {name: tcp, port: 9000, targetPort: 9000}
  - {name: greet, port: 9001, targetPort: 9001}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  clusterIP: 10.8.0.2
  selector: {app: server}
  ports:
  - {name: http, port: 8080}
  - {name: auto, port: 8081}
  - {name: grpc, port: 8082}
  - {name: tcp, port: 9000}
  - {name: greet, port: 9001}
  - {name: tls, port: 9443}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec:
  clusterIP: 10.8.0.3
  selector: {app: far}
  ports:
  - {name: http, port: 8080}
  - {name: auto, port: 8081}
  - {name: grpc, port: 8082}
  - {name: tcp, port: 9000}
  - {name: greet, port: 9001}
  - {name: tls, port: 9443}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: v1}
spec: {address: 10.9.1.1, labels: {app: echo, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: v2}
spec: {address: 10.9.1.2, labels: {app: echo, version: v2}}
---
` + comesAndGoes + `
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  selector: {app: gateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*.example"]}
  - {port: {number: 8443, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ["*.example"]}
  - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: through}
spec:
  hosts: [plain.example, pair.example, grpc.example]
  gateways: [gw]
  http:
  - match: [{authority: {exact: plain.example}}]
    route: [{destination: {host: echo, port: {number: 80}}}]
  - match: [{authority: {exact: grpc.example}}]
    route: [{destination: {host: server, port: {number: 8082}}}]
  - route: [{destination: {host: server, port: {number: 8080}}}]
  tls:
  - match: [{port: 8443, sniHosts: [plain.example]}]
    route: [{destination: {host: echo, port: {number: 443}}}]
  - match: [{port: 8443, sniHosts: [pair.example]}]
    route: [{destination: {host: server, port: {number: 9443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: through-bytes}
spec:
  hosts: ["*"]
  gateways: [gw]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: server, port: {number: 9000}}}]}]
`

// comesAndGoes is the last of plainBackends.
const comesAndGoes = `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: v3}
spec: {address: 10.9.1.3, labels: {app: echo, version: v3}}
`

// The ways of the traffic.
var (
	plainHTTP    = via{"plain", clientAddress, "10.8.0.1:80", "echo"}
	plainHTTP2   = via{"plain-h2", clientAddress, "10.8.0.1:81", "echo:81"}
	plainGRPC    = via{"plain", clientAddress, "10.8.0.1:82", "echo:82"}
	plainAuto    = via{"plain-auto", clientAddress, "10.8.0.1:83", "echo:83"}
	plainTLS     = via{"plain", clientAddress, "10.8.0.1:443", "echo"}
	plainBytes   = via{"plain", clientAddress, "10.8.0.1:9000", "echo"}
	plainGreet   = via{"plain", clientAddress, "10.8.0.1:9001", "echo"}
	pairHTTP     = via{"pair", clientAddress, "10.8.0.2:8080", "server:8080"}
	pairAuto     = via{"pair-auto", clientAddress, "10.8.0.2:8081", "server:8081"}
	pairGRPC     = via{"pair", clientAddress, "10.8.0.2:8082", "server:8082"}
	pairBytes    = via{"pair", clientAddress, "10.8.0.2:9000", "server"}
	pairGreet    = via{"pair", clientAddress, "10.8.0.2:9001", "server"}
	pairTLS      = via{"pair", clientAddress, "10.8.0.2:9443", "server"}
	tunnelHTTP   = via{"hbone", clientAddress, "10.8.0.3:8080", "far:8080"}
	tunnelAuto   = via{"hbone-auto", clientAddress, "10.8.0.3:8081", "far:8081"}
	tunnelGRPC   = via{"hbone", clientAddress, "10.8.0.3:8082", "far:8082"}
	tunnelBytes  = via{"hbone", clientAddress, "10.8.0.3:9000", "far"}
	tunnelGreet  = via{"hbone", clientAddress, "10.8.0.3:9001", "far"}
	tunnelTLS    = via{"hbone", clientAddress, "10.8.0.3:9443", "server"}
	gatewayHTTP  = via{"gateway", outside, gatewayAddress + ":8080", "pair.example"}
	gatewayPlain = via{"gateway-plain", outside, gatewayAddress + ":8080", "plain.example"}
	gatewayGRPC  = via{"gateway", outside, gatewayAddress + ":8080", "grpc.example"}
	gatewayTLS   = via{"gateway", outside, gatewayAddress + ":8443", "pair.example"}
	gatewaySNI   = via{"gateway-plain", outside, gatewayAddress + ":8443", "plain.example"}
	gatewayBytes = via{"gateway", outside, gatewayAddress + ":9000", "server"}
)

// change changes the mesh in a way that the traffic must not notice. It returns what it did.
func (r *rig) change(ctx context.Context, rnd *rand.Rand) (string, error) {
	var what, yaml string
	switch rnd.IntN(7) {
	case 0:
		what, yaml = "weights", weights(rnd, "echo", "echo", "mesh")
	case 1:
		host := []string{"server", "far"}[rnd.IntN(2)]
		what, yaml = "routes of "+host, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s]
  http:
  - match: [{uri: {prefix: /elsewhere-%d}}]
    route: [{destination: {host: echo}}]
  - headers: {request: {set: {x-edited: "%d"}}, response: {add: {x-answered: "%d"}}}
    retries: {attempts: %d}
    timeout: %ds
    route: [{destination: {host: %s}}]
`, host, host, rnd.IntN(100), rnd.IntN(100), rnd.IntN(100), rnd.IntN(4), 60+rnd.IntN(60), host)
	case 2:
		what, yaml = "policies", policies(rnd)
	case 3:
		host := []string{"echo", "server", "far"}[rnd.IntN(3)]
		what, yaml = "balance of "+host, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %s}
spec:
  host: %s
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
  trafficPolicy:
    loadBalancer: {simple: %s}
    connectionPool: {http: {maxRequestsPerConnection: %d}}
`, host, host, []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"}[rnd.IntN(3)], []int{0, 0, 1, 20}[rnd.IntN(4)])
	case 4:
		what, yaml = "mutual TLS", fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: proxied}
spec: {selector: {matchLabels: {proxied: "yes"}}, mtls: {mode: %s}}
`, []string{"STRICT", "PERMISSIVE"}[rnd.IntN(2)])
	case 5:
		what, yaml = "another service", fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other-%d}
spec:
  hosts: [other-%d.example]
  addresses: [10.8.1.%d]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.9.1.%d}]
`, rnd.IntN(8), rnd.IntN(8), 1+rnd.IntN(200), 1+rnd.IntN(3))
	default:
		what = "another label"
		yaml = strings.Replace(strings.Replace(comesAndGoes, "v3", "v2", 2), "1.3,", fmt.Sprintf("1.2, weight: %d,", 1+rnd.IntN(9)), 1)
	}
	return what, r.mesh.Apply(ctx, yaml)
}

// weights is a VirtualService that divides the traffic anew. Routes that match nothing are part of it.
func weights(rnd *rand.Rand, name, host, gateway string) string {
	w := rnd.IntN(101)
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s]
  gateways: [%s]
  http:
  - match: [{headers: {x-nobody: {exact: "%d"}}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 100}}}
    route: [{destination: {host: echo}}]
  - match: [{port: 80}]
    route:
    - {destination: {host: echo, subset: v1, port: {number: 80}}, weight: %d}
    - {destination: {host: echo, subset: v2, port: {number: 80}}, weight: %d}
  - route: [{destination: {host: echo}}]
  tcp:
  - match: [{port: 9000}]
    route:
    - {destination: {host: echo, subset: v1, port: {number: 9000}}, weight: %d}
    - {destination: {host: echo, subset: v2, port: {number: 9000}}, weight: %d}
`, name, host, gateway, rnd.IntN(9), w, 100-w, 100-w, w)
}

// policies refuse what nobody asks for, and allow the rest.
func policies(rnd *rand.Rand) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: refuse}
spec:
  selector: {matchLabels: {proxied: "yes"}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/refused-%d/*"], ports: ["8080"]}}]}, {from: [{source: {principals: ["cluster.local/ns/x/sa/%d"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow}
spec:
  selector: {matchLabels: {proxied: "yes"}}
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/client", "cluster.local/ns/default/sa/gateway", "cluster.local/ns/default/sa/%d"]}}]}]
`, rnd.IntN(100), rnd.IntN(100), rnd.IntN(100))
}

// The waits of a backend that comes and goes.
const (
	stays     = 3 * time.Second
	forgotten = 5 * time.Second // after which all proxies have let it go
	drains    = time.Minute     // at most
)

// tide lets the last backend leave in good order, end, and come back.
func (r *rig) tide(ctx context.Context) error {
	b := r.backends[len(r.backends)-1]
	for pause(ctx, stays) == nil {
		if err := r.mesh.Delete(ctx, comesAndGoes); err != nil {
			return err
		}
		if err := r.settle(ctx); err != nil {
			return err
		}
		if pause(ctx, forgotten) != nil {
			return nil
		}
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drains)
		b.drain(ending)
		cancel()
		if err := b.start(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		if err := r.mesh.Apply(ctx, comesAndGoes); err != nil {
			return err
		}
	}
	return nil
}
