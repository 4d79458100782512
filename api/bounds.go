package api

import (
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// gatewayPackage holds the Gateway API's types, whose fields have bounds.
const gatewayPackage = "sigs.k8s.io/gateway-api/apis/v1"

// bound is what the Gateway API's schemas allow a field.
type bound struct {
	required bool
	oneOf    string         // names, with spaces between
	min, max int64          // of a number; max 0: without
	items    int            // of a list; 0: any
	pattern  *regexp.Regexp // for a text
	form     string         // the pattern in words
	longest  int            // of a text, in bytes; 0: any
}

const (
	subdomain     = `[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*`
	subdomainForm = "lower-case letters, digits, - and ."
	hostForm      = "a DNS name in lower case, or one after *."
	durationForm  = "up to four numbers, each with one of the units h, m, s and ms, such as 1m30s"
	headerForm    = "a header's name"
)

var (
	durationText = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)
	headerText   = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$`)
	pathText     = regexp.MustCompile(`^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$`)
)

// bounds are the schemas' by type and field (Gateway API v1.6, standard channel; retry is of the experimental one).
var bounds = map[string]bound{
	"GatewayClassSpec.controllerName":      {required: true, pattern: regexp.MustCompile(`^` + subdomain + `\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$`), form: "a domain and a path: example.com/controller"},
	"ParametersReference.kind":             {required: true},
	"ParametersReference.name":             {required: true},
	"GatewaySpec.gatewayClassName":         {required: true, longest: maxName},
	"GatewaySpec.listeners":                {required: true, items: 64},
	"GatewaySpec.addresses":                {items: 16},
	"Listener.name":                        {required: true, pattern: regexp.MustCompile(`^` + subdomain + `$`), form: subdomainForm},
	"Listener.hostname":                    {pattern: regexp.MustCompile(`^(\*\.)?` + subdomain + `$`), form: hostForm},
	"Listener.port":                        {required: true, min: 1, max: math.MaxUint16},
	"Listener.protocol":                    {required: true, pattern: regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$|^` + subdomain + `\/[A-Za-z0-9]+$`), form: "HTTP or HTTPS"},
	"ListenerTLSConfig.mode":               {oneOf: "Terminate Passthrough"},
	"ListenerTLSConfig.certificateRefs":    {items: 64},
	"ListenerTLSConfig.options":            {items: 16},
	"AllowedRoutes.kinds":                  {items: 8},
	"RouteNamespaces.from":                 {oneOf: "All Selector Same"},
	"RouteGroupKind.kind":                  {required: true},
	"ListenerNamespaces.from":              {oneOf: "All Selector Same None"},
	"GatewayInfrastructure.labels":         {items: 8},
	"GatewayInfrastructure.annotations":    {items: 8},
	"LocalParametersReference.kind":        {required: true},
	"LocalParametersReference.name":        {required: true},
	"SecretObjectReference.name":           {required: true},
	"CommonRouteSpec.parentRefs":           {items: 32},
	"ParentReference.name":                 {required: true},
	"ParentReference.port":                 {min: 1, max: math.MaxUint16},
	"HTTPRouteSpec.hostnames":              {items: 16},
	"HTTPRouteSpec.rules":                  {items: 16},
	"HTTPRouteRule.matches":                {items: 64},
	"HTTPRouteRule.filters":                {items: 16},
	"HTTPRouteRule.backendRefs":            {items: 16},
	"HTTPRouteTimeouts.request":            {pattern: durationText, form: durationForm},
	"HTTPRouteTimeouts.backendRequest":     {pattern: durationText, form: durationForm},
	"HTTPRouteRetry.backoff":               {pattern: durationText, form: durationForm},
	"HTTPRouteRetry.attempts":              {min: 1},
	"HTTPPathMatch.type":                   {oneOf: "Exact PathPrefix RegularExpression"},
	"HTTPPathMatch.value":                  {longest: 1024},
	"HTTPHeaderMatch.type":                 {oneOf: "Exact RegularExpression"},
	"HTTPHeaderMatch.name":                 {required: true, pattern: headerText, form: headerForm},
	"HTTPHeaderMatch.value":                {required: true, longest: 4096},
	"HTTPQueryParamMatch.type":             {oneOf: "Exact RegularExpression"},
	"HTTPQueryParamMatch.name":             {required: true, pattern: headerText, form: "a parameter's name"},
	"HTTPQueryParamMatch.value":            {required: true, longest: 1024},
	"HTTPRouteMatch.headers":               {items: 16},
	"HTTPRouteMatch.queryParams":           {items: 16},
	"HTTPRouteMatch.method":                {oneOf: "GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH"},
	"HTTPRouteFilter.type":                 {required: true, oneOf: "RequestHeaderModifier ResponseHeaderModifier RequestMirror RequestRedirect URLRewrite ExtensionRef CORS ExternalAuth"},
	"HTTPHeader.name":                      {required: true, pattern: headerText, form: headerForm},
	"HTTPHeader.value":                     {required: true, longest: 4096},
	"HTTPHeaderFilter.set":                 {items: 16},
	"HTTPHeaderFilter.add":                 {items: 16},
	"HTTPHeaderFilter.remove":              {items: 16},
	"HTTPPathModifier.type":                {required: true, oneOf: "ReplaceFullPath ReplacePrefixMatch"},
	"HTTPPathModifier.replaceFullPath":     {longest: 1024},
	"HTTPPathModifier.replacePrefixMatch":  {longest: 1024},
	"HTTPRequestRedirectFilter.scheme":     {oneOf: "http https"},
	"HTTPRequestRedirectFilter.hostname":   {pattern: regexp.MustCompile(`^` + subdomain + `$`), form: "a DNS name in lower case"},
	"HTTPRequestRedirectFilter.port":       {min: 1, max: math.MaxUint16},
	"HTTPRequestRedirectFilter.statusCode": {oneOf: "301 302 303 307 308"},
	"HTTPURLRewriteFilter.hostname":        {pattern: regexp.MustCompile(`^` + subdomain + `$`), form: "a DNS name in lower case"},
	"HTTPRequestMirrorFilter.backendRef":   {required: true},
	"HTTPRequestMirrorFilter.percent":      {min: 0, max: 100},
	"Fraction.numerator":                   {required: true, min: 0, max: math.MaxInt32},
	"Fraction.denominator":                 {min: 1, max: math.MaxInt32},
	"HTTPCORSFilter.allowOrigins":          {items: 64},
	"HTTPCORSFilter.allowMethods":          {items: 9},
	"HTTPCORSFilter.allowHeaders":          {items: 64},
	"HTTPCORSFilter.exposeHeaders":         {items: 64},
	"HTTPCORSFilter.maxAge":                {min: 1, max: math.MaxInt32},
	"BackendObjectReference.name":          {required: true},
	"BackendObjectReference.port":          {min: 1, max: math.MaxUint16},
	"BackendRef.weight":                    {min: 0, max: 1_000_000},
	"GRPCRouteSpec.hostnames":              {items: 16},
	"GRPCRouteSpec.rules":                  {items: 16},
	"GRPCRouteRule.matches":                {items: 64},
	"GRPCRouteRule.filters":                {items: 16},
	"GRPCRouteRule.backendRefs":            {items: 16},
	"GRPCRouteMatch.headers":               {items: 16},
	"GRPCMethodMatch.type":                 {oneOf: "Exact RegularExpression"},
	"GRPCHeaderMatch.type":                 {oneOf: "Exact RegularExpression"},
	"GRPCHeaderMatch.name":                 {required: true, pattern: headerText, form: headerForm},
	"GRPCHeaderMatch.value":                {required: true, longest: 4096},
	"GRPCRouteFilter.type":                 {required: true, oneOf: "RequestHeaderModifier ResponseHeaderModifier RequestMirror ExtensionRef"},
	"ReferenceGrantSpec.from":              {required: true, items: 16},
	"ReferenceGrantSpec.to":                {required: true, items: 16},
	"ReferenceGrantFrom.kind":              {required: true},
	"ReferenceGrantFrom.namespace":         {required: true},
	"ReferenceGrantTo.kind":                {required: true},
	"LocalObjectReference.kind":            {required: true},
	"LocalObjectReference.name":            {required: true},
	"HTTPRouteSpec.parentRefs":             {items: 32},
	"GRPCRouteSpec.parentRefs":             {items: 32},
	"HTTPBackendRef.filters":               {items: 16},
	"HTTPBackendRef.name":                  {required: true},
	"HTTPBackendRef.port":                  {min: 1, max: math.MaxUint16},
	"HTTPBackendRef.weight":                {min: 0, max: 1_000_000},
	"GRPCBackendRef.filters":               {items: 16},
	"GRPCBackendRef.name":                  {required: true},
	"GRPCBackendRef.port":                  {min: 1, max: math.MaxUint16},
	"GRPCBackendRef.weight":                {min: 0, max: 1_000_000},
}

// bounded judges a field of the Gateway API that could be read.
func (r *reader) bounded(owner reflect.Type, f field, path string, v reflect.Value) {
	if owner.PkgPath() != gatewayPackage {
		return
	}
	b := bounds[owner.Name()+"."+f.name]
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		if b.items > 0 && v.Len() > b.items {
			r.fault(r.at(f.key), path, "has %d items, more than the %d allowed; split the object", v.Len(), b.items)
		}
		if b.required && v.Len() == 0 {
			r.fault(r.at(f.key), path, "is empty; it needs an item at least")
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		n := v.Int()
		if b.oneOf != "" {
			r.oneOf(b, f, path, strconv.FormatInt(n, 10))
		} else if n < b.min || b.max != 0 && n > b.max {
			r.outside(b, f, path, n)
		}
	case reflect.String:
		switch text := v.String(); {
		case b.oneOf != "":
			r.oneOf(b, f, path, text)
		case b.required && text == "":
			r.fault(r.at(f.value), path, "is empty")
		case b.longest > 0 && len(text) > b.longest:
			r.fault(r.at(f.value), path, "has %d characters, more than the %d allowed", len(text), b.longest)
		case b.pattern != nil && (len(text) > maxName || !b.pattern.MatchString(text)):
			r.fault(r.at(f.value), path, "%q cannot be read; write %s", text, b.form)
		}
	}
}

func (r *reader) oneOf(b bound, f field, path, text string) {
	names := strings.Fields(b.oneOf)
	if slices.Contains(names, text) {
		return
	}
	hint := ""
	if i := slices.IndexFunc(names, func(s string) bool { return strings.EqualFold(s, text) }); i >= 0 {
		hint = "; write " + names[i]
	}
	r.fault(r.at(f.value), path, "must be one of %s, is %s%s", strings.Join(names, ", "), describe(f.value), hint)
}

func (r *reader) outside(b bound, f field, path string, n int64) {
	if b.max == 0 {
		r.fault(r.at(f.value), path, "is %d; the least is %d", n, b.min)
		return
	}
	r.fault(r.at(f.value), path, "is %d; write a number from %d to %d", n, b.min, b.max)
}

// complete tells which fields are missing that the schemas demand.
func (r *reader) complete(n *yaml.Node, path string, owner reflect.Type, fields map[string]reflect.Value, written map[string]bool) {
	if owner.PkgPath() != gatewayPackage {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if bounds[owner.Name()+"."+name].required && !written[name] {
			r.fault(r.holder(path, n), path, "%s is missing; every %s needs it", name, noun(owner.Name()))
		}
	}
}
