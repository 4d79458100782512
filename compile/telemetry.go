package compile

import (
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/plan"
)

// telemetry decides how the asker tells what happens on one side: the mesh's configuration, changed by the
// Telemetry resources of the root namespace, of the asker's, and of those that select its workload.
func (a *asking) telemetry(side mesh.Mode) plan.Telemetry {
	var out plan.Telemetry
	if f := a.config.AccessLogFile; f != "" {
		out.AccessLogs = []plan.AccessLog{{Path: f, Format: a.config.AccessLogFormat, JSON: a.config.AccessLogJSON}}
	}
	if !a.config.NoTracing && len(a.config.DefaultTracing) > 0 {
		out.Tracing = a.tracing(a.config.DefaultTracing, nil)
	}
	list := selected(a, a.Telemetry, func(t *mesh.Telemetry) mesh.Labels { return t.Selector })
	slices.SortStableFunc(list, func(x, y *mesh.Telemetry) int { return a.breadth(x) - a.breadth(y) })
	for _, t := range list {
		for i := range t.AccessLogs {
			if l := &t.AccessLogs[i]; on(l.Mode, side) {
				out.AccessLogs = a.accessLogs(out.AccessLogs, l)
			}
		}
		for i := range t.Tracing {
			if r := &t.Tracing[i]; on(r.Mode, side) {
				out.Tracing = a.retrace(out.Tracing, r)
			}
		}
		for _, m := range t.Metrics {
			if on(m.Mode, side) && m.Disabled != nil {
				out.NoMetrics = *m.Disabled
			}
		}
	}
	return out
}

// breadth orders scopes from the widest to the narrowest.
func (a *asking) breadth(t *mesh.Telemetry) int {
	switch {
	case t.Selector != nil:
		return 2
	case t.Namespace == a.config.RootNamespace:
		return 0
	default:
		return 1
	}
}

func on(mode, side mesh.Mode) bool { return mode == mesh.ClientAndServer || mode == side }

func (a *asking) accessLogs(have []plan.AccessLog, l *mesh.AccessLogging) []plan.AccessLog {
	if l.Disabled != nil && *l.Disabled {
		return nil
	}
	names := l.Providers
	if len(names) == 0 {
		names = a.config.DefaultAccessLogs
	}
	var out []plan.AccessLog
	for _, n := range names {
		switch p, known := a.config.Providers[n]; {
		case known && p.Kind == "envoyFileAccessLog":
			out = append(out, plan.AccessLog{Path: p.Path, Format: p.Format, JSON: p.JSON, Labels: maps.Clone(p.Labels)})
		case n == "envoy": // Istio's built-in provider
			out = append(out, plan.AccessLog{Path: "/dev/stdout"})
		}
	}
	if len(out) == 0 && len(names) == 0 {
		out = []plan.AccessLog{{Path: "/dev/stdout"}}
	}
	for i := range out {
		applyFilter(&out[i], l.Filter)
	}
	if len(out) == 0 {
		return have
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

func (a *asking) tracing(names []string, r *mesh.TracingRule) *plan.Tracing {
	for _, n := range names {
		p, ok := a.config.Providers[n]
		if !ok {
			continue
		}
		t := &plan.Tracing{Sampling: a.config.Sampling}
		address := "http://" + net.JoinHostPort(p.Service, strconv.Itoa(int(p.Port)))
		switch p.Kind {
		case "zipkin":
			t.Endpoint = address + "/api/v2/spans"
			if p.Path != "" {
				t.Endpoint = address + p.Path
			}
		case "opentelemetry":
			t.Provider, t.Endpoint = plan.TracingOTLP, address
		default:
			continue
		}
		if r != nil {
			amend(t, r)
		}
		return t
	}
	return nil
}

func amend(t *plan.Tracing, r *mesh.TracingRule) {
	if r.Sampling != nil {
		t.Sampling = *r.Sampling
	}
	if len(r.Tags) > 0 {
		t.Tags = maps.Clone(r.Tags)
	}
	if len(r.HeaderTag) > 0 {
		t.HeaderTag = maps.Clone(r.HeaderTag)
	}
}

func (a *asking) retrace(have *plan.Tracing, r *mesh.TracingRule) *plan.Tracing {
	if r.Disabled != nil && *r.Disabled {
		return nil
	}
	if len(r.Providers) > 0 {
		return a.tracing(r.Providers, r)
	}
	if have == nil {
		return a.tracing(a.config.DefaultTracing, r)
	}
	changed := *have
	amend(&changed, r)
	return &changed
}
