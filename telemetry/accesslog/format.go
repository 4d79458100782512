// Package accesslog writes one line for each request or connection, in Envoy's
// command operators, as text or JSON.
//
// In: an Entry, filled by an event loop when an exchange ends. Out: bytes, given
// to a Writer that brings them to a file in batches. It must not know what a
// request is beyond the Entry, nor which entries are wanted.
//
// A Format is immutable and may be used by any goroutine. A Buffer belongs to
// one goroutine. A Writer's other methods may be called by any goroutine.
package accesslog

import (
	"fmt"
	"strings"
)

// DefaultText is Istio's default text format (Istio, tasks, observability, access logs).
const DefaultText = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% ` +
	`%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%`

// DefaultJSON returns the labels of Istio's default JSON format.
func DefaultJSON() map[string]any {
	return map[string]any{
		"start_time":                        "%START_TIME%",
		"route_name":                        "%ROUTE_NAME%",
		"method":                            "%REQ(:METHOD)%",
		"path":                              "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
		"protocol":                          "%PROTOCOL%",
		"response_code":                     "%RESPONSE_CODE%",
		"response_flags":                    "%RESPONSE_FLAGS%",
		"response_code_details":             "%RESPONSE_CODE_DETAILS%",
		"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
		"bytes_received":                    "%BYTES_RECEIVED%",
		"bytes_sent":                        "%BYTES_SENT%",
		"duration":                          "%DURATION%",
		"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
		"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
		"user_agent":                        "%REQ(USER-AGENT)%",
		"request_id":                        "%REQ(X-REQUEST-ID)%",
		"authority":                         "%REQ(:AUTHORITY)%",
		"upstream_host":                     "%UPSTREAM_HOST%",
		"upstream_cluster":                  "%UPSTREAM_CLUSTER_RAW%",
		"upstream_local_address":            "%UPSTREAM_LOCAL_ADDRESS%",
		"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
		"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
		"requested_server_name":             "%REQUESTED_SERVER_NAME%",
		"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	}
}

const (
	// formatMaxBytes bounds a format string.
	formatMaxBytes = 16 << 10
	// valueMaxBytes bounds what one operator writes, before it is escaped.
	valueMaxBytes = 8 << 10
)

// Config describes a format. The zero value is Istio's default text format.
type Config struct {
	// Text is a format string; default DefaultText. A newline is added if it does not end in one.
	Text string
	// JSON, if it is not nil, asks for a JSON object instead. It maps keys to format strings or to further maps. A
	// value that is nothing but one numeric operator becomes a number; an operator that has no value, null.
	JSON map[string]any
	// OmitEmpty leaves an operator without a value out: nothing instead of "-" in text, no key in JSON.
	OmitEmpty bool
}

// Format is a compiled format.
type Format struct {
	text []segment
	json []jsonField
	omit bool
}

// segment is a piece of literal text and then, unless op is opNone, an operator.
type segment struct {
	literal string
	op      operator
	escape  escape
}

// Compile compiles a format. Its error names the operator that is at fault and the column, counted in bytes from 1.
func Compile(cfg Config) (*Format, error) {
	f := &Format{omit: cfg.OmitEmpty}
	var err error
	if cfg.JSON != nil {
		if f.json, err = compileObject(cfg.JSON, 0); err != nil {
			return nil, fmt.Errorf("compile access log format: %w", err)
		}
		return f, nil
	}
	text := cfg.Text
	if text == "" {
		text = DefaultText
	}
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if f.text, err = compileText(text); err != nil {
		return nil, fmt.Errorf("compile access log format: %w", err)
	}
	quoted := false
	for i := range f.text {
		s := &f.text[i]
		if strings.Count(s.literal, `"`)%2 == 1 {
			quoted = !quoted
		}
		if s.escape = escapeBare; quoted {
			s.escape = escapeQuoted
		}
	}
	return f, nil
}

// Append appends one line, with its newline, to dst. It allocates nothing if dst
// has room. Whatever a client or an upstream sends, what is appended is one line,
// and in the default formats has the same columns or keys.
func (f *Format) Append(dst []byte, e *Entry) []byte {
	if f.json != nil {
		return append(f.appendObject(dst, f.json, e), '\n')
	}
	for i := range f.text {
		s := &f.text[i]
		dst = append(dst, s.literal...)
		if s.op.class == classNone {
			continue
		}
		start := len(dst)
		if dst = s.append(dst, e); len(dst) == start && !f.omit {
			dst = append(dst, '-')
		}
	}
	return dst
}

// append appends the operator's value, or nothing if there is none.
func (s *segment) append(dst []byte, e *Entry) []byte {
	start := len(dst)
	dst = s.op.append(dst, e)
	limit := valueMaxBytes
	if s.op.maxBytes > 0 {
		limit = min(limit, s.op.maxBytes)
	}
	if len(dst)-start > limit {
		dst = dst[:start+limit]
	}
	if s.op.foreign(s.escape) {
		dst = s.escape.apply(dst, start)
	}
	return dst
}
