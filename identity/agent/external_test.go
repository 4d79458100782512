package agent_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/agent"
	"github.com/lateen-mesh/lateen/identity/ca"
	"github.com/lateen-mesh/lateen/identity/channel"
)

// external is another authority, which behaves as cert-manager's istio-csr: a service account token must come with each
// call, the request must name that account and nothing else, and the answer ends with the root.
type external struct {
	authority *ca.Authority

	mu       sync.Mutex
	clusters []string
	lifetime []int64
	refused  []string
}

func (e *external) Invoke(_ context.Context, _ string, request []byte, md channel.Metadata) ([]byte, error) {
	var r securityapi.IstioCertificateRequest
	if err := proto.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	refuse := func(code channel.Code, why string) ([]byte, error) {
		e.refused = append(e.refused, why)
		return nil, &channel.Error{Code: code, Message: why}
	}
	if md["authorization"] != "Bearer of alice" {
		return refuse(channel.Unauthenticated, "no token: "+md["authorization"])
	}
	block, _ := pem.Decode([]byte(r.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != alice.String() || len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 || csr.Subject.CommonName != "" {
		return refuse(channel.PermissionDenied, "the request names another")
	}
	e.clusters, e.lifetime = append(e.clusters, md["clusterid"]), append(e.lifetime, r.GetValidityDuration())
	issued, err := e.authority.Issue(alice, csr.PublicKey, time.Duration(r.GetValidityDuration())*time.Second)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&securityapi.IstioCertificateResponse{CertChain: issued.PEM()})
}

// TestExternalAuthority: certificates come from another authority than the control plane's, whose root stays trusted; and
// given roots are followed.
func TestExternalAuthority(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		roots := map[string]*ca.Authority{}
		for _, name := range []string{"own", "external", "third"} {
			a, err := ca.New(ca.Config{TrustDomain: "td", Dir: filepath.Join(dir, name)})
			if err != nil {
				t.Fatal(err)
			}
			roots[name] = a
		}
		var mu sync.Mutex
		var given []byte
		var fault error
		give := func(err error, names ...string) {
			mu.Lock()
			defer mu.Unlock()
			given, fault = nil, err
			for _, name := range names {
				given = slices.Concat(given, roots[name].Bundle().PEM("td"))
			}
		}
		give(nil, "own", "external")
		bundle, err := identity.ParseBundle("td", given)
		if err != nil {
			t.Fatal(err)
		}
		holder, log := identity.NewHolder(bundle), &logBuffer{}
		e := &external{authority: roots["external"]}
		a, err := agent.New(agent.Config{
			Channel: e, ID: alice, Holder: holder, TTL: time.Hour, TokenOnly: true, Cluster: "c1",
			Token:  func(context.Context) (string, error) { return "of alice", nil },
			Roots:  func() ([]byte, error) { mu.Lock(); defer mu.Unlock(); return given, fault },
			Logger: slog.New(slog.NewTextHandler(log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		<-a.Ready()
		trusts := func(when string, names ...string) {
			t.Helper()
			synctest.Wait()
			all := holder.Current().Bundle.Roots("td")
			for _, name := range names {
				if !slices.ContainsFunc(all, roots[name].Bundle().Roots("td")[0].Equal) {
					t.Errorf("%s: the root %s is not trusted", when, name)
				}
			}
			if len(all) != len(names) {
				t.Errorf("%s: %d roots, want %v", when, len(all), names)
			}
		}
		trusts("at first", "own", "external")
		first := holder.Current().Certificate.Leaf
		wait := func(d time.Duration) {
			timer := time.NewTimer(d)
			<-timer.C
		}
		give(nil, "own", "external", "third")
		wait(25 * time.Second)
		trusts("another is given", "own", "external", "third")
		give(errors.New("the disk is gone"))
		wait(25 * time.Second)
		trusts("nothing can be read", "own", "external", "third")
		give(nil, "own")
		wait(2 * time.Hour)
		trusts("one that signs is given no more", "own", "external")
		if holder.Current().Certificate.Leaf.Equal(first) {
			t.Error("the certificate was not renewed")
		}
		cancel()
		<-done
		if len(e.refused) > 0 || len(e.clusters) < 4 || e.clusters[3] != "c1" || e.lifetime[3] != 3600 {
			t.Errorf("refused %q; clusters %q, lifetimes %v", e.refused, e.clusters, e.lifetime)
		}
		if text := log.String(); strings.Count(text, "the disk is gone") != 1 || strings.Contains(text, "of alice") {
			t.Errorf("the log:\n%s", text)
		}
	})
}
