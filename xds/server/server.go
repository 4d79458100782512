// Package server is the control plane's end of the aggregated discovery service (ADS), in both of its dialects:
// incremental (delta) and state of the world.
//
// In come requests from clients (our own proxies, Envoy, gRPC, ztunnel) over gRPC, a [Source] that answers them, and
// a [Server.Push] after each change of it. Out go responses that hold just what each client subscribes to, in an
// order in which nothing points at what is not there yet.
//
// The package must not know a resource type: it sees type URLs, names, versions and bytes. What a client may see is
// decided by the scope that the Source gives it.
//
// A push costs the keys that changed times the streams that subscribe to them, and nothing for any other stream. A
// stream keeps a set of what it still has to send, never a queue of bodies: what changes again before a slow client
// took it is sent once. All methods may be called concurrently.
//
// The protocol is https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
package server

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Defaults of Config.
const (
	defaultStreamsMax       = 20_000
	defaultSubscriptionsMax = 100_000
	defaultRequestMaxBytes  = 16 << 20
	defaultResponseMaxBytes = 3 << 20
	defaultNodeMaxBytes     = 512 << 10
	defaultWriteTimeout     = 20 * time.Second
	defaultAgeMax           = 30 * time.Minute
	defaultDepartedMax      = 1_000
	defaultDepartedKeep     = 10 * time.Minute
)

// Limits that need no knob.
const (
	// typesMax bounds the resource types of a stream, and nameMaxBytes a name.
	typesMax     = 64
	nameMaxBytes = 2 << 10
	// marksMax bounds the changed names that wait behind a slow client with a wildcard. Beyond it the whole set is
	// sent again.
	marksMax = 1 << 14
	// firstRequestTimeout bounds the wait for the request that says who the client is.
	firstRequestTimeout = 15 * time.Second
	// callsMax bounds what one connection has open at a time; a proxy needs two or three, and whoever wants more waits.
	callsMax = 1000
	// refusalMaxBytes bounds what is kept of a client's reason for refusing a response.
	refusalMaxBytes = 2 << 10

	keepaliveInterval = 30 * time.Second
	keepaliveTimeout  = 10 * time.Second
	keepaliveFloor    = 5 * time.Second
)

// Type URLs of Envoy that the defaults of Config name.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeSecret   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Config is what a Server needs to know. The zero value is the default.
type Config struct {
	// Source answers from the start. Without it streams wait for the first [Server.Push], so that a control plane
	// that has not read its configuration yet does not answer that nothing exists.
	Source Source

	// Identify proves who opened a stream, from the context of its gRPC method, as [Client].Identity. It returns ""
	// for a client that brings nothing, which the Source may refuse or not. An error refuses the stream: a gRPC
	// status as it is, anything else as Unauthenticated. Nil takes the URI name of a client certificate that the TLS
	// handshake has verified.
	Identify func(context.Context) (string, error)

	// Logger receives refusals, disconnects and connects. Nil discards them.
	Logger *slog.Logger

	// Order lists type URLs so that none points at one further down: what appears or changes is sent in this order,
	// what vanishes in the reverse one. Types that are not listed come last, by name. Nil means Envoy's clusters,
	// endpoints, secrets, listeners, routes.
	Order []string

	// Whole lists the type URLs whose state-of-the-world responses hold all resources that a client subscribes to,
	// changed or not. Nil means Envoy's listeners and clusters, as the protocol wants.
	Whole []string

	// Again maps a type URL to that of what a client waits for after a resource of the first has changed: what bears the
	// same name goes again behind it, changed or not, if the client subscribes to it. A client that holds the answer to
	// a subscription does not ask anew. Nil means Envoy's endpoints behind their clusters ("Resource warming" in the
	// protocol). Envoy needs no routes behind their listeners: a new version of a listener shares those of the old one.
	Again map[string]string

	// StreamsMax bounds the open streams. 0 means 20,000.
	StreamsMax int
	// SubscriptionsMax bounds the names that one stream subscribes to, over all types. 0 means 100,000.
	SubscriptionsMax int
	// RequestMaxBytes bounds a request. It takes effect through [Server.Options]. 0 means 16 MiB.
	RequestMaxBytes int
	// ResponseMaxBytes is the size beyond which an incremental response is continued in another one. A larger single
	// resource is sent all the same. 0 means 3 MiB, as gRPC clients take up to 4 MiB unless told otherwise.
	ResponseMaxBytes int
	// NodeMaxBytes bounds the description of a node. 0 means 512 KiB.
	NodeMaxBytes int

	// WriteTimeout ends the stream of a client that does not take a response for so long, and its connection if that
	// came through [Server.Listener]. 0 means 20 s.
	WriteTimeout time.Duration
	// AgeMax is when a connection is drained, give or take a tenth at random, so that clients spread over replicas
	// that came later. Its streams end in good order soon after. It takes effect through [Server.Options]. 0 means
	// 30 minutes, as in Istio.
	AgeMax time.Duration

	// DepartedMax and DepartedKeep bound how many clients that went away [Server.Clients] still lists, and for how
	// long. 0 means 1,000 and 10 minutes.
	DepartedMax  int
	DepartedKeep time.Duration
}

// Server serves streams. Use [New].
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	config Config
	logger *slog.Logger
	began  string         // makes versions of two runs of the control plane differ
	rank   map[string]int // of a type URL in Config.Order
	whole  map[string]bool

	index       index
	ready       chan struct{} // closed when there is a source
	departed    departed
	connections connections

	work     sync.WaitGroup // all goroutines of all streams
	draining chan struct{}  // closed by Drain

	mu      sync.Mutex
	open    int // streams
	drained bool
}

// New returns a server that serves as soon as it is registered.
func New(config Config) *Server {
	config.StreamsMax = orDefault(config.StreamsMax, defaultStreamsMax)
	config.SubscriptionsMax = orDefault(config.SubscriptionsMax, defaultSubscriptionsMax)
	config.RequestMaxBytes = orDefault(config.RequestMaxBytes, defaultRequestMaxBytes)
	config.ResponseMaxBytes = orDefault(config.ResponseMaxBytes, defaultResponseMaxBytes)
	config.NodeMaxBytes = orDefault(config.NodeMaxBytes, defaultNodeMaxBytes)
	config.WriteTimeout = orDefault(config.WriteTimeout, defaultWriteTimeout)
	config.AgeMax = orDefault(config.AgeMax, defaultAgeMax)
	config.DepartedMax = orDefault(config.DepartedMax, defaultDepartedMax)
	config.DepartedKeep = orDefault(config.DepartedKeep, defaultDepartedKeep)
	if config.Identify == nil {
		config.Identify = certified
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Order == nil {
		config.Order = []string{typeCluster, typeEndpoint, typeSecret, typeListener, typeRoute}
	}
	if config.Whole == nil {
		config.Whole = []string{typeListener, typeCluster}
	}
	if config.Again == nil {
		config.Again = map[string]string{typeCluster: typeEndpoint}
	}
	s := &Server{
		config:   config,
		logger:   config.Logger,
		began:    time.Now().UTC().Format("20060102T150405Z"),
		rank:     map[string]int{},
		whole:    map[string]bool{},
		index:    newIndex(config.Source),
		ready:    make(chan struct{}),
		departed: departed{max: config.DepartedMax, keep: config.DepartedKeep},
		draining: make(chan struct{}),

		connections: connections{open: map[ends]*connection{}},
	}
	for i, typeURL := range slices.Backward(config.Order) {
		s.rank[typeURL] = i
	}
	for _, typeURL := range config.Whole {
		s.whole[typeURL] = true
	}
	if config.Source != nil {
		close(s.ready)
	}
	return s
}

// orDefault returns value, or the default if value is not positive.
func orDefault[T int | time.Duration](value, otherwise T) T {
	if value <= 0 {
		return otherwise
	}
	return value
}

// Register offers the discovery service on g, which should be made with [Server.Options] and serve on a
// [Server.Listener].
func (s *Server) Register(g *grpc.Server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// Options returns the settings of a gRPC server that enforce the limits of the Config: the size of a request, how many
// are open on a connection, pings that find dead connections, and the age of a connection. gRPC varies the age by a tenth either way and asks the
// client to leave; a stream ends by itself later than that, so that its client's next stream takes a new connection.
func (s *Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.config.RequestMaxBytes),
		grpc.MaxConcurrentStreams(callsMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      s.config.AgeMax,
			MaxConnectionAgeGrace: s.config.AgeMax, // only for a client that does not leave
			Time:                  keepaliveInterval,
			Timeout:               keepaliveTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             keepaliveFloor,
			PermitWithoutStream: true,
		}),
	}
}

// Push brings in a source, calls change, and marks all streams that subscribe to a key that change returns. The keys
// are those whose bytes differ from before the Push, or that appeared or vanished, and one with an empty Name for each
// type and scope whose set of names differs. A source that is not immutable changes within change and at no other
// time: no stream asks it meanwhile. change must be quick and must not call the server.
//
// All that one Push changes for a stream is sent together; several that pile up behind a slow client become one. Push
// waits for the answers that are being made, but for no client. Pushes apply in the order of the calls.
func (s *Server) Push(next Source, change func() []Key) {
	if next == nil {
		panic("xds/server: push of no source")
	}
	if first := s.index.push(next, change); first {
		close(s.ready)
	}
}

// Drain refuses new streams, ends the open ones in good order and returns when all have ended. Their clients come
// back to another replica.
func (s *Server) Drain() {
	s.mu.Lock()
	if !s.drained {
		s.drained = true
		close(s.draining)
	}
	s.mu.Unlock()
	s.index.drain()
	s.work.Wait()
}

// enter admits a stream, which calls exit at its end.
func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drained {
		return status.Error(codes.Unavailable, "this control plane is shutting down; connect to another replica")
	}
	if s.open >= s.config.StreamsMax {
		return status.Errorf(codes.ResourceExhausted,
			"this control plane serves its limit of %d streams; add replicas or raise the limit", s.config.StreamsMax)
	}
	s.open++
	s.work.Add(1)
	return nil
}

func (s *Server) exit() {
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
	s.work.Done()
}

// version names the state of the source after a number of pushes, for people.
func (s *Server) version(generation uint64) string {
	return s.began + "/" + strconv.FormatUint(generation, 10)
}

// Release calls forget for each of the keys that no open stream subscribes to, by name or by wildcard. No stream can
// subscribe to a key between the look and the call, so a source may let go of its answer. forget must be quick and
// must not call the server.
func (s *Server) Release(keys []Key, forget func(Key)) { s.index.release(keys, forget) }
