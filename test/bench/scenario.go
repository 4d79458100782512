package main

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/lateen-mesh/lateen/test/bench/load"
	"github.com/lateen-mesh/lateen/test/world"
)

// scenario is one way in which the proxies are used. The first variant is the usual one, which is profiled.
type scenario struct {
	name, about string
	services    []service
	variants    []variant
	position    position
}

// position is where the proxies stand, and what else is particular to a scenario.
type position int

const (
	atGateway position = 1 << iota // one proxy, plaintext on both sides
	atServer                       // beside the service: mutual TLS from the client, 20 authorization rules, access log
	atBoth                         // beside the client and beside the service, mutual TLS between the two
	atClient                       // beside the client, in a mesh of many services
	fresh                          // everything is started anew for each measurement
	timed                          // the first answer of each proxy is waited for
	obedient                       // only those that obey our control plane can be compared
	tunnels                        // the services' workloads want HBONE, which Envoy and the others have no part in
	unpinned                       // load, services and proxies share all CPUs, and ours with two event loops stands beside ours with one
	untuned                        // nginx with its own buffers stands beside the one with ours
	sidecars                       // Envoy that is told of the used services only stands beside the one that is told of all
)

// peers are those of a list that can be compared in the scenario, and those that are of interest there only.
func (sc *scenario) peers(list []string) []string {
	out := slices.DeleteFunc(slices.Clone(list), func(p string) bool {
		switch {
		case p == peerEnvoy && sc.position&tunnels != 0:
			return true // it would go on as in l4-mtls
		case sc.position&unpinned != 0:
			return p != peerOther
		case obeys(p):
			return false
		case sc.position&(obedient|atServer|atClient) != 0:
			return true
		}
		return sc.position&atBoth != 0 && sc.services[0].downstream != "TCP"
	})
	switch {
	case sc.position&unpinned != 0:
		out = append(out, peerOneLoop)
	case sc.position&untuned != 0 && slices.Contains(list, peerNginx):
		out = append(out, peerNginxDefault)
	case sc.position&sidecars != 0 && slices.Contains(list, peerEnvoy):
		out = append(out, peerEnvoyUsed)
	}
	return out
}

// kind is whose data plane a peer is that obeys our control plane; empty for the others.
func kind(peer string) world.Kind {
	switch peer {
	case ours, peerOther, peerOneLoop:
		return world.Lateen
	case peerEnvoy, peerEnvoyUsed:
		return world.Envoy
	}
	return ""
}

// obeys reports whether a peer obeys our control plane.
func obeys(peer string) bool { return kind(peer) != "" }

// service is what stands behind the proxies, and how they are told to speak: protocols as Istio names them.
type service struct {
	load.Service
	downstream, upstream string
}

// variant is one load of a scenario.
type variant struct {
	name    string
	service int // index in the scenario's
	job     load.Job
	// share is the rate as a part of what the slowest peer can do with that job; 0: as the job says.
	share float64
	// special measures what is no load; nil: the job.
	special func(s *stage, ctx context.Context, p *peer) (sample, error)
	// services is how many there are in the mesh, where that is what matters.
	services int
}

const (
	kib = 1 << 10
	// page is the size of the usual answer, and message that of the usual message.
	page    = kib
	message = kib
)

func http1Service(size int) []service {
	return []service{{load.Service{Kind: load.ServeHTTP1, Size: size}, "HTTP", "HTTP"}}
}

func http1Load(connections, size int) load.Job {
	return load.Job{Kind: load.HTTP1, Connections: connections, Size: size}
}

// twoSizes are two services that answers tell apart.
func twoSizes() []service { return append(http1Service(page), http1Service(2*page)...) }

// tenAlike are the endpoints of services in a large mesh.
func tenAlike() []service {
	var out []service
	for range 10 {
		out = append(out, http1Service(page)...)
	}
	return out
}

func sized(services int) variant {
	return variant{name: strconv.Itoa(services), services: services, special: (*stage).measureUse}
}

func hold(connections int) []variant {
	return []variant{{name: strconv.Itoa(connections), job: load.Job{Kind: load.Hold, Connections: connections, Size: page}}}
}

func grpcLoad(kind string, connections, streams int) load.Job {
	return load.Job{Kind: kind, Connections: connections, Streams: streams, Size: page}
}

// scenarios lists all, in the order of the table.
func scenarios() []scenario {
	rate := func(perSecond float64) load.Job {
		j := http1Load(32, page)
		j.Rate = perSecond
		return j
	}
	tcp := []service{
		{load.Service{Kind: load.ServeSource}, "TCP", "TCP"}, {load.Service{Kind: load.ServeEcho}, "TCP", "TCP"},
	}
	tcpLoads := []variant{
		{name: "bulk", job: load.Job{Kind: load.Bulk, Connections: 4}},
		{name: "ping-64", service: 1, job: load.Job{Kind: load.Ping, Connections: 64, Size: message}},
		{name: "ping-1", service: 1, job: load.Job{Kind: load.Ping, Connections: 1, Size: message}},
		{name: "connect", service: 1, job: load.Job{Kind: load.Connect, Connections: 16, Size: 100}},
	}
	h1 := []variant{
		{name: "64", job: http1Load(64, page)},
		{name: "1", job: http1Load(1, page)},
		{name: "16", job: http1Load(16, page)},
		{name: "256", job: http1Load(256, page)},
	}
	list := []scenario{
		{"h1", "HTTP/1.1 keep-alive, 1 KiB answers", http1Service(page), h1, atGateway},
		{
			"h1-loops", "HTTP/1.1 keep-alive, ours with two event loops beside ours with one, on the same CPUs as load and service",
			http1Service(page),
			[]variant{{name: "60%", job: http1Load(64, page), share: 0.6}, {name: "64", job: http1Load(64, page)}},
			atGateway | unpinned,
		},
		{
			"h1-64k", "HTTP/1.1 keep-alive, 64 KiB answers", http1Service(64 * kib),
			[]variant{{name: "64", job: http1Load(64, 64*kib)}},
			atGateway | untuned,
		},
		{
			"h1-close", "HTTP/1.1, a client connection for each request", http1Service(page),
			[]variant{{name: "16", job: load.Job{Kind: load.Close, Connections: 16, Size: page}}},
			atGateway,
		},
		{
			"h1-rate", "HTTP/1.1 keep-alive on 32 connections at a fixed rate", http1Service(page),
			[]variant{{name: "3000/s", job: rate(3000)}, {name: "60%", job: rate(0), share: 0.6}},
			atGateway,
		},
		{
			"grpc", "gRPC unary calls, connections × streams",
			[]service{{load.Service{Kind: load.ServeGRPC, Size: page}, "GRPC", "GRPC"}},
			[]variant{{name: "8x16", job: grpcLoad(load.GRPC, 8, 16)}, {name: "64x1", job: grpcLoad(load.GRPC, 64, 1)}},
			atGateway,
		},
		{
			"grpc-stream", "gRPC messages there and back on open streams",
			[]service{{load.Service{Kind: load.ServeStream, Size: message}, "GRPC", "GRPC"}},
			[]variant{{name: "8x16", job: grpcLoad(load.Stream, 8, 16)}},
			atGateway,
		},
		{
			"h2-h1", "HTTP/2 in, HTTP/1.1 out",
			[]service{{load.Service{Kind: load.ServeHTTP1, Size: page}, "HTTP2", "HTTP"}},
			[]variant{{name: "8x16", job: grpcLoad(load.HTTP2, 8, 16)}},
			atGateway,
		},
		{"l4", "TCP: bulk from the service, 1 KiB ping-pong, a connection for each echo of 100 bytes", tcp, tcpLoads, atGateway},
		{"h1-mesh", "HTTP/1.1 beside the service: mutual TLS in, 20 authorization rules, access log", http1Service(page), h1[:1], atServer},
		{"h1-mesh-pair", "HTTP/1.1 through both sidecars, mutual TLS between them", http1Service(page), h1[:1], atBoth},
		{"l4-mtls", "TCP through two proxies, mutual TLS between them", tcp, tcpLoads, atBoth},
		{"hbone", "TCP through two proxies, in HBONE tunnels between ours, each in mutual TLS between others", tcp, tcpLoads, atBoth | tunnels},
	}
	return append(list, lifeScenarios()...)
}

// lifeScenarios measure what is no load.
func lifeScenarios() []scenario {
	return []scenario{
		{"idle", "memory for each 1,000 idle connections of so many, plaintext HTTP", http1Service(page), hold(5000), atGateway | fresh},
		{"idle-mtls", "memory for each 1,000 idle connections of so many, mutual TLS", http1Service(page), hold(2000), atServer | fresh},
		{
			"start", "from the start of the process to the first answer", http1Service(page),
			[]variant{{name: "gateway", special: (*stage).measureStart}},
			atGateway | fresh | timed,
		},
		{
			"config", "from a change of an endpoint to the first answer that obeys it", twoSizes(),
			[]variant{{name: "endpoint", special: (*stage).measureConfig}},
			atGateway | fresh | obedient,
		},
		{
			"memory", "sidecar that has used 20 services of so many, with 10 endpoints each", tenAlike(),
			[]variant{sized(10), sized(1_000), sized(10_000)},
			atClient | fresh | obedient | sidecars,
		},
	}
}

// chosen are the scenarios that are asked for, "name" or "name/variant" each; all if none is.
func (cfg *config) chosen() []scenario {
	var out []scenario
	for _, sc := range scenarios() {
		if len(cfg.scenarios) == 0 {
			out = append(out, sc)
			continue
		}
		var variants []variant
		for _, v := range sc.variants {
			if slices.Contains(cfg.scenarios, sc.name) || slices.Contains(cfg.scenarios, sc.name+"/"+v.name) {
				variants = append(variants, v)
			}
		}
		if sc.variants = variants; len(variants) > 0 {
			out = append(out, sc)
		}
	}
	return out
}

// known reports whether a scenario, or one variant of it, is called so.
func known(name string) bool { return len((&config{scenarios: []string{name}}).chosen()) > 0 }

func scenarioNames() []string {
	var out []string
	for _, s := range scenarios() {
		out = append(out, s.name)
	}
	return out
}

// warm is how long each load runs before it counts.
const warm = 500 * time.Millisecond
