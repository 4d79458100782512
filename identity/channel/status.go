package channel

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Code is a gRPC status code (grpc/grpc, doc/statuscodes.md).
type Code uint32

// The status codes of gRPC.
const (
	OK Code = iota
	Canceled
	Unknown
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	ResourceExhausted
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented
	Internal
	Unavailable
	DataLoss
	Unauthenticated
)

// String returns the code's name as gRPC writes it, such as PermissionDenied.
func (c Code) String() string {
	names := [...]string{
		"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
		"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented",
		"Internal", "Unavailable", "DataLoss", "Unauthenticated",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return "Code(" + strconv.FormatUint(uint64(c), 10) + ")"
}

// Error is how a call ended other than well: by the server's word, or by what
// happened on the way to it.
type Error struct {
	// Code is the gRPC status code.
	Code Code
	// Message is the server's message, or ours if the call did not get
	// through.
	Message string

	cause error
}

// Error implements error.
func (e *Error) Error() string { return e.Code.String() + ": " + e.Message }

// Unwrap returns what happened on the way, nil if the server itself ended the
// call.
func (e *Error) Unwrap() error { return e.cause }

// CodeOf returns the status code of an error of this package: OK for nil,
// Unknown for a foreign error.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return Unknown
}

// checkHead refuses a response that is no gRPC at all.
func checkHead(r *http.Response) error {
	if r.StatusCode != http.StatusOK {
		return &Error{Code: codeOfHTTP(r.StatusCode), Message: fmt.Sprintf("the server answered with HTTP status %s; is this the control plane?", r.Status)}
	}
	if kind := r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/grpc") {
		return &Error{Code: Unknown, Message: fmt.Sprintf("the server answered with content type %q instead of application/grpc; is this the control plane?", kind)}
	}
	return nil
}

// statusOf returns the status of a call whose body has been read to its end:
// from the trailers, or from the head when there was nothing else.
func statusOf(r *http.Response) error {
	from := r.Trailer
	if from.Get("Grpc-Status") == "" {
		from = r.Header
	}
	text := from.Get("Grpc-Status")
	if text == "" {
		return &Error{Code: Internal, Message: "the server ended the call without a status"}
	}
	code, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return &Error{Code: Unknown, Message: fmt.Sprintf("the server ended the call with the malformed status %q", text)}
	}
	if Code(code) == OK {
		return nil
	}
	return &Error{Code: Code(code), Message: decodeMessage(from.Get("Grpc-Message"))}
}

// decodeMessage undoes the percent-encoding of grpc-message; what is not
// well-formed stays as it is, as PROTOCOL-HTTP2.md asks for.
func decodeMessage(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				out = append(out, byte(b))
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// codeOfHTTP translates the status of what is not gRPC, a proxy in between for
// example (grpc/grpc, doc/http-grpc-status-mapping.md).
func codeOfHTTP(status int) Code {
	switch status {
	case http.StatusBadRequest:
		return Internal
	case http.StatusUnauthorized:
		return Unauthenticated
	case http.StatusForbidden:
		return PermissionDenied
	case http.StatusNotFound:
		return Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return Unavailable
	}
	return Unknown
}

// streamError has the fields of the error with which net/http reports a
// RST_STREAM; its errors.As copies into any struct that has them.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements error.
func (e streamError) Error() string { return fmt.Sprintf("stream reset with code %d", e.Code) }

// transportError translates what happened on the way.
func transportError(ctx context.Context, err error) error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e
	}
	e := &Error{Code: Unavailable, Message: err.Error(), cause: err}
	reset := streamError{}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Code = DeadlineExceeded
	case ctx.Err() != nil:
		e.Code = Canceled
	case errors.As(err, &reset):
		e.Code = codeOfReset(reset.Code)
	}
	return e
}

// codeOfReset translates the error code of a RST_STREAM (RFC 9113 section 7)
// as PROTOCOL-HTTP2.md says.
func codeOfReset(code uint32) Code {
	switch code {
	case 0x7: // REFUSED_STREAM
		return Unavailable
	case 0x8: // CANCEL
		return Canceled
	case 0xb: // ENHANCE_YOUR_CALM
		return ResourceExhausted
	case 0xc: // INADEQUATE_SECURITY
		return PermissionDenied
	}
	return Internal
}
