package envoy_test

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
)

const (
	greeterHost = "greeter.default.svc.cluster.local"
	greeterPort = "greeter.default.svc.cluster.local:9080"
)

// greeter is a gRPC service that says which version it is, in a header; the first calls of a version may fail.
type greeter struct {
	healthpb.UnimplementedHealthServer
	version string
}

func (g *greeter) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("version", g.version)); err != nil {
		return nil, err
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// greet runs a version of the service on loopback.
func greet(t *testing.T, version string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, &greeter{version: version})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// greeterPlan is the plan for a service with two versions: header end-user=jason goes to v2, header cut=off is aborted,
// the rest is split 3 to 1.
func greeterPlan(v1, v2 netip.AddrPort) []plan.Resource {
	name := func(subset string) string { return "outbound|9080|" + subset + "|" + greeterHost }
	list := []plan.Resource{
		&plan.Listener{Name: greeterPort, Chains: []plan.Chain{{
			Name: greeterHost, Protocol: plan.ProtocolGRPC, HTTP: &plan.HTTP{ByHost: true, Route: greeterPort},
			TCP: &plan.TCP{Clusters: []plan.WeightedCluster{{Cluster: name("")}}},
		}}},
		&plan.Route{Name: greeterPort, Hosts: []plan.VirtualHost{{
			Name: greeterPort, Domains: []string{"greeter", greeterHost, greeterPort},
			Rules: []plan.Rule{
				{
					Name:     "jason",
					Match:    plan.RequestMatch{Headers: []plan.HeaderMatch{{Name: "end-user", Value: plan.StringMatch{Kind: plan.MatchExact, Value: "jason"}}}},
					Clusters: []plan.WeightedCluster{{Cluster: name("v2")}}, Timeout: 10 * time.Second, Retry: greeterRetry(),
				},
				{
					Name:     "cut",
					Match:    plan.RequestMatch{Headers: []plan.HeaderMatch{{Name: "cut", Value: plan.StringMatch{Kind: plan.MatchPresent}}}},
					Clusters: []plan.WeightedCluster{{Cluster: name("v1")}},
					Fault:    &plan.Fault{AbortGRPC: int(codes.FailedPrecondition), AbortPercent: 100},
				},
				{
					Name: "split", Retry: greeterRetry(),
					Clusters: []plan.WeightedCluster{{Cluster: name("v1"), Weight: 75}, {Cluster: name("v2"), Weight: 25}},
				},
			},
		}}},
	}
	for _, subset := range []struct {
		name string
		at   netip.AddrPort
	}{{"v1", v1}, {"v2", v2}} {
		list = append(list,
			&plan.Cluster{
				Name: name(subset.name), Protocol: plan.ProtocolGRPC, Subset: subset.name, TLS: plan.ClientTLS{Mode: plan.ClientTLSAuto},
				Service: plan.ServiceName{Host: greeterHost, Name: "greeter", Namespace: "default"},
				Outlier: &plan.Outlier{Consecutive5xx: 5}, Limits: plan.Limits{Requests: 100},
			},
			&plan.Endpoints{Name: name(subset.name), Endpoints: []plan.Endpoint{
				{Address: subset.at, Locality: "europe/west/a", Workload: plan.Workload{Name: "greeter-" + subset.name, Namespace: "default"}},
				{Address: netip.MustParseAddrPort("127.0.0.1:1"), Health: plan.Unhealthy, Locality: "europe/west/a"},
			}},
		)
	}
	return list
}

func greeterRetry() *plan.Retry {
	return &plan.Retry{Attempts: 2, On: plan.OnConnectFailure | plan.OnGRPCUnavailable | plan.OnGRPCCancelled, AvoidPrevious: true}
}

// xdsResolver is gRPC's own, with a bootstrap that names our control plane.
func xdsResolver(t *testing.T, control string) resolver.Builder {
	t.Helper()
	bootstrap, err := json.Marshal(map[string]any{
		"xds_servers": []any{map[string]any{
			"server_uri": control, "channel_creds": []any{map[string]any{"type": "insecure"}}, "server_features": []string{"xds_v3"},
		}},
		"node": map[string]any{"id": "sidecar~127.0.0.1~client.default~default.svc.cluster.local", "metadata": map[string]any{"GENERATOR": "grpc"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := xds.NewXDSResolverWithConfigForTesting(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGRPC lets a gRPC client resolve a service by our control plane and call it, with no proxy between the two.
func TestGRPC(t *testing.T) {
	s, control := serve(t, paint(t, envoy.GRPC, envoy.Options{}, nil, greeterPlan(greet(t, "v1"), greet(t, "v2"))...))
	c, err := grpc.NewClient("xds:///"+greeterPort, grpc.WithResolvers(xdsResolver(t, control)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	call := func(fields ...string) (string, error) {
		var got metadata.MD
		_, err := healthpb.NewHealthClient(c).Check(metadata.AppendToOutgoingContext(ctx, fields...), &healthpb.HealthCheckRequest{},
			grpc.Header(&got), grpc.WaitForReady(true))
		return slices.Concat(got.Get("version"), []string{""})[0], err
	}

	for range 20 {
		if got, err := call("end-user", "jason"); err != nil || got != "v2" {
			t.Fatalf("with header end-user: version %q, %v; want v2", got, err)
		}
	}
	const calls = 400
	seen := map[string]int{}
	for range calls {
		got, err := call()
		if err != nil {
			t.Fatal(err)
		}
		seen[got]++
	}
	// 100 are expected; 40 to 160 is seven standard deviations either way.
	if n := seen["v2"]; n < 40 || n > 160 || seen["v1"]+n != calls {
		t.Errorf("split of %d calls: %v, want about 300 and 100", calls, seen)
	}
	if _, err := call("cut", "off"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("with a fault: %v, want FailedPrecondition", err)
	}
	refused, accepted := refusals(s)
	if len(refused) > 0 {
		t.Errorf("the client refused %v", refused)
	}
	if want := []string{"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"}; !slices.Equal(accepted, want) {
		t.Errorf("the client accepted %v, want %v", accepted, want)
	}
}

// TestGRPCRefuses names what a gRPC client cannot do, rather than sending what it would refuse.
func TestGRPCRefuses(t *testing.T) {
	for name, r := range map[string]plan.Resource{
		"bytes":            &plan.Listener{Name: "db.default.svc.cluster.local:3306", Chains: []plan.Chain{{Protocol: plan.ProtocolTCP, TCP: &plan.TCP{}}}},
		"original address": &plan.Cluster{Name: plan.ClusterPassthrough, Discovery: plan.DiscoverOriginalDst},
		"path template": &plan.Route{Name: greeterPort, Hosts: []plan.VirtualHost{{Domains: []string{"*"}, Rules: []plan.Rule{
			{Match: plan.RequestMatch{Path: plan.StringMatch{Kind: plan.MatchPath, Value: "/a/{*}"}}, Direct: &plan.DirectResponse{Code: 200}},
		}}}},
	} {
		if out, err := envoy.Encode(envoy.GRPC, r, envoy.Options{}); err == nil {
			t.Errorf("%s: got %v, want an error", name, out)
		}
	}
}
