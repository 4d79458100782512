package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// userHeader carries the name of the user who is logged in on the product page.
const userHeader = "End-User"

// carried are the headers that go from an incoming request to each call made
// for it: what the tracing systems need to join a service's two sides (Istio,
// "Distributed tracing"), and what belongs to the user and the session.
var carried = []string{
	"X-Request-Id",
	"X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags", "B3",
	"Traceparent", "Tracestate",
	"X-Ot-Span-Context", "X-Cloud-Trace-Context", "Grpc-Trace-Bin", "Sw8",
	"X-Datadog-Trace-Id", "X-Datadog-Parent-Id", "X-Datadog-Sampling-Priority",
	userHeader, "User-Agent", "Cookie", "Authorization", "Jwt",
}

// visit is one incoming request while it is being served: what travels on from
// it, and the calls made for it. It belongs to the request's goroutine.
type visit struct {
	ctx    context.Context
	log    *slog.Logger
	client *http.Client
	header http.Header
	began  time.Time
	self   hop
}

// newVisit begins the visit of r.
func (s *Server) newVisit(r *http.Request) *visit {
	header := http.Header{}
	for _, name := range carried {
		if values := r.Header.Values(name); len(values) > 0 {
			header[name] = values
		}
	}
	return &visit{
		ctx: r.Context(), log: s.log, client: s.client, header: header, began: time.Now(),
		self: hop{Service: s.cfg.Service, Version: s.cfg.Version, Pod: s.cfg.Pod},
	}
}

// get asks service once for the JSON at http://host/service/id, decodes it into
// value and notes the call in the trail. The call's Failure is empty when all went well.
func (v *visit) get(service, host string, id int, timeout time.Duration, value any) call {
	began := time.Now()
	c := call{Service: service, StartMicros: began.Sub(v.began).Microseconds()}
	err := v.fetch(&c, "http://"+host+"/"+service+"/"+strconv.Itoa(id), timeout, value)
	c.Micros = time.Since(began).Microseconds()
	if err != nil {
		v.log.Warn("call", "to", service, "failure", c.Failure, "error", err)
	}
	v.self.Calls = append(v.self.Calls, c)
	return c
}

// fetch does the exchange of get and fills in what c learns from it.
func (v *visit) fetch(c *call, url string, timeout time.Duration, value any) error {
	ctx, cancel := context.WithTimeout(v.ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		c.Failure = unreachable
		return fmt.Errorf("form request: %w", err)
	}
	req.Header = v.header.Clone()
	resp, err := v.client.Do(req)
	if err != nil {
		c.Failure = broken(err)
		return err
	}
	defer resp.Body.Close()
	c.Status = resp.StatusCode
	c.By = readTrail(resp.Header.Get(trailHeader))
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyMaxBytes+1))
	if err != nil {
		c.Failure = broken(err)
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		c.Failure = refused
		return fmt.Errorf("answer has status %d", resp.StatusCode)
	}
	if len(body) > bodyMaxBytes {
		c.Failure = unreadable
		return fmt.Errorf("answer is longer than %d bytes", bodyMaxBytes)
	}
	if err := json.Unmarshal(body, value); err != nil {
		c.Failure = unreadable
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// broken names the failure behind an exchange that err cut short.
func broken(err error) failure {
	if errors.Is(err, context.DeadlineExceeded) {
		return late
	}
	return unreachable
}
