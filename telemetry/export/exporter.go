// Package export ships spans to Zipkin or to an OpenTelemetry collector over
// HTTP.
//
// In: finished trace.Spans from any number of event loops. Out: batches, POSTed by
// one goroutine. It must not know how spans come about. Report may be called by any
// goroutine and never waits; Run is called once.
//
// OTLP is encoded with OpenTelemetry's own messages in their slim form, which are
// generated without gRPC. OpenTelemetry's SDK and its exporter would bring gRPC into
// every proxy; they would do nothing here that a span with ids, times and a
// decision of its own needs.
package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/lateen-mesh/lateen/telemetry/trace"
)

const (
	queueMaxDefault   = 256
	flushAfterDefault = 5 * time.Second
	timeoutDefault    = 5 * time.Second
	// batchMax bounds the spans of one request.
	batchMax = 64
	// attemptsMax bounds how often one batch is sent, backoffFirst the first wait between two; each is twice the last.
	attemptsMax  = 3
	backoffFirst = 500 * time.Millisecond
	// retryAfterMax bounds the wait that a collector may ask for.
	retryAfterMax = 10 * time.Second
	// responseMaxBytes bounds what is read of a response.
	responseMaxBytes = 64 << 10
)

// MetricDropped is the name under which Exporter.Dropped is to be exposed.
const MetricDropped = "lateen_spans_dropped_total"

// Config describes an Exporter. Either Zipkin or OTLP must be given.
type Config struct {
	// Zipkin is the URL that takes spans of Zipkin's version 2, as in "http://zipkin.istio-system:9411/api/v2/spans".
	Zipkin string
	// OTLP is the URL that takes OTLP/HTTP, as in "http://collector.observability:4318/v1/traces".
	OTLP string
	// Service is the name of the service that the spans belong to, as in "reviews.default".
	Service string
	// Tags are added to every span: trace.TagCanonicalService and the like.
	Tags map[string]string
	// Resource holds further attributes of the resource (OTLP only).
	Resource map[string]string
	// Headers are added to every request.
	Headers map[string]string
	// Timeout bounds one request; default 5 seconds.
	Timeout time.Duration
	// QueueMax bounds the spans that wait to be sent; default 256, some 0.6 MiB. What exceeds it is dropped and counted.
	QueueMax int
	// FlushAfter is how long a span may wait for others to be sent with it; default 5 seconds.
	FlushAfter time.Duration
	// Client sends the requests; by default one that follows no redirect and uses no proxy.
	Client *http.Client
	// Log is told when spans cannot be sent, and when they can again.
	Log *slog.Logger
}

// encoding is a way to write spans.
type encoding interface {
	// encode returns a request's body.
	encode(spans []trace.Span) ([]byte, error)
	// contentType is the body's media type.
	contentType() string
	// rejected returns how many spans a response of success says were not taken, and why.
	rejected(response []byte) (int, string)
}

// Exporter ships spans.
type Exporter struct {
	cfg      Config
	url      string
	encoding encoding
	queue    chan trace.Span
	batch    []trace.Span // belongs to Run
	failing  bool         // belongs to Run
	dropped  atomic.Uint64
}

// New checks the configuration. It opens no connection.
func New(cfg Config) (*Exporter, error) {
	if (cfg.Zipkin == "") == (cfg.OTLP == "") {
		return nil, errors.New("export spans: exactly one of a Zipkin URL and an OTLP URL is needed")
	}
	e := &Exporter{cfg: cfg, url: cfg.Zipkin, encoding: newZipkin(cfg)}
	if cfg.OTLP != "" {
		e.url, e.encoding = cfg.OTLP, newOTLP(cfg)
	}
	u, err := url.Parse(e.url)
	if err != nil {
		return nil, fmt.Errorf("export spans: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("export spans: %q is not the URL of an HTTP server", e.url)
	}
	if e.cfg.Timeout <= 0 {
		e.cfg.Timeout = timeoutDefault
	}
	if e.cfg.QueueMax <= 0 {
		e.cfg.QueueMax = queueMaxDefault
	}
	if e.cfg.FlushAfter <= 0 {
		e.cfg.FlushAfter = flushAfterDefault
	}
	if e.cfg.Log == nil {
		e.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if e.cfg.Client == nil {
		e.cfg.Client = &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	e.queue = make(chan trace.Span, e.cfg.QueueMax)
	return e, nil
}

// Report leaves a copy of the span to Run. It allocates nothing and never waits; if
// the queue is full the span is dropped and counted.
func (e *Exporter) Report(s *trace.Span) {
	select {
	case e.queue <- *s:
	default:
		e.dropped.Add(1)
	}
}

// Dropped is the number of spans that were dropped so far, because the queue was full or the collector did not take them.
func (e *Exporter) Dropped() uint64 { return e.dropped.Load() }

// Run sends spans until ctx ends, and then, for as long as one request may take,
// what was reported before.
func (e *Exporter) Run(ctx context.Context) error {
	defer e.cfg.Client.CloseIdleConnections()
	// What is being sent when ctx ends has until then to arrive.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	last := time.AfterFunc(e.cfg.Timeout, cancel)
	last.Stop()
	defer last.Stop()
	defer context.AfterFunc(ctx, func() { last.Reset(e.cfg.Timeout) })()

	flush := time.NewTimer(e.cfg.FlushAfter)
	flush.Stop()
	defer flush.Stop()
	for {
		select {
		case s := <-e.queue:
			if len(e.batch) == 0 {
				flush.Reset(e.cfg.FlushAfter)
			}
			e.take(work, s)
		case <-flush.C:
			e.send(work)
		case <-ctx.Done():
			e.finish(work)
			return nil
		}
	}
}

// take adds a span to the batch and sends the batch if it is full.
func (e *Exporter) take(ctx context.Context, s trace.Span) {
	if e.batch = append(e.batch, s); len(e.batch) >= batchMax {
		e.send(ctx)
	}
}

// finish sends what is left.
func (e *Exporter) finish(ctx context.Context) {
	for {
		select {
		case s := <-e.queue:
			e.take(ctx, s)
		default:
			e.send(ctx)
			return
		}
	}
}

// send sends the batch, again if the collector says that this may help, and empties it.
func (e *Exporter) send(ctx context.Context) {
	if len(e.batch) == 0 {
		return
	}
	defer func() { e.batch = e.batch[:0] }()
	body, err := e.encoding.encode(e.batch)
	if err != nil {
		e.fail(fmt.Errorf("encode %d spans: %w", len(e.batch), err))
		return
	}
	backoff := backoffFirst
	for attempt := 1; ; attempt++ {
		var wait time.Duration
		wait, err = e.post(ctx, body)
		if err == nil {
			e.succeed()
			return
		}
		if wait < 0 || attempt == attemptsMax {
			break
		}
		if !sleep(ctx, max(wait, backoff)) {
			break
		}
		backoff *= 2
	}
	e.fail(err)
}

// post sends the body once. A negative wait says that another attempt is of no use.
func (e *Exporter) post(ctx context.Context, body []byte) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return -1, fmt.Errorf("send spans: %w", err)
	}
	for name, value := range e.cfg.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", e.encoding.contentType())
	resp, err := e.cfg.Client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("send spans: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // what was wanted of it is read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, responseMaxBytes))
	switch {
	case resp.StatusCode/100 == 2:
		if n, why := e.encoding.rejected(answer); n > 0 || why != "" {
			e.dropped.Add(uint64(min(n, len(e.batch))))
			e.cfg.Log.Warn("collector took only some of the spans", "url", e.url, "rejected", n, "message", why)
		}
		return 0, nil
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusBadGateway,
		resp.StatusCode == http.StatusServiceUnavailable, resp.StatusCode == http.StatusGatewayTimeout:
		return retryAfter(resp), fmt.Errorf("send spans: %s answered %s", e.url, resp.Status)
	case err != nil:
		return 0, fmt.Errorf("send spans: %w", err)
	default:
		return -1, fmt.Errorf("send spans: %s answered %s", e.url, resp.Status)
	}
}

// retryAfter reads the header Retry-After in its form of seconds (RFC 9110 section 10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(min(seconds, 1<<20))*time.Second, retryAfterMax)
}

// sleep waits, and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (e *Exporter) succeed() {
	if e.failing {
		e.failing = false
		e.cfg.Log.Info("spans are sent again", "url", e.url, "dropped", e.Dropped())
	}
}

func (e *Exporter) fail(err error) {
	e.dropped.Add(uint64(len(e.batch)))
	if !e.failing {
		e.failing = true
		e.cfg.Log.Error("spans are dropped: check that the tracing provider's service exists, is up and speaks this protocol", "url", e.url, "error", err)
	}
}
