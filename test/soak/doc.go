// Package soak lets mixed traffic run through proxies for as long as one likes, while the mesh changes under it, and
// checks every byte.
//
// In: go test ./test/soak -soak 20m -seed 7 -timeout 40m. Out: how many exchanges of each kind there were, and how many
// were wrong or did not succeed without a peer's doing; of those, all that is known. The package must not know how the
// proxy works inside: it sees sockets, access logs and what the process holds.
package soak
