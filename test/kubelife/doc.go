// Package kubelife has requests go through a mesh on a real cluster while its parts are killed, replaced and changed: none
// may fail that need not. It holds tests only; load is what their pods run.
package kubelife
