package compile

import (
	"cmp"
	"maps"
	"net"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// telemetry decides how the asker tells what happens on one side: the mesh's configuration, changed by the
// Telemetry resources of the root namespace, of the asker's, and of those that select its workload.
func (a *asking) telemetry(side mesh.Mode) plan.Telemetry {
	var out plan.Telemetry
	if a.config.AccessLogFile != "" {
		out.AccessLogs = a.fileLog()
	}
	tracing := mesh.TracingRule{Disabled: new(bool), Sampling: &a.config.Sampling, Providers: a.config.DefaultTracing}
	traced := !a.config.NoTracing // which counts only where no Telemetry speaks of tracing
	for _, t := range narrowing(a, a.Telemetry, func(t *mesh.Telemetry) mesh.Labels { return t.Selector }) {
		for i := range t.AccessLogs {
			if l := &t.AccessLogs[i]; on(l.Mode, side) {
				out.AccessLogs = a.accessLogs(out.AccessLogs, l)
			}
		}
		for i := range t.Tracing {
			if r := &t.Tracing[i]; on(r.Mode, side) {
				amend(&tracing, r)
				traced = true
			}
		}
		for _, m := range t.Metrics {
			if on(m.Mode, side) && m.Disabled != nil {
				out.NoMetrics = *m.Disabled
			}
		}
	}
	if traced {
		out.Tracing = a.tracing(&tracing)
	}
	return out
}

func on(mode, side mesh.Mode) bool { return mode == mesh.ClientAndServer || mode == side }

// fileLog is the access log of the mesh's configuration.
func (a *asking) fileLog() []plan.AccessLog {
	return []plan.AccessLog{{
		Path: cmp.Or(a.config.AccessLogFile, stdout), Format: a.config.AccessLogFormat, JSON: a.config.AccessLogJSON,
	}}
}

const stdout = "/dev/stdout"

// accessLogs are the logs after a rule; have are those before it.
func (a *asking) accessLogs(have []plan.AccessLog, l *mesh.AccessLogging) []plan.AccessLog {
	if l.Disabled != nil && *l.Disabled {
		return nil
	}
	names := l.Providers
	if len(names) == 0 {
		names = a.config.DefaultAccessLogs
	}
	var out []plan.AccessLog
	if len(names) == 0 {
		out = a.fileLog()
	}
	for _, n := range names {
		switch p, known := a.config.Providers[n]; {
		case known && p.Kind == "envoyFileAccessLog":
			out = append(out, plan.AccessLog{Path: p.Path, Format: p.Format, JSON: p.JSON, Labels: maps.Clone(p.Labels)})
		case n == "envoy": // Istio's built-in provider
			out = append(out, plan.AccessLog{Path: stdout})
		}
	}
	if len(out) == 0 {
		return have
	}
	for i := range out {
		applyFilter(&out[i], l.Filter)
	}
	return out
}

// applyFilter understands the one filter that source accepts: "response.code >= N".
func applyFilter(l *plan.AccessLog, filter string) {
	const prefix = "response.code >= "
	if len(filter) > len(prefix) && filter[:len(prefix)] == prefix {
		if n, err := strconv.Atoi(filter[len(prefix):]); err == nil {
			l.MinStatus = n
		}
	}
}

// amend puts what a narrower rule says in the place of what a wider one says.
func amend(t, by *mesh.TracingRule) {
	if by.Disabled != nil {
		t.Disabled = by.Disabled
	}
	if by.Sampling != nil {
		t.Sampling = by.Sampling
	}
	if len(by.Providers) > 0 {
		t.Providers = by.Providers
	}
	if len(by.Tags)+len(by.HeaderTag) > 0 {
		t.Tags, t.HeaderTag = by.Tags, by.HeaderTag
	}
}

// tracing sends spans to the first of a rule's providers that can be asked.
func (a *asking) tracing(r *mesh.TracingRule) *plan.Tracing {
	if *r.Disabled {
		return nil
	}
	for _, n := range r.Providers {
		p := a.config.Providers[n]
		host := p.Service
		if _, after, ok := strings.Cut(host, "/"); ok { // "namespace/host"
			host = after
		}
		t := &plan.Tracing{Endpoint: "http://" + net.JoinHostPort(host, strconv.Itoa(int(p.Port))), Sampling: *r.Sampling, Tags: r.Tags, HeaderTag: r.HeaderTag}
		switch p.Kind {
		case "zipkin":
			t.Endpoint += cmp.Or(p.Path, zipkinPath)
			return t
		case "opentelemetry":
			t.Provider = plan.TracingOTLP
			return t
		}
	}
	return nil
}

// zipkinPath is where Zipkin takes spans.
const zipkinPath = "/api/v2/spans"
