package server

// Key names one resource as one group of clients sees it. In [Server.Push] an empty Name stands for the set of names
// of the type in the scope.
type Key struct {
	Scope string // what makes the answers to two clients the same bytes
	Type  string // the type URL
	Name  string
}

// Resource is a resource ready to be sent.
type Resource struct {
	Name    string
	Version string // opaque; equal versions of a name mean equal bodies
	Body    []byte // the encoded message: the value of the Any that carries it
}

// Source is a picture of everything that clients may ask for. Streams ask concurrently, and expect short answers:
// resources are compiled and encoded once per scope and shared. Nothing that a Source returns is changed by the
// server, nor may be changed by the source.
//
// For changes to apply whole, a Source is either immutable, so that a change makes another one which [Server.Push]
// brings in together with the keys that differ, or it changes only in the function that is given to Push. The server
// asks for resources and names under the lock that Push takes, so neither may call the server.
type Source interface {
	// Scope says which scope a client belongs to, once for each stream. An error refuses the stream with
	// PermissionDenied; its text is sent to the client.
	Scope(c *Client) (scope string, err error)

	// Resource returns one resource, or false if it does not exist. The Name of the key is never empty.
	Resource(k Key) (Resource, bool)

	// Names lists what a wildcard subscription covers, sorted. While the set is the same the slice should be the
	// same too: then all streams of a scope share it, and a change is compared once for all of them.
	Names(scope, typeURL string) []string
}

// Locality is where a node says it runs.
type Locality struct {
	Region, Zone, SubZone string
}

// Node is what a client says of itself in its first request. Nothing of it is proven.
type Node struct {
	ID       string
	Cluster  string
	Agent    string         // user_agent_name, such as "envoy" or "gRPC Go"
	Metadata map[string]any // as of google.protobuf.Struct.AsMap; in a [ClientStatus] of a past stream NAME and NAMESPACE only
	Locality Locality
}

// Client is who opened a stream.
type Client struct {
	Node     Node
	Peer     string // the address that the connection comes from
	Identity string // proven, as by Config.Identify; empty when the client proves nothing
}
