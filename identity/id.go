// Package identity says who is who in the mesh: it names workloads by SPIFFE
// ID, holds the roots that may vouch for them, and builds the TLS
// configurations with which two workloads prove their names to each other.
//
// In come certificates and roots (from identity/agent on the data plane, from
// identity/ca on the control plane); out come IDs, verdicts on certificate
// chains, and *tls.Config values that follow every rotation by themselves. The
// package must not know how a certificate is obtained, what a name is allowed
// to do, or which protocol runs inside the connection. It links nothing but the
// standard library, because every proxy carries it.
//
// ID, Bundle and Credentials are immutable values; a Holder may be used by any
// number of goroutines.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Limits of the SPIFFE ID standard (SPIFFE-ID sections 2.1 and 2.3), in bytes.
const (
	idMaxBytes          = 2048
	trustDomainMaxBytes = 255
)

const scheme = "spiffe://"

// ID is the name of a workload: a service account, in a namespace, in a trust
// domain. Its text form is that of Istio,
// spiffe://<trust domain>/ns/<namespace>/sa/<service account>. IDs are
// comparable with == and usable as map keys; the zero ID names nobody.
type ID struct {
	// TrustDomain is the name of the authority's realm, such as
	// cluster.local.
	TrustDomain string
	// Namespace is the Kubernetes namespace, or what stands for it on bare
	// Linux.
	Namespace string
	// ServiceAccount is the account the workload runs as.
	ServiceAccount string
}

// ParseID reads a SPIFFE ID. It is strict: lower-case scheme, no user, port,
// query, fragment or percent-encoding, the character sets and lengths of
// the SPIFFE-ID standard sections 2.1 to 2.3, and exactly the path
// /ns/<namespace>/sa/<service account>.
func ParseID(s string) (ID, error) {
	if len(s) > idMaxBytes {
		return ID{}, fmt.Errorf("parse SPIFFE ID: %d bytes long, at most %d are allowed", len(s), idMaxBytes)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return ID{}, fmt.Errorf("parse SPIFFE ID %q: does not begin with %s", s, scheme)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("parse SPIFFE ID %q: not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>", s)
	}
	id := ID{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("parse SPIFFE ID %q: %w", s, err)
	}
	return id, nil
}

// String returns the URI form of the ID, and the empty string for the zero ID.
func (id ID) String() string {
	if id == (ID{}) {
		return ""
	}
	return scheme + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// Validate says what keeps the ID from having a text form that ParseID reads
// back, or nil.
func (id ID) Validate() error {
	if err := ValidateTrustDomain(id.TrustDomain); err != nil {
		return err
	}
	if err := validateSegment("namespace", id.Namespace); err != nil {
		return err
	}
	if err := validateSegment("service account", id.ServiceAccount); err != nil {
		return err
	}
	if n := len(id.String()); n > idMaxBytes {
		return fmt.Errorf("%d bytes long, at most %d are allowed", n, idMaxBytes)
	}
	return nil
}

// ValidateTrustDomain says what is wrong with the name of a trust domain
// (SPIFFE-ID section 2.1: lower-case letters, digits, dot, dash and underscore,
// at most 255 bytes), or nil.
func ValidateTrustDomain(td string) error {
	if td == "" {
		return errors.New("the trust domain is empty")
	}
	if len(td) > trustDomainMaxBytes {
		return fmt.Errorf("the trust domain is %d bytes long, at most %d are allowed", len(td), trustDomainMaxBytes)
	}
	for i := range len(td) {
		if c := td[i]; !isLower(c) && !isDigit(c) && !isMark(c) {
			return fmt.Errorf("the trust domain %q contains %q; only a-z, 0-9, '.', '-' and '_' are allowed", td, c)
		}
	}
	return nil
}

// validateSegment checks one segment of the path (SPIFFE-ID section 2.2).
func validateSegment(what, s string) error {
	switch s {
	case "":
		return fmt.Errorf("the %s is empty", what)
	case ".", "..":
		return fmt.Errorf("the %s is %q, which is not a name", what, s)
	}
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isUpper(c) && !isDigit(c) && !isMark(c) {
			return fmt.Errorf("the %s %q contains %q; only letters, digits, '.', '-' and '_' are allowed", what, s, c)
		}
	}
	return nil
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isMark(c byte) bool  { return c == '.' || c == '-' || c == '_' }

// FromCertificate reads the ID that a certificate carries. A certificate of
// the mesh has exactly one URI among its subject alternative names
// (X509-SVID section 2); names of other kinds beside it are ignored. It does not
// verify the certificate: see [Bundle.Verify].
func FromCertificate(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("the certificate (serial %x) has %d URI names, a mesh certificate has exactly one", cert.SerialNumber, len(cert.URIs))
	}
	return ParseID(cert.URIs[0].String())
}

// OneOf returns a function that accepts exactly the listed IDs, for
// [ClientConfig.Accept].
func OneOf(ids ...ID) func(ID) bool {
	set := make(map[ID]struct{}, len(ids))
	for _, id := range ids {
		set[id] = struct{}{}
	}
	return func(id ID) bool {
		_, ok := set[id]
		return ok
	}
}
