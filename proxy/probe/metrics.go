package probe

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Bounds of reading the application's metrics.
const (
	scrapeTimeout = 10 * time.Second // Prometheus' default
	scrapeMax     = 32 << 20
)

// textFormat is Prometheus' text format, the only one in which two lists of metrics can be put together.
const textFormat = "text/plain; version=0.0.4; charset=utf-8"

// Scrape says where the application's metrics are, as the pod's annotations prometheus.io/... had it.
type Scrape struct {
	Scrape string `json:"scrape,omitempty"` // "true"; the application has none otherwise
	Path   string `json:"path,omitempty"`   // empty: /metrics
	Port   string `json:"port,omitempty"`   // empty: 80
}

// ReadScrape reads a Scrape from Istio's JSON.
func ReadScrape(text string) (s Scrape, err error) {
	if text == "" {
		return s, nil
	}
	if err = json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("read where the application's metrics are: %w", err)
	}
	if s.Port != "" {
		if _, err = number(s.Port); err != nil {
			return s, fmt.Errorf("read where the application's metrics are: %w", err)
		}
	}
	return s, nil
}

// Scraped reports whether the application has metrics.
func (h *Handler) Scraped() bool { return h.cfg.Scrape.Scrape == "true" }

// Metrics writes own metrics with the application's behind them. That those cannot be had is told to warn, and costs
// nothing else: without this the proxy's would be lost with the application's.
func (h *Handler) Metrics(own http.Handler, warn func(error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner := r.Clone(r.Context())
		inner.Header.Set("Accept", textFormat)
		inner.Header.Del("Accept-Encoding")
		own.ServeHTTP(w, inner)
		timeout := scrapeTimeout
		if s, err := strconv.ParseFloat(r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64); err == nil && s > 0 && s < scrapeTimeout.Seconds() {
			timeout = time.Duration(s * float64(time.Second))
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if err := h.scrape(ctx, w); err != nil {
			warn(fmt.Errorf("read the application's metrics: %w", err))
		}
	})
}

func (h *Handler) scrape(ctx context.Context, w io.Writer) error {
	port, err := number(cmp.Or(h.cfg.Scrape.Port, "80"))
	if err != nil {
		return err
	}
	path := cmp.Or(h.cfg.Scrape.Path, "/metrics")
	if path[0] != '/' {
		path = "/" + path
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.at(port)+path, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", textFormat)
	answer, err := h.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("its answer is %s", answer.Status)
	}
	n, err := io.Copy(w, io.LimitReader(answer.Body, scrapeMax))
	if err == nil && n == scrapeMax {
		err = fmt.Errorf("they have more than %d MiB and were cut off", scrapeMax>>20)
	}
	return err
}
