package server

import (
	"context"
	"io"
	"strconv"
	"sync"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// BenchmarkPush pushes one changed key of 4 KiB to 1,000 streams that subscribe to it, and waits until each client
// has it. Without gRPC the figure is the server's own work; with it, that of gRPC on both sides is in.
func BenchmarkPush(b *testing.B) {
	const streams = 1000
	b.Run("alone", func(b *testing.B) {
		s := New(Config{Source: flat("0")})
		var received sync.WaitGroup
		received.Add(streams)
		var serving sync.WaitGroup
		ctx, cancel := context.WithCancel(b.Context())
		for range streams {
			serving.Go(func() {
				if err := s.serve(ctx, &counted{ctx: ctx, received: &received}, false); status.Code(err) != codes.Canceled {
					b.Error(err)
				}
			})
		}
		received.Wait()
		pushes(b, s, &received, streams)
		cancel()
		serving.Wait()
	})
	b.Run("grpc", func(b *testing.B) {
		s := New(Config{Source: flat("0")})
		address := listen(b, s)
		var received, reading sync.WaitGroup
		received.Add(streams)
		ctx, cancel := context.WithCancel(b.Context())
		for range streams {
			stream, err := connect(b, address).DeltaAggregatedResources(ctx)
			if err != nil {
				b.Fatal(err)
			}
			first := &discovery.DeltaDiscoveryRequest{Node: me, TypeUrl: typeA, ResourceNamesSubscribe: []string{"a"}}
			if err := stream.Send(first); err != nil {
				b.Fatal(err)
			}
			reading.Go(func() {
				for {
					r, err := stream.Recv()
					if err != nil {
						return
					}
					if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, ResponseNonce: r.GetNonce()}); err != nil {
						return
					}
					received.Done()
				}
			})
		}
		received.Wait()
		pushes(b, s, &received, streams)
		cancel()
		reading.Wait()
	})
}

func pushes(b *testing.B, s *Server, received *sync.WaitGroup, streams int) {
	version := 0
	b.ReportAllocs()
	for b.Loop() {
		version++
		received.Add(streams)
		s.Push(flat(strconv.Itoa(version)), listed(Key{"all", typeA, "a"}))
		received.Wait()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(streams), "ns/stream")
}

// flat is a source with one version of every name.
type flat string

var flatBody = make([]byte, 4<<10)

func (f flat) Scope(*Client) (string, error) { return "all", nil }
func (f flat) Resource(k Key) (Resource, bool) {
	return Resource{Name: k.Name, Version: string(f), Body: flatBody}, true
}
func (f flat) Names(string, string) []string { return nil }

// counted is a client without a network that subscribes to one name and counts what it receives.
type counted struct {
	ctx      context.Context
	received *sync.WaitGroup
	asked    bool
}

func (c *counted) recv() (*request, error) {
	if !c.asked {
		c.asked = true
		return &request{node: &core.Node{Id: "me"}, typeURL: typeA, subscribe: []string{"a"}}, nil
	}
	<-c.ctx.Done()
	return nil, io.EOF
}

func (c *counted) send(*answer) error {
	c.received.Done()
	return nil
}
