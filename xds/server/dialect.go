package server

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// request is what a client sends, in either dialect.
type request struct {
	node    *core.Node
	typeURL string
	nonce   string
	refused bool
	refusal string // why

	// Incremental only.
	subscribe, unsubscribe []string
	initial                map[string]string // versions by name that the client holds already

	// State of the world only: all names that the client wants.
	names []string
}

// answer is what a client is sent, in either dialect.
type answer struct {
	typeURL   string
	version   string
	nonce     string
	resources []Resource
	removed   []string // incremental only
}

// dialect is one stream of either kind. Its methods are called from different goroutines.
type dialect interface {
	recv() (*request, error)
	send(*answer) error
}

// deltaDialect is an incremental stream.
type deltaDialect struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (d deltaDialect) recv() (*request, error) {
	r, err := d.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		node:        r.GetNode(),
		typeURL:     r.GetTypeUrl(),
		nonce:       r.GetResponseNonce(),
		refused:     r.GetErrorDetail() != nil,
		refusal:     r.GetErrorDetail().GetMessage(),
		subscribe:   r.GetResourceNamesSubscribe(),
		unsubscribe: r.GetResourceNamesUnsubscribe(),
		initial:     r.GetInitialResourceVersions(),
	}, nil
}

func (d deltaDialect) send(a *answer) error {
	response := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: a.version,
		TypeUrl:           a.typeURL,
		Nonce:             a.nonce,
		RemovedResources:  a.removed,
		Resources:         make([]*discovery.Resource, len(a.resources)),
	}
	for i, r := range a.resources {
		response.Resources[i] = &discovery.Resource{
			Name:     r.Name,
			Version:  r.Version,
			Resource: &anypb.Any{TypeUrl: a.typeURL, Value: r.Body},
		}
	}
	return d.Send(response)
}

// sotwDialect is a state-of-the-world stream.
type sotwDialect struct {
	discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (d sotwDialect) recv() (*request, error) {
	r, err := d.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		node:    r.GetNode(),
		typeURL: r.GetTypeUrl(),
		nonce:   r.GetResponseNonce(),
		refused: r.GetErrorDetail() != nil,
		refusal: r.GetErrorDetail().GetMessage(),
		names:   r.GetResourceNames(),
	}, nil
}

func (d sotwDialect) send(a *answer) error {
	response := &discovery.DiscoveryResponse{
		VersionInfo: a.version,
		TypeUrl:     a.typeURL,
		Nonce:       a.nonce,
		Resources:   make([]*anypb.Any, len(a.resources)),
	}
	for i, r := range a.resources {
		response.Resources[i] = &anypb.Any{TypeUrl: a.typeURL, Value: r.Body}
	}
	return d.Send(response)
}

// DeltaAggregatedResources implements the incremental method of the service.
func (s *Server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(stream.Context(), deltaDialect{stream}, false)
}

// StreamAggregatedResources implements the state-of-the-world method of the service.
func (s *Server) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(stream.Context(), sotwDialect{stream}, true)
}
