package proxy

import (
	"errors"
	"io"
	"net"
	"syscall"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/telemetry"
)

// connectReason is why a connection could not be made.
func connectReason(err error) telemetry.Reason {
	switch {
	case errors.Is(err, loop.ErrTimeout), errors.Is(err, syscall.ETIMEDOUT):
		return telemetry.ConnectTimeout
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return telemetry.ConnectUnreachable
	default:
		return telemetry.ConnectRefused
	}
}

// unanswered reports whether a connection was not made because nobody serves at the other end, or nobody is there.
func unanswered(err error) bool {
	for _, e := range []error{loop.ErrTimeout, syscall.ETIMEDOUT, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tlsReason is why a handshake failed.
func tlsReason(err error) telemetry.Reason {
	var timeout net.Error
	switch {
	case errors.Is(err, identity.ErrWrongID):
		return telemetry.TLSIdentityMismatch
	case errors.Is(err, identity.ErrNoCertificate):
		return telemetry.TLSNoCertificate
	case errors.Is(err, identity.ErrExpired):
		return telemetry.TLSExpired
	case errors.Is(err, identity.ErrNotTrusted):
		return telemetry.TLSUntrusted
	case errors.Is(err, identity.ErrNoIdentity):
		return telemetry.NoIdentity
	case errors.Is(err, loop.ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return telemetry.ConnectTimeout
	default:
		return telemetry.TLSFailure
	}
}

// errOr is err, or that the peer closed.
func errOr(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}
