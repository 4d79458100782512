// Package client is the data plane's end of the delta aggregated discovery service (ADS): it asks a control plane
// for resources by type and name and keeps them current over one stream.
//
// In come subscriptions, from any goroutine, and the server's responses, from a [Dialer]. Out go resources as names,
// versions and bytes, to one [Handler], and an acceptance or a refusal of each response, to the server.
//
// The package must not know a resource type: what a body holds is the handler's matter. It links neither gRPC nor
// the protobuf runtime nor Envoy's types, since each proxy carries it: messages are encoded in wire.go and the
// framing belongs to the dialer.
//
// [Client.Subscribe] and [Client.Unsubscribe] may be called concurrently, and by the handler. [Client.Run] calls the
// handler from one goroutine only.
//
// The protocol is https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol, section "Incremental xDS".
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Wildcard is the name that subscribes to all resources of a type which the server deems of use to this node.
const Wildcard = "*"

// Method is the gRPC method of the stream that [Client.Run] opens.
const Method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

// Defaults of Config, and limits that need no knob.
const (
	defaultSubscriptionsMax = 1 << 16
	defaultBackoffMin       = 200 * time.Millisecond
	defaultBackoffMax       = 10 * time.Second // what a mesh waits at most for a control plane that is back

	// openTimeout bounds the opening of a stream, and sendTimeout the sending of a request to a server that does
	// not read. Both end the stream.
	openTimeout = 15 * time.Second
	sendTimeout = 30 * time.Second

	// settleTime is how long a stream on which the server has nothing to say must stand to count as connected. A
	// server that refuses a client ends the stream at once.
	settleTime = 2 * time.Second
)

// Stream is one bidirectional gRPC stream. Messages are whole: without the frame of gRPC, uncompressed. Recv returns
// [io.EOF] when the server ended the stream with status OK, and what it returned belongs to the caller. Send and Recv
// are called from different goroutines. Close ends the stream at once and makes both return.
type Stream interface {
	Send(message []byte) error
	Recv() ([]byte, error)
	Close()
}

// Dialer opens streams. A stream ends with the context that it was opened with.
type Dialer interface {
	OpenStream(ctx context.Context, method string) (Stream, error)
}

// Resource is a named piece of configuration.
type Resource struct {
	Name    string
	Version string // opaque; equal versions of a name mean equal bodies
	Body    []byte // the encoded message: the value of the Any that carried it
}

// Handler receives what the server sends.
type Handler interface {
	// Update hands over one response: resources that appeared or changed, and names that do not exist, whether they
	// vanished or never were. Both are empty when the server says that a wildcard has no resources. An error goes to
	// the server as the reason. One of type [Refused] refuses the resources that it names, and all else in the response
	// counts; any other refuses the whole response. What is refused must leave the handler in its last good state.
	//
	// All bodies share the bytes of the response: a handler that keeps one keeps them all, and so copies it instead.
	// Update may still name a resource that another goroutine is unsubscribing from at this moment.
	Update(typeURL string, added []Resource, removed []string) error

	// Connected tells that the server has begun (true) or ceased (false) to serve this client. Resources stay as
	// they are while there is no connection.
	Connected(ok bool)
}

// Refused is an error of [Handler.Update]: why resources cannot be obeyed, by their names. The server does not send them
// again before they change; were the whole response refused, the others in it would wait for that, too.
type Refused map[string]error

// refusedTold is how many of the resources that are refused at once an error tells of, which goes to the server.
const refusedTold = 3

// Error tells the first of them, by name.
func (r Refused) Error() string {
	var told []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if len(told) == refusedTold {
			return fmt.Sprintf("%s; and %d more", strings.Join(told, "; "), len(r)-refusedTold)
		}
		told = append(told, r[name].Error())
	}
	return strings.Join(told, "; ")
}

// Locality is where a node runs.
type Locality struct {
	Region, Zone, SubZone string
}

// Node tells the server who asks.
type Node struct {
	ID      string
	Cluster string
	// Metadata holds values of type string, []string and map[string]string.
	Metadata map[string]any
	Locality Locality
}

// Config is what a Client needs to know. Dialer and Handler are required; the zero value of the rest is the default.
type Config struct {
	Dialer  Dialer
	Node    Node
	Handler Handler

	// Logger receives connects, disconnects and refusals. Nil discards them.
	Logger *slog.Logger

	// SubscriptionsMax bounds the names subscribed to per type. 0 means 65,536.
	SubscriptionsMax int

	// BackoffMin and BackoffMax bound the pause before a stream is opened again. The pause doubles with each stream
	// that the server did not serve, and is shortened by up to half at random so that the clients of a server that
	// went away do not return all at once. 0 means 200 ms and 10 s.
	BackoffMin, BackoffMax time.Duration
}

// Client keeps resources current. Use [New].
type Client struct {
	config        Config
	logger        *slog.Logger
	subscriptions subscriptions
	running       atomic.Bool
}

// New returns a client that does nothing before [Client.Run], but accepts subscriptions.
func New(config Config) *Client {
	if config.SubscriptionsMax <= 0 {
		config.SubscriptionsMax = defaultSubscriptionsMax
	}
	if config.BackoffMin <= 0 {
		config.BackoffMin = defaultBackoffMin
	}
	if config.BackoffMax <= 0 {
		config.BackoffMax = defaultBackoffMax
	}
	config.BackoffMax = max(config.BackoffMin, config.BackoffMax)
	logger := config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Client{
		config:        config,
		logger:        logger,
		subscriptions: newSubscriptions(config.SubscriptionsMax),
	}
}

// Subscribe asks for resources of a type by name, or for all with [Wildcard]. A name that is subscribed to already
// is left as it is. Nothing is subscribed to if the names would exceed [Config.SubscriptionsMax], if one is empty,
// longer than 2 KiB or not UTF-8, or if there would be more than 64 types; the error says so.
func (c *Client) Subscribe(typeURL string, names ...string) error {
	return c.subscriptions.add(typeURL, names)
}

// Unsubscribe gives up resources of a type by name, or the wildcard. The client forgets them at once: the handler is
// not told, except of a name that the wildcard of the same type still covers, by the server's answer.
func (c *Client) Unsubscribe(typeURL string, names ...string) {
	c.subscriptions.remove(typeURL, names)
}

// Run keeps one stream to the server open, from the first subscription until the context ends, and returns nil then,
// when all that it started has ended. It fails at once if the Config lacks something or Run has been called before.
func (c *Client) Run(ctx context.Context) error {
	if c.config.Dialer == nil {
		return errors.New("run discovery client: the config has no dialer")
	}
	if c.config.Handler == nil {
		return errors.New("run discovery client: the config has no handler")
	}
	node, err := c.config.Node.encode()
	if err != nil {
		return err
	}
	if !c.running.CompareAndSwap(false, true) {
		return errors.New("run discovery client: it ran before; make a new one")
	}
	retry := backoff{least: c.config.BackoffMin, most: c.config.BackoffMax}
	for c.subscriptions.await(ctx) {
		served, err := c.session(ctx, node)
		if ctx.Err() != nil {
			return nil
		}
		if served {
			retry.reset()
		}
		pause := retry.next()
		if errors.Is(err, io.EOF) {
			c.logger.Info("the control plane ended the stream in good order", "retry_in", pause)
		} else {
			c.logger.Warn("no stream to the control plane; the last configuration stays in force",
				"cause", err, "served", served, "retry_in", pause)
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
	return nil
}
