package ca

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lateen-mesh/lateen/identity"
)

// What Keys have besides while their root is replaced.
const (
	nextKeyFile = "next-key.pem" // what will sign; its certificate is among the roots already
	oldCertFile = "old-cert.pem" // the root that has signed, and will go
)

// rotateBefore is how long before its end a root is replaced unasked, which leaves time for the overlaps of the longest
// certificates.
const rotateBefore = rootTTL / 10

// Rotation is how far the replacement of a root is. It has two halves: in the first both roots are trusted and the old
// one signs, in the second the new one does. At its end the old root goes.
type Rotation struct {
	// Overlap is the length of each half; zero if no replacement is wanted. If it is not less than the lifetime of
	// workloads' certificates, each of them is renewed once before the new root signs, and so gets to know it, and once
	// more before the old one goes.
	Overlap time.Duration
	// Since is when the present half has begun; zero: none has.
	Since time.Time
}

// Rotate takes the step of a rotation that is due, and returns what the keys are then. They are the same if nothing is
// due. Only a root of our own is replaced.
func (k Keys) Rotate(r Rotation, trustDomain string, now time.Time) (Keys, Rotation, error) {
	if len(k[rootKeyFile]) == 0 {
		return k, r, nil
	}
	s, err := k.own()
	if err != nil {
		return k, r, fmt.Errorf("replace the root: %w", err)
	}
	if r.Overlap <= 0 && now.Add(rotateBefore).After(s.cert.NotAfter) {
		r.Overlap = ttlMax
	}
	if r.Overlap <= 0 || !r.Since.IsZero() && now.Before(r.Since.Add(r.Overlap)) {
		return k, r, nil
	}
	out := maps.Clone(k)
	switch {
	case len(k[nextKeyFile]) > 0: // the first half is over
		out[oldCertFile] = identity.EncodeCertificates(s.cert)
		out[rootKeyFile] = k[nextKeyFile]
		delete(out, nextKeyFile)
		r.Since = now
	case len(k[oldCertFile]) > 0: // the second
		old, err := k.certificates(oldCertFile)
		if err != nil {
			return k, r, fmt.Errorf("replace the root: %w", err)
		}
		out[rootCertFile] = identity.EncodeCertificates(slices.DeleteFunc(s.roots, func(c *x509.Certificate) bool {
			return c.Equal(old[0]) && !c.Equal(s.cert)
		})...)
		delete(out, oldCertFile)
		r = Rotation{}
	default:
		next, err := NewKeys(trustDomain, now)
		if err != nil {
			return k, r, err
		}
		out[nextKeyFile] = next[rootKeyFile]
		out[rootCertFile] = slices.Concat(bytes.TrimSpace(k[rootCertFile]), []byte("\n"), next[rootCertFile])
		r.Since = now
	}
	if _, err := out.signer(now); err != nil {
		return k, r, fmt.Errorf("replace the root: %w", err)
	}
	return out, r, nil
}
