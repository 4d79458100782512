// Command bench measures our proxy beside Envoy, HAProxy and nginx, in the same
// position, on the same machine, in one run.
//
// In: flags that choose scenarios, peers and how long. Out: a Markdown table and
// a plot of ratios with their spread, and the same as JSON. What is compared is
// CPU time per operation, latency and memory; everything that makes or answers
// load runs on one core, the proxy under test alone on another, in a network
// namespace of the bench's own. Our proxy and Envoy obey the same YAML through
// our control plane; the others have configurations by hand in testdata. A
// measurement in which any answer is wrong counts as failed.
//
//	go run ./test/bench -scenario h1,grpc -peers envoy,haproxy,nginx -json out.json -rounds 3 -for 3s
package main
