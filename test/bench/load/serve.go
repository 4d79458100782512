package load

import (
	"fmt"
	"net/netip"
)

// The kinds of Service.
const (
	ServeHTTP1  = "http1"  // answers each HTTP/1.1 request with Size bytes
	ServeGRPC   = "grpc"   // answers each gRPC call with one message of Size bytes
	ServeStream = "stream" // a gRPC method that sends back every message
	ServeEcho   = "echo"   // sends back every byte
	ServeSource = "source" // sends all the time
)

// Service is what is served on one port: of 127.0.0.1 any that is free, or as Address says.
type Service struct {
	Kind    string
	Size    int
	Address netip.AddrPort
}

// Serve opens a port for each service, tells which, and serves for ever, or until an error.
func Serve(services []Service, tell func([]netip.AddrPort) error) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	var ports []netip.AddrPort
	for _, s := range services {
		accept, err := s.accept()
		if err != nil {
			return err
		}
		port, err := l.listen(s.Address, accept)
		if err != nil {
			return err
		}
		ports = append(ports, port)
	}
	if err := tell(ports); err != nil {
		return err
	}
	for l.err == nil {
		l.wait(-1)
	}
	return l.err
}

// accept returns what makes the owner of each connection.
func (s Service) accept() (func() owner, error) {
	switch s.Kind {
	case ServeHTTP1:
		answer := http1Answer(s.Size)
		return func() owner { return &http1Server{answer: answer} }, nil
	case ServeGRPC, ServeStream:
		stream := s.Kind == ServeStream
		message := Message(s.Size)
		return func() owner { return newHTTP2Server(message, stream) }, nil
	case ServeEcho:
		return func() owner { return echo{} }, nil
	case ServeSource:
		chunk := Body(scratchSize)
		return func() owner { return source{chunk} }, nil
	}
	return nil, fmt.Errorf("a service of kind %q is not known", s.Kind)
}
