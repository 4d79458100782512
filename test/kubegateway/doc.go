// Package kubegateway runs the Gateway API against a real API server: its own definitions, server-side apply, status.
package kubegateway
