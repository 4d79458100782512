// Package oracle asks a real Envoy whether our proxy is right: both get the same plan from our control plane, over xDS,
// in the same place of the same network; both get the same requests; what the client and the backends see is compared.
// It holds tests only.
//
// A world is a file in testdata: YAML, requests, and the position of the proxy. How one is written is told in
// world_test.go. A difference is a bug, or is listed with what both sides say and a decision of docs/differences.md: in the
// file differs of its world, or in differences.txt if it holds in several. A listed difference that is no more fails the
// test. What of a plan no world orders stands in uncovered.txt.
package oracle
