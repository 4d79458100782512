// Package telemetry is the vocabulary of what happened: the closed list of
// Reasons, Envoy's response flags, the peers and services that metrics are
// labelled with, and Istio's metric names and label sets.
//
// In: nothing; it is vocabulary that both planes share. Out: words, and the
// mapping of each word to what Envoy, Istio, HTTP and gRPC call it. It must not
// know sockets, configuration formats or exporters. Everything here is an
// immutable value: any goroutine may use it at any time.
//
// The folders beside it do the work: metrics counts, scrape exposes the counts
// to Prometheus, accesslog writes lines, trace carries trace context and makes
// spans, export ships them.
package telemetry
