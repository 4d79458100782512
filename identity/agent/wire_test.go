package agent

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/identity/ca"
)

// The request encoded by hand is what Istio's own type reads.
func TestEncodeRequest(t *testing.T) {
	var r securityapi.IstioCertificateRequest
	if err := proto.Unmarshal(encodeRequest("a request", 90*time.Minute), &r); err != nil {
		t.Fatal(err)
	}
	if r.GetCsr() != "a request" || r.GetValidityDuration() != 5400 || len(r.ProtoReflect().GetUnknown()) != 0 {
		t.Errorf("read as %v", &r)
	}
}

func FuzzDecodeResponse(f *testing.F) {
	a, err := ca.New(ca.Config{Dir: f.TempDir() + "/state"})
	if err != nil {
		f.Fatal(err)
	}
	cert, err := a.Certificate(identity.ID{TrustDomain: "cluster.local", Namespace: "n", ServiceAccount: "a"}, 0)
	if err != nil {
		f.Fatal(err)
	}
	good, err := proto.Marshal(&securityapi.IstioCertificateResponse{CertChain: []string{
		string(identity.EncodeCertificates(cert.Leaf)), string(a.Bundle().PEM("cluster.local")),
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append([]byte{0x10, 0x01, 0x1a, 0x01, 'x'}, good...)) // unknown fields before
	f.Add([]byte{0x0a, 0xff})
	f.Add([]byte{0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, in []byte) {
		chain, roots, err := decodeResponse(in)
		if err != nil {
			return
		}
		if len(chain) == 0 || len(roots) == 0 {
			t.Fatal("neither a chain nor an error")
		}
		// What we read, Istio's own type reads the same way, except that it
		// insists on UTF-8.
		var r securityapi.IstioCertificateResponse
		if err := proto.Unmarshal(in, &r); err != nil {
			if strings.Contains(err.Error(), "UTF-8") {
				return
			}
			t.Fatal(err)
		}
		if n := len(r.GetCertChain()); n < 2 || n > chainMax {
			t.Fatalf("a chain of %d elements was taken", n)
		}
	})
}

// TestRetryMost: whoever still has a certificate tries several times more before it expires.
func TestRetryMost(t *testing.T) {
	now := time.Now()
	for left, want := range map[time.Duration]time.Duration{24 * time.Hour: retryMax, 20 * time.Second: 5 * time.Second, time.Second: retryFirst} {
		if got := retryMost(&x509.Certificate{NotAfter: now.Add(left)}, now); got != want {
			t.Errorf("%v left: %v, want %v", left, got, want)
		}
	}
	if got := retryMost(nil, now); got != retryIdle {
		t.Errorf("no certificate: %v", got)
	}
}

func TestRetryPause(t *testing.T) {
	for failures, most := range map[int]time.Duration{0: retryFirst, 1: 2 * retryFirst, 5: 32 * retryFirst, 7: retryMax, 15: retryMax, 1 << 40: retryMax} {
		for range 100 {
			if p := retryPause(failures, retryMax); p < most/2 || p > most {
				t.Fatalf("after %d failures: %v, want %v to %v", failures, p, most/2, most)
			}
		}
	}
}
