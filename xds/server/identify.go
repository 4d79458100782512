package server

import (
	"context"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// identify reads from the first request and the connection who a client is.
func (s *Server) identify(ctx context.Context, node *core.Node, proven string) (*Client, error) {
	if node == nil {
		return nil, status.Error(codes.InvalidArgument, "the first request of a stream has to describe the node")
	}
	if size := proto.Size(node); size > s.config.NodeMaxBytes {
		return nil, status.Errorf(codes.InvalidArgument,
			"the description of node %.128q has %d bytes, the limit is %d; shorten its metadata", node.GetId(), size, s.config.NodeMaxBytes)
	}
	client := &Client{Identity: proven, Node: Node{
		ID:       node.GetId(),
		Cluster:  node.GetCluster(),
		Agent:    node.GetUserAgentName(),
		Metadata: node.GetMetadata().AsMap(),
		Locality: Locality{
			Region:  node.GetLocality().GetRegion(),
			Zone:    node.GetLocality().GetZone(),
			SubZone: node.GetLocality().GetSubZone(),
		},
	}}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		client.Peer = p.Addr.String()
	}
	return client, nil
}

// prove finds out who opened a stream, before the stream costs anything: who brings a wrong proof takes no place
// from those who bring a right one.
func (s *Server) prove(ctx context.Context) (string, error) {
	proven, err := s.config.Identify(ctx)
	if err == nil {
		return proven, nil
	}
	from := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = p.Addr.String()
	}
	s.logger.Warn("discovery stream refused", "peer", from, "cause", err)
	if _, ok := status.FromError(err); !ok {
		err = status.Error(codes.Unauthenticated, err.Error())
	}
	return "", err
}

// certified returns the URI name of a client certificate that the handshake verified. An X.509-SVID has exactly one
// (SPIFFE X509-SVID, section 2); a certificate with more or none proves nothing here.
func certified(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", nil
	}
	tls, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(tls.State.VerifiedChains) == 0 {
		return "", nil
	}
	leaf := tls.State.VerifiedChains[0][0]
	if len(leaf.URIs) != 1 {
		return "", nil
	}
	return leaf.URIs[0].String(), nil
}
