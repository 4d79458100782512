// Package kubeservers runs several servers of one mesh against a real API server, as its service account, and kills them and
// replaces their root while requests are under way. It holds tests only.
package kubeservers
