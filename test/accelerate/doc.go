// Package accelerate tests the proxy's event loop on connections that redirect/accelerate shortens.
//
// In: nothing. Out: verdicts of tests. It runs as root in a network namespace of its own; the package must not know the
// control plane. The two packages must not know each other, which is why their test is here.
package accelerate
