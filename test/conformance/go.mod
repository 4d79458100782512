// The Gateway API's official conformance suite, and its echo server: a module of its own, so that nothing of it is linked by
// the product. `make conformance` builds both from here and runs them against a cluster (test/kubegateway).
module github.com/lateen-mesh/lateen/test/conformance

go 1.26.0

tool (
	sigs.k8s.io/gateway-api/conformance
	sigs.k8s.io/gateway-api/conformance/echo-basic
)

require sigs.k8s.io/gateway-api/conformance v1.6.1
