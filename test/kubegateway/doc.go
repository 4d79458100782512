// Package kubegateway runs the Gateway API: against a real API server its own definitions, server-side apply and status, and
// on a real cluster requests through Gateways that are deployed automatically, and between pods by routes of Services.
package kubegateway
