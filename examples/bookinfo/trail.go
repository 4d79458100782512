package main

import (
	"encoding/json"
)

// trailHeader is the response header in which each service tells who it is and
// which calls it made, so that the product page can show the whole way of a
// request. An answer without it was not given by one of our services: a proxy
// on the way may have given it.
const trailHeader = "Bookinfo-Trail"

// trailMaxBytes bounds a trail that is read; ours has some hundred bytes.
const trailMaxBytes = 4096

// failure says why a call brought nothing usable; empty when it did.
type failure string

// The closed list of failures.
const (
	late        failure = "late"        // no whole answer within the timeout
	unreachable failure = "unreachable" // no connection, or one that broke
	refused     failure = "refused"     // a status other than 200
	unreadable  failure = "unreadable"  // not the JSON that was expected
)

// hop is one service's part in serving a request.
type hop struct {
	Service string `json:"service"`
	Version string `json:"version"`
	Pod     string `json:"pod"`
	Calls   []call `json:"calls,omitempty"`
}

// call is one try of a hop to reach another service.
type call struct {
	// Service is the name of the service that was called.
	Service string `json:"service"`
	// StartMicros is when the call began, in microseconds after its hop did.
	StartMicros int64 `json:"start_us"`
	// Micros is how long the call took, in microseconds.
	Micros int64 `json:"us"`
	// Status is the HTTP status of the answer; 0 when there was none.
	Status int `json:"status,omitempty"`
	// Failure says what went wrong.
	Failure failure `json:"failure,omitempty"`
	// By is what the answering service told of itself; nil when it told nothing.
	By *hop `json:"by,omitempty"`
}

// encode returns the hop as a header value: JSON, which is one line by itself.
func (h hop) encode() string {
	text, err := json.Marshal(h)
	if err != nil {
		return "" // Strings and numbers always marshal.
	}
	return string(text)
}

// readTrail decodes a header value; nil when it is absent, too long or no trail.
func readTrail(value string) *hop {
	if value == "" || len(value) > trailMaxBytes {
		return nil
	}
	var h hop
	if err := json.Unmarshal([]byte(value), &h); err != nil || h.Service == "" {
		return nil
	}
	return &h
}
