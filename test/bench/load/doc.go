// Package load makes load for a proxy and answers it: a generator and the
// services behind the proxy, each one single-threaded event loop that runs in a
// process of its own and is cheap enough never to be the bottleneck.
//
// In: a Job, or the Services to serve. Out: a Result, with every answer's length
// and status checked, latencies that count from when an operation should have
// begun, and the CPU time of the processes under test over the very same window.
// Every operation that goes wrong ends the run with an error: a figure with
// failures in it is none. The package must not know which proxy stands between.
// Run and Serve each want a process for themselves.
package load
