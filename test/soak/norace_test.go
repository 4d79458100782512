//go:build !race

package soak

// raceFlags build the proxy as this test is built.
var raceFlags []string
