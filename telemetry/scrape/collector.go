// Package scrape exposes what metrics counted to Prometheus, under Istio's
// names and labels.
//
// In: a metrics.Registry and, from the program that assembles it, counters of
// other parts. Out: a prometheus.Collector, to be registered beside
// client_golang's own process and Go collectors. It is the only home of
// client_golang in telemetry, and it must not know who counts. A Collector may
// be used by any number of goroutines.
package scrape

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/metrics"
)

// Names of our own metrics.
const (
	// MetricSeries is the number of series held, by kind: request, edge or tcp.
	MetricSeries = "lateen_metrics_series"
	// MetricOverflows counts what was counted under "other" because a shard was full.
	MetricOverflows = "lateen_metrics_overflows_total"
)

// Config describes a Collector.
type Config struct {
	// Registry is what is exposed.
	Registry *metrics.Registry
	// Component and Tag are the labels of istio_build; Istio's proxies call themselves "proxy". Default: unknown.
	Component, Tag string
	// Counters are counters of other parts of the program, such as dropped log lines.
	Counters []Counter
}

// Counter is a counter that another part of the program keeps.
type Counter struct {
	// Name is the metric's name, which ends in "_total"; Help is its description.
	Name, Help string
	// Read returns the count. It is called at every scrape, by the scraping goroutine.
	Read func() uint64
}

// Collector is a prometheus.Collector.
type Collector struct {
	registry *metrics.Registry
	build    prometheus.Metric
	counters []prometheus.Collector

	requests, duration, requestBytes, responseBytes *prometheus.Desc
	requestMessages, responseMessages               *prometheus.Desc
	opened, closed, sent, received                  *prometheus.Desc
	series, overflows                               *prometheus.Desc
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a Collector to be registered with a prometheus.Registerer.
func New(cfg Config) *Collector {
	desc := func(name, help string, labels []string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	request, edge, tcp := telemetry.RequestLabels, telemetry.EdgeLabels, telemetry.TCPLabels
	c := &Collector{
		registry:         cfg.Registry,
		requests:         desc(telemetry.MetricRequests, "Finished requests.", request),
		duration:         desc(telemetry.MetricRequestDuration, "Duration of requests in milliseconds.", request),
		requestBytes:     desc(telemetry.MetricRequestBytes, "Size of requests in bytes.", request),
		responseBytes:    desc(telemetry.MetricResponseBytes, "Size of responses in bytes.", request),
		requestMessages:  desc(telemetry.MetricRequestMessages, "gRPC messages sent by clients.", edge),
		responseMessages: desc(telemetry.MetricResponseMessages, "gRPC messages sent by servers.", edge),
		opened:           desc(telemetry.MetricTCPOpened, "TCP connections opened.", tcp),
		closed:           desc(telemetry.MetricTCPClosed, "TCP connections closed.", tcp),
		sent:             desc(telemetry.MetricTCPSent, "Bytes sent to clients of TCP connections.", tcp),
		received:         desc(telemetry.MetricTCPReceived, "Bytes received from clients of TCP connections.", tcp),
		series:           desc(MetricSeries, "Series held.", []string{"kind"}),
		overflows:        desc(MetricOverflows, "Events counted under \"other\" because there were too many series.", nil),
	}
	build := desc(telemetry.MetricBuild, "Version of the component; the value is 1.", []string{"component", "tag"})
	c.build = prometheus.MustNewConstMetric(build, prometheus.GaugeValue, 1, orUnknown(cfg.Component), orUnknown(cfg.Tag))
	for _, k := range cfg.Counters {
		read := func() float64 { return float64(k.Read()) }
		c.counters = append(c.counters, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: k.Name, Help: k.Help}, read))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.build.Desc(), c.requests, c.duration, c.requestBytes, c.responseBytes, c.requestMessages, c.responseMessages,
		c.opened, c.closed, c.sent, c.received, c.series, c.overflows,
	} {
		out <- d
	}
	for _, k := range c.counters {
		k.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	snap := c.registry.Snapshot()
	var values []string
	for i := range snap.Requests {
		s := &snap.Requests[i]
		values = s.Key.AppendValues(values[:0])
		labels := prometheus.MakeLabelPairs(c.requests, values) // the four metrics have the same labels
		out <- counter(c.requests, labels, s.Duration.Count())
		out <- histogram(c.duration, labels, &s.Duration)
		out <- histogram(c.requestBytes, labels, &s.Received)
		out <- histogram(c.responseBytes, labels, &s.Sent)
	}
	for i := range snap.Peers {
		s := &snap.Peers[i]
		if s.RequestMessages == 0 && s.ResponseMessages == 0 {
			continue // not gRPC
		}
		values = s.Key.AppendValues(values[:0])
		labels := prometheus.MakeLabelPairs(c.requestMessages, values)
		out <- counter(c.requestMessages, labels, s.RequestMessages)
		out <- counter(c.responseMessages, labels, s.ResponseMessages)
	}
	for i := range snap.TCP {
		s := &snap.TCP[i]
		values = s.Key.AppendValues(values[:0])
		labels := prometheus.MakeLabelPairs(c.opened, values)
		out <- counter(c.opened, labels, s.Opened)
		out <- counter(c.closed, labels, s.Closed)
		out <- counter(c.sent, labels, s.Sent)
		out <- counter(c.received, labels, s.Received)
	}
	c.collectOwn(out, snap)
}

func (c *Collector) collectOwn(out chan<- prometheus.Metric, snap *metrics.Snapshot) {
	out <- c.build
	out <- counter(c.overflows, nil, snap.Overflows)
	out <- prometheus.MustNewConstMetric(c.series, prometheus.GaugeValue, float64(len(snap.Requests)), "request")
	out <- prometheus.MustNewConstMetric(c.series, prometheus.GaugeValue, float64(len(snap.Peers)), "edge")
	out <- prometheus.MustNewConstMetric(c.series, prometheus.GaugeValue, float64(len(snap.TCP)), "tcp")
	for _, k := range c.counters {
		k.Collect(out)
	}
}

// metric is a prometheus.Metric whose label pairs are shared with others, since
// they are the larger part of a scrape's garbage.
type metric struct {
	desc  *prometheus.Desc
	value dto.Metric
}

func (m *metric) Desc() *prometheus.Desc { return m.desc }

func (m *metric) Write(out *dto.Metric) error {
	out.Label, out.Counter, out.Histogram = m.value.Label, m.value.Counter, m.value.Histogram
	return nil
}

func counter(d *prometheus.Desc, labels []*dto.LabelPair, n uint64) *metric {
	v := float64(n)
	return &metric{desc: d, value: dto.Metric{Label: labels, Counter: &dto.Counter{Value: &v}}}
}

func histogram(d *prometheus.Desc, labels []*dto.LabelPair, h *metrics.Histogram) *metric {
	type bucket struct {
		dto.Bucket
		count uint64
	}
	cumulative := make([]bucket, len(metrics.Bounds))
	buckets := make([]*dto.Bucket, len(metrics.Bounds))
	var n uint64
	for i := range buckets {
		n += h.Buckets[i]
		b := &cumulative[i]
		b.count = n
		b.UpperBound, b.CumulativeCount = &metrics.Bounds[i], &b.count
		buckets[i] = &b.Bucket
	}
	n = h.Count()
	return &metric{desc: d, value: dto.Metric{Label: labels, Histogram: &dto.Histogram{SampleCount: &n, SampleSum: &h.Sum, Bucket: buckets}}}
}

func orUnknown(s string) string {
	if s == "" {
		return telemetry.Unknown
	}
	return s
}
