package envoy_test

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/xds/envoy"
	"github.com/lateen-mesh/lateen/xds/server"
)

// patience bounds how long a test waits for a peer.
const patience = 30 * time.Second

// picture serves a fixed plan to clients of one flavour.
type picture struct {
	resources map[server.Key]server.Resource
	names     map[string][]string // by type URL
}

// paint encodes a plan. amend, if not nil, may change a message on its way.
func paint(t *testing.T, f envoy.Flavour, o envoy.Options, amend func(proto.Message), list ...plan.Resource) *picture {
	t.Helper()
	p := &picture{resources: map[server.Key]server.Resource{}, names: map[string][]string{}}
	for _, r := range list {
		for _, x := range encode(t, f, o, r) {
			if amend != nil {
				amend(x.Message)
			}
			body, err := x.Body()
			if err != nil {
				t.Fatal(err)
			}
			k := server.Key{Type: x.TypeURL, Name: x.Name}
			p.resources[k] = server.Resource{Name: x.Name, Version: strconv.Itoa(len(p.resources)), Body: body}
			p.names[x.TypeURL] = append(p.names[x.TypeURL], x.Name)
		}
	}
	for _, names := range p.names {
		slices.Sort(names)
	}
	return p
}

func (p *picture) Scope(*server.Client) (string, error) { return "all", nil }

func (p *picture) Resource(k server.Key) (server.Resource, bool) {
	k.Scope = ""
	r, ok := p.resources[k]
	return r, ok
}

func (p *picture) Names(_, typeURL string) []string { return p.names[typeURL] }

// serve runs a control plane with that picture on loopback until the test ends.
func serve(t *testing.T, p *picture) (*server.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{
		Source: p, Identify: func(context.Context) (string, error) { return "", nil },
	})
	g := grpc.NewServer(append(s.Options(), grpc.Creds(insecure.NewCredentials()))...)
	s.Register(g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
	})
	return s, l.Addr().String()
}

// refusals lists what clients refused, and the types that they accepted.
func refusals(s *server.Server) (refused, accepted []string) {
	for _, c := range s.Clients() {
		for _, ty := range c.Types {
			if ty.NackMessage != "" {
				refused = append(refused, ty.TypeURL+": "+ty.NackMessage)
			}
			if !ty.AckedAt.IsZero() {
				accepted = append(accepted, ty.TypeURL[strings.LastIndexByte(ty.TypeURL, '.')+1:])
			}
		}
	}
	slices.SortFunc(accepted, cmp.Compare[string])
	return refused, slices.Compact(accepted)
}

// validated is a message that can check itself, as all of Envoy's can.
type validated interface{ ValidateAll() error }

// encode encodes a resource, and fails if Envoy's own rules find fault with the result.
func encode(t *testing.T, f envoy.Flavour, o envoy.Options, r plan.Resource) []envoy.Resource {
	t.Helper()
	out, err := envoy.Encode(f, r, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range out {
		v, ok := x.Message.(validated)
		if !ok {
			t.Fatalf("%T does not validate itself", x.Message)
		}
		if err := v.ValidateAll(); err != nil {
			t.Fatalf("%s %s: %v", x.TypeURL, x.Name, err)
		}
	}
	return out
}
