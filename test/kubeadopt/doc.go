// Package kubeadopt follows, on a real cluster, the procedures by which users of Istio bring an application into a mesh and
// release new versions in it: docs/adoption.md, whose commands it runs. It holds tests only; peer is what its pods run.
package kubeadopt
