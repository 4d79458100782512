package client

import (
	"bytes"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/code"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	typeA = "type.googleapis.com/test.A"
	typeB = "type.googleapis.com/test.B"
)

func TestRequestReadsAsEnvoysType(t *testing.T) {
	node := Node{
		ID:      "sidecar~10.0.0.1~reviews.default~default.svc.cluster.local",
		Cluster: "reviews",
		Metadata: map[string]any{
			"NAMESPACE":    "default",
			"EMPTY":        "",
			"LABELS":       map[string]string{"app": "reviews", "blank": ""},
			"INSTANCE_IPS": []string{"10.0.0.1", ""},
			"NONE":         []string{},
		},
		Locality: Locality{Region: "eu", Zone: "eu-1", SubZone: "rack"},
	}
	encoded, err := node.encode()
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE":    "default",
		"EMPTY":        "",
		"LABELS":       map[string]any{"app": "reviews", "blank": ""},
		"INSTANCE_IPS": []any{"10.0.0.1", ""},
		"NONE":         []any{},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantNode := &core.Node{
		Id: node.ID, Cluster: node.Cluster, Metadata: metadata,
		Locality: &core.Locality{Region: "eu", Zone: "eu-1", SubZone: "rack"},
	}
	tests := []struct {
		name string
		in   request
		want *discovery.DeltaDiscoveryRequest
	}{
		{"nothing", request{}, &discovery.DeltaDiscoveryRequest{}},
		{
			"first",
			request{node: encoded, typeURL: typeA, subscribe: []string{"a", "*"}, initial: map[string]string{"a": "1", "b": ""}},
			&discovery.DeltaDiscoveryRequest{
				Node: wantNode, TypeUrl: typeA, ResourceNamesSubscribe: []string{"a", "*"},
				InitialResourceVersions: map[string]string{"a": "1", "b": ""},
			},
		},
		{
			"accept",
			request{typeURL: typeA, nonce: "7", unsubscribe: []string{"a", "b"}},
			&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, ResponseNonce: "7", ResourceNamesUnsubscribe: []string{"a", "b"}},
		},
		{
			"refuse",
			request{typeURL: typeA, nonce: "7", refusal: "no \xffgood"},
			&discovery.DeltaDiscoveryRequest{
				TypeUrl: typeA, ResponseNonce: "7",
				ErrorDetail: &rpc.Status{Code: int32(code.Code_INVALID_ARGUMENT), Message: "no good"},
			},
		},
		{
			"refuse at length",
			request{typeURL: typeA, nonce: "7", refusal: strings.Repeat("x", 2*refusalMaxBytes)},
			&discovery.DeltaDiscoveryRequest{
				TypeUrl: typeA, ResponseNonce: "7",
				ErrorDetail: &rpc.Status{Code: int32(code.Code_INVALID_ARGUMENT), Message: strings.Repeat("x", refusalMaxBytes)},
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := &discovery.DeltaDiscoveryRequest{}
			if err := proto.Unmarshal(test.in.encode(), got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestNodeRefusesOtherMetadata(t *testing.T) {
	node := Node{Metadata: map[string]any{"PORT": 15006}}
	if _, err := node.encode(); err == nil || !strings.Contains(err.Error(), `"PORT"`) {
		t.Errorf("got error %v, want one that names the key", err)
	}
}

// everything is a response with each field that Envoy's types have, also those that the client skips.
func everything() *discovery.DeltaDiscoveryResponse {
	return &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: "v9",
		TypeUrl:           typeA,
		Nonce:             "n1",
		ControlPlane:      &core.ControlPlane{Identifier: "lateend"},
		Resources: []*discovery.Resource{
			{
				Name: "a", Version: "1", Aliases: []string{"alias"},
				Resource: &anypb.Any{TypeUrl: typeA, Value: []byte("body of a")}, Ttl: durationpb.New(5),
				CacheControl: &discovery.Resource_CacheControl{DoNotCache: true},
			},
			{Name: "heartbeat", Version: "1", Ttl: durationpb.New(5)},
			{Name: "empty", Version: "2", Resource: &anypb.Any{TypeUrl: typeA}},
		},
		RemovedResources:     []string{"b", "c"},
		RemovedResourceNames: []*discovery.ResourceName{{Name: "d"}},
	}
}

func TestResponseReadsEnvoysType(t *testing.T) {
	encoded, err := proto.Marshal(everything())
	if err != nil {
		t.Fatal(err)
	}
	encoded = append(encoded, 0xfd, 0x7f, 1, 2, 3, 4) // an unknown field of four fixed bytes
	got, err := decodeResponse(encoded)
	if err != nil {
		t.Fatal(err)
	}
	want := &response{
		typeURL: typeA, nonce: "n1",
		resources: []Resource{{"a", "1", []byte("body of a")}, {"empty", "2", nil}},
		bodyTypes: []string{typeA},
		removed:   []string{"b", "c"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(response{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestResponseRefusesBrokenBytes(t *testing.T) {
	encoded, err := proto.Marshal(everything())
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(encoded) {
		_, ours := decodeResponse(encoded[:n])
		theirs := proto.Unmarshal(encoded[:n], &discovery.DeltaDiscoveryResponse{})
		if (ours == nil) != (theirs == nil) {
			t.Errorf("cut after %d bytes: we say %v, the protobuf runtime %v", n, ours, theirs)
		}
	}
	for _, broken := range [][]byte{
		appendBytes(nil, responseNonce, []byte{0xff}),
		appendBytes(nil, responseRemoved, []byte{0xff}),
		appendBytes(nil, responseResources, appendBytes(nil, resourceName, []byte{0xff})),
	} {
		if _, err := decodeResponse(broken); err == nil {
			t.Errorf("% x: a string that is not UTF-8 was taken", broken)
		}
	}
}

func TestResponseCheck(t *testing.T) {
	tests := []struct {
		name string
		in   response
		want string
	}{
		{"good", response{typeURL: typeA, bodyTypes: []string{typeA}, resources: []Resource{{Name: "a"}, {Name: "b"}}}, ""},
		{"other type", response{typeURL: typeA, bodyTypes: []string{typeA, typeB}}, typeB},
		{"twice", response{typeURL: typeA, resources: []Resource{{Name: "a"}, {Name: "a"}}}, "twice"},
		{"no name", response{typeURL: typeA, resources: []Resource{{}}}, "no name"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.in.check()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want one with %q", err, test.want)
			}
		})
	}
}

// FuzzDecodeResponse holds the decoder against the protobuf runtime.
func FuzzDecodeResponse(f *testing.F) {
	seed, err := proto.Marshal(everything())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeResponse(b)
		want := &discovery.DeltaDiscoveryResponse{}
		if proto.Unmarshal(b, want) != nil {
			return // The runtime also refuses faults in fields that we skip.
		}
		if err != nil {
			t.Fatalf("decode: %v, but the protobuf runtime takes it", err)
		}
		if got.typeURL != want.GetTypeUrl() || got.nonce != want.GetNonce() {
			t.Errorf("got type %q nonce %q, want %q %q", got.typeURL, got.nonce, want.GetTypeUrl(), want.GetNonce())
		}
		if diff := cmp.Diff(want.GetRemovedResources(), got.removed); diff != "" {
			t.Errorf("removed: -want +got\n%s", diff)
		}
		i := 0
		for _, r := range want.GetResources() {
			if r.GetResource() == nil {
				continue
			}
			if i >= len(got.resources) {
				t.Fatalf("got %d resources, want more", i)
			}
			g := got.resources[i]
			if g.Name != r.GetName() || g.Version != r.GetVersion() || !bytes.Equal(g.Body, r.GetResource().GetValue()) {
				t.Errorf("resource %d: got %+v, want %v", i, g, r)
			}
			i++
		}
		if i != len(got.resources) {
			t.Errorf("got %d resources, want %d", len(got.resources), i)
		}
		_ = got.check() // must not panic
	})
}
