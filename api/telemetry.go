package api

import (
	"regexp"

	telemetry "istio.io/api/telemetry/v1alpha1"
)

// statusFilter is the one filter of access logs that is understood.
var statusFilter = regexp.MustCompile(`^response\.code >= [1-5][0-9][0-9]$`)

func validateTelemetry(c *check) {
	t := c.Spec.(*telemetry.Telemetry)
	c.targets(t.Selector, t.TargetRef, t.TargetRefs)
	for i, a := range t.AccessLogging {
		c.providers(in("spec.accessLogging", i), a.Providers)
		if f := a.Filter; f != nil && !statusFilter.MatchString(f.Expression) {
			c.fault(in("spec.accessLogging", i, "filter"), "%q cannot be judged; the one form understood so far is: response.code >= 400", f.Expression)
		}
	}
	for i, s := range t.Tracing {
		p := in("spec.tracing", i)
		c.providers(p, s.Providers)
		if len(s.Providers) > 1 {
			c.fault(in(p, "providers"), "names %d providers; traces go to one", len(s.Providers))
		}
		c.percent(in(p, "randomSamplingPercentage"), s.RandomSamplingPercentage.GetValue())
		for name, tag := range s.CustomTags {
			c.customTag(in(p, "customTags", name), tag)
		}
	}
	for i, m := range t.Metrics {
		p := in("spec.metrics", i)
		c.providers(p, m.Providers)
		for j, o := range m.Overrides {
			c.override(in(p, "overrides", j), o)
		}
	}
}

func (c *check) providers(p string, list []*telemetry.ProviderRef) {
	for i, r := range list {
		if r.Name == "" {
			c.fault(in(p, "providers", i), "name is empty; write one of the mesh's extensionProviders")
		}
	}
}

func (c *check) customTag(p string, t *telemetry.Tracing_CustomTag) {
	empty := false
	switch v := t.GetType().(type) {
	case nil:
		empty = true
	case *telemetry.Tracing_CustomTag_Literal:
		empty = v.Literal.GetValue() == ""
	case *telemetry.Tracing_CustomTag_Header:
		empty = v.Header.GetName() == ""
	case *telemetry.Tracing_CustomTag_Environment:
		empty = v.Environment.GetName() == ""
	case *telemetry.Tracing_CustomTag_Formatter:
		empty = v.Formatter.GetValue() == ""
	}
	if empty {
		c.fault(p, "has no value; add literal.value, header.name or environment.name")
	}
}

// override judges a setting for certain metrics; only one for all of them has an effect so far.
func (c *check) override(p string, o *telemetry.MetricsOverrides) {
	for name, tag := range o.TagOverrides {
		tp := in(p, "tagOverrides", name)
		switch {
		case tag.Operation == telemetry.MetricsOverrides_TagOverride_UPSERT && c.has(in(tp, "operation")) && tag.Value == "":
			c.fault(tp, "value is missing; UPSERT needs one")
		case tag.Operation == telemetry.MetricsOverrides_TagOverride_REMOVE && tag.Value != "":
			c.fault(in(tp, "value"), "has no place with REMOVE; remove it")
		}
	}
	if o.GetMatch().GetCustomMetric() != "" || o.GetMatch().GetMetric() != telemetry.MetricSelector_ALL_METRICS {
		c.warn(p, "settings for single metrics are accepted but not acted on yet; only those for ALL_METRICS have an effect")
	}
}
