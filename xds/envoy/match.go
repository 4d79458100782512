package envoy

import (
	"math"
	"regexp"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/lateen-mesh/lateen/plan"
)

// regex is an expression that must match the whole text.
func regex(expr string) *matcher.RegexMatcher { return &matcher.RegexMatcher{Regex: expr} }

// text is a match of a text. That which matches nothing is an expression that nothing fits.
func text(m plan.StringMatch) *matcher.StringMatcher {
	out := &matcher.StringMatcher{IgnoreCase: m.IgnoreCase}
	switch m.Kind {
	case plan.MatchExact:
		out.MatchPattern = &matcher.StringMatcher_Exact{Exact: m.Value}
	case plan.MatchPrefix:
		if m.Value == "" {
			return regexText(".*")
		}
		out.MatchPattern = &matcher.StringMatcher_Prefix{Prefix: m.Value}
	case plan.MatchSuffix:
		if m.Value == "" {
			return regexText(".*")
		}
		out.MatchPattern = &matcher.StringMatcher_Suffix{Suffix: m.Value}
	case plan.MatchRegex:
		return regexText(m.Value)
	case plan.MatchPresent:
		return regexText(".+")
	case plan.MatchPath:
		return regexText(templateRegex(m.Value))
	default:
		return regexText("[^\\s\\S]")
	}
	return out
}

func regexText(expr string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: regex(expr)}}
}

// templateRegex turns a path template into an expression: {*} is one segment, {**} is any number of characters.
func templateRegex(template string) string {
	var b strings.Builder
	for template != "" {
		i := strings.Index(template, "{*")
		if i < 0 {
			break
		}
		b.WriteString(regexp.QuoteMeta(template[:i]))
		template = template[i:]
		switch {
		case strings.HasPrefix(template, "{**}"):
			b.WriteString(".*")
			template = template[len("{**}"):]
		case strings.HasPrefix(template, "{*}"):
			b.WriteString("[^/]+")
			template = template[len("{*}"):]
		default:
			b.WriteString(regexp.QuoteMeta("{*"))
			template = template[len("{*"):]
		}
	}
	b.WriteString(regexp.QuoteMeta(template))
	return b.String()
}

// header is a match of a field of the request. What must not have a value may be absent, which Envoy has to be told.
func header(name string, m plan.StringMatch, invert bool) *route.HeaderMatcher {
	out := &route.HeaderMatcher{Name: name, InvertMatch: invert}
	if m.Kind == plan.MatchPresent || m.Kind == plan.MatchPrefix && m.Value == "" {
		out.HeaderMatchSpecifier = &route.HeaderMatcher_PresentMatch{PresentMatch: true}
		return out
	}
	out.HeaderMatchSpecifier = &route.HeaderMatcher_StringMatch{StringMatch: text(m)}
	out.TreatMissingHeaderAsEmpty = invert
	return out
}

// percent is a share of 0 to 100 in millionths.
func percent(p float64) *envoytype.FractionalPercent {
	const million = 1_000_000
	return &envoytype.FractionalPercent{
		Numerator:   uint32(math.Round(min(max(p, 0), 100) / 100 * million)),
		Denominator: envoytype.FractionalPercent_MILLION,
	}
}

func runtimePercent(p float64) *core.RuntimeFractionalPercent {
	return &core.RuntimeFractionalPercent{DefaultValue: percent(p)}
}
