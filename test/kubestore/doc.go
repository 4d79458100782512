// Package kubestore asks a real API server what source/kube is built on: it reads a cluster, writes its status, and has
// tokens reviewed. It holds tests only.
package kubestore
