package server

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/peer"
)

// connections finds the connection of a stream, to cut it. A gRPC method that returns while its client does not read
// leaves its status behind the unread messages, and all of them in memory until the connection ends.
type connections struct {
	mu   sync.Mutex
	open map[ends]*connection
}

// ends are the two addresses of a connection.
type ends struct {
	local, remote string
}

// Listener returns l with connections that the server cuts when a client does not take a response within
// [Config.WriteTimeout]. Without it such a client only loses its stream.
func (s *Server) Listener(l net.Listener) net.Listener {
	return listener{l, &s.connections}
}

type listener struct {
	net.Listener
	connections *connections
}

// Accept waits for the next connection.
func (l listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &connection{Conn: raw, owner: l.connections, ends: ends{raw.LocalAddr().String(), raw.RemoteAddr().String()}}
	c.owner.mu.Lock()
	defer c.owner.mu.Unlock()
	c.owner.open[c.ends] = c
	return c, nil
}

// connection is listed from its beginning to its end.
type connection struct {
	net.Conn
	owner *connections
	ends  ends
}

// Close closes the connection.
func (c *connection) Close() error {
	c.owner.mu.Lock()
	if c.owner.open[c.ends] == c {
		delete(c.owner.open, c.ends)
	}
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

// cut closes the connection of a gRPC method's context, if it is listed.
func (c *connections) cut(ctx context.Context) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil || p.LocalAddr == nil {
		return
	}
	c.mu.Lock()
	found := c.open[ends{p.LocalAddr.String(), p.Addr.String()}]
	c.mu.Unlock()
	if found != nil {
		found.Close()
	}
}
