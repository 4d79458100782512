// Package kubeinstall installs Lateen in a real cluster as its users do, and has pods talk through it. It holds tests only.
package kubeinstall
