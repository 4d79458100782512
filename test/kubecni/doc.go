// Package kubecni tests the CNI plugin on a real Kubernetes: what a container runtime tells it, and what becomes of pods.
// It holds tests only.
package kubecni
