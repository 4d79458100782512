package agent_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// What a wrong or malicious control plane answers must not reach the holder.
func TestAnswersThatAreRefused(t *testing.T) {
	bob := alice
	bob.ServiceAccount = "bob"
	// edit decodes a good answer, changes its chain and encodes it.
	edit := func(change func(p *plane, chain []string) []string) func(*plane, []byte) []byte {
		return func(p *plane, answer []byte) []byte {
			var r securityapi.IstioCertificateResponse
			if err := proto.Unmarshal(answer, &r); err != nil {
				panic(err)
			}
			out, err := proto.Marshal(&securityapi.IstioCertificateResponse{CertChain: change(p, r.GetCertChain())})
			if err != nil {
				panic(err)
			}
			return out
		}
	}
	var stranger *ca.Authority
	reissue := func(by func(p *plane) *ca.Authority, id identity.ID) func(p *plane, chain []string) []string {
		return func(p *plane, chain []string) []string {
			certs, err := identity.ParseCertificates([]byte(chain[0]))
			if err != nil {
				panic(err)
			}
			issued, err := by(p).Issue(id, certs[0].PublicKey, 0)
			if err != nil {
				panic(err)
			}
			return issued.PEM()
		}
	}
	ours := func(p *plane) *ca.Authority { return p.authority }
	theirs := func(*plane) *ca.Authority { return stranger }
	tests := []struct {
		name  string
		spoil func(p *plane, answer []byte) []byte
		want  string
	}{
		{"nothing", func(*plane, []byte) []byte { return nil }, "needs a certificate and a root"},
		{"garbage", func(*plane, []byte) []byte { return []byte{0xff} }, "decode answer"},
		{"no root", edit(func(_ *plane, c []string) []string { return c[:1] }), "needs a certificate and a root"},
		{"root is a leaf", edit(func(_ *plane, c []string) []string { return []string{c[0], c[0]} }), "not a certificate authority"},
		{"no PEM", edit(func(_ *plane, c []string) []string { return []string{"x", c[1]} }), "chain: no PEM"},
		{"roots no PEM", edit(func(_ *plane, c []string) []string { return []string{c[0], "x"} }), "roots: no PEM"},
		{"endless", edit(func(_ *plane, c []string) []string { return append(bytesOf(c[0], 16), c[1]) }), "more than 16"},
		{"another's name", edit(reissue(ours, bob)), "it is for spiffe://td/ns/n/sa/bob, asked was for spiffe://td/ns/n/sa/alice"},
		{"another authority", edit(reissue(theirs, alice)), "not trusted"},
		{"a root that does not vouch for it", edit(func(_ *plane, c []string) []string {
			return []string{c[0], string(stranger.Bundle().PEM("td"))}
		}), "not trusted"},
		{"another's key", edit(func(p *plane, c []string) []string {
			cert, err := p.authority.Certificate(alice, 0)
			if err != nil {
				panic(err)
			}
			return []string{string(identity.EncodeCertificates(cert.Leaf)), c[1]}
		}), "not for the key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				stranger = newPlane(t, filepath.Join(dir, "stranger")).authority
				p := newPlane(t, dir)
				p.spoil = func(answer []byte, err error) ([]byte, error) {
					if err != nil {
						return nil, err
					}
					return tt.spoil(p, answer), nil
				}
				p.handToken(t)
				f := start(t, p)
				defer f.stop()
				synctest.Wait()
				if err := f.agent.Err(); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				if f.leaf() != nil || f.ready() || f.holder.Current().Bundle.Version() != p.authority.Bundle().Version() {
					t.Error("it reached the holder")
				}
			})
		})
	}
}

func bytesOf(s string, times int) []string {
	out := make([]string, times)
	for i := range out {
		out[i] = s
	}
	return out
}

// TestRootRotation replaces the control plane's root step by step, as an
// operator does, while an agent renews: first the new root is trusted too, then
// it signs, then the old one goes.
func TestRootRotation(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, dir)
		old := p.authority.Bundle()
		young := newPlane(t, filepath.Join(dir, "young"))
		p.handToken(t)
		f := start(t, p)
		defer f.stop()
		<-f.agent.Ready()

		both := append(old.PEM("td"), young.authority.Bundle().PEM("td")...)
		steps := []struct {
			name        string
			state, text string // the state directory and what its root-cert.pem becomes
			roots       int
			signedBy    *identity.Bundle
		}{
			{"both trusted, old signs", filepath.Join(dir, "state"), string(both), 2, old},
			{"both trusted, new signs", filepath.Join(dir, "young", "state"), string(both), 2, young.authority.Bundle()},
			{"new alone", filepath.Join(dir, "young", "state"), string(young.authority.Bundle().PEM("td")), 1, young.authority.Bundle()},
		}
		for _, step := range steps {
			if err := os.WriteFile(filepath.Join(step.state, "root-cert.pem"), []byte(step.text), 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := ca.New(ca.Config{TrustDomain: "td", Dir: step.state})
			if err != nil {
				t.Fatal(err)
			}
			next := ca.NewService(ca.ServiceConfig{Authority: a, Authenticators: ca.Authenticators{ca.MeshCertificate{Authority: a}}})
			p.mu.Lock()
			p.service = next
			p.mu.Unlock()
			<-f.holder.Current().Replaced()
			synctest.Wait()
			held := f.holder.Current()
			if n := len(held.Bundle.Roots("td")); n != step.roots || f.agent.Err() != nil {
				t.Errorf("%s: %d roots, %v", step.name, n, f.agent.Err())
			}
			if _, err := step.signedBy.Verify([]*x509.Certificate{held.Certificate.Leaf}, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
				t.Errorf("%s: signed by the other root: %v", step.name, err)
			}
		}
		if _, err := old.Verify([]*x509.Certificate{f.leaf()}, x509.ExtKeyUsageServerAuth, time.Now()); !errors.Is(err, identity.ErrNotTrusted) {
			t.Errorf("the old root still vouches: %v", err)
		}
		if bytes.Equal(f.holder.Current().Bundle.PEM("td"), old.PEM("td")) {
			t.Error("the old root is still trusted")
		}
	})
}
