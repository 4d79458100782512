// Package kubevalidate tests with a real API server what `kubectl apply` refuses: that lateend's webhook comes into force by
// itself, says what `lateen apply` says, and that the schemas of Istio's kinds refuse nothing that we do not.
//
// It is tests only, and must not know how clusters are made (test/kubetest).
package kubevalidate
