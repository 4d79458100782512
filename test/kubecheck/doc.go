// Package kubecheck has `lateen check` and the commands that show a mesh look at a real cluster, sound and broken. It holds
// tests only.
package kubecheck
