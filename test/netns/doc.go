// Package netns runs the demo as a person would: real binaries, real network
// namespaces, real capture rules. It holds tests only.
package netns
