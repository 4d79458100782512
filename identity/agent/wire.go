package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lateen-mesh/lateen/identity"
)

// Field numbers of istio.v1.auth.IstioCertificateRequest and …Response
// (istio.io/api, security/v1alpha1/ca.proto).
const (
	fieldCSR       = protowire.Number(1)
	fieldValidity  = protowire.Number(3)
	fieldCertChain = protowire.Number(1)
)

// chainMax is the most elements of an answer's chain, root included.
const chainMax = 16

// encodeRequest encodes an IstioCertificateRequest.
func encodeRequest(csr string, ttl time.Duration) []byte {
	b := protowire.AppendTag(nil, fieldCSR, protowire.BytesType)
	b = protowire.AppendString(b, csr)
	b = protowire.AppendTag(b, fieldValidity, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(ttl/time.Second))
}

// decodeResponse decodes an IstioCertificateResponse: a chain that begins with
// the leaf, and the roots, which are its last element. Each element is PEM of
// one certificate or more. Unknown fields are skipped.
func decodeResponse(b []byte) (chain, roots []*x509.Certificate, err error) {
	var elements []string
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, nil, fmt.Errorf("decode answer: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if number != fieldCertChain || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return nil, nil, fmt.Errorf("decode answer: %w", protowire.ParseError(n))
			}
			b = b[n:]
			continue
		}
		element, n := protowire.ConsumeString(b)
		if n < 0 {
			return nil, nil, fmt.Errorf("decode answer: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if elements = append(elements, element); len(elements) > chainMax {
			return nil, nil, fmt.Errorf("decode answer: more than %d elements in the chain", chainMax)
		}
	}
	if len(elements) < 2 {
		return nil, nil, errors.New("decode answer: the chain needs a certificate and a root at least")
	}
	last := len(elements) - 1
	for _, e := range elements[:last] {
		certs, err := identity.ParseCertificates([]byte(e))
		if err != nil {
			return nil, nil, fmt.Errorf("decode answer: chain: %w", err)
		}
		chain = append(chain, certs...)
	}
	if roots, err = identity.ParseCertificates([]byte(elements[last])); err != nil {
		return nil, nil, fmt.Errorf("decode answer: roots: %w", err)
	}
	return chain, roots, nil
}
