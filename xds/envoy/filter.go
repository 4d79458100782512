package envoy

import (
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

// The names of HTTP filters, by which routes find their settings.
const (
	filterFault  = "envoy.filters.http.fault"
	filterCORS   = "envoy.filters.http.cors"
	filterRBAC   = "envoy.filters.http.rbac"
	filterRouter = "envoy.filters.http.router"
)

func httpFilter(name string, config proto.Message) *hcm.HttpFilter {
	return &hcm.HttpFilter{Name: name, ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack(config)}}
}

// httpFilters lists the filters of a chain in Istio's order. Fault and CORS do nothing but where a route says so.
func (e *encoder) httpFilters(a *plan.Authz) ([]*hcm.HttpFilter, error) {
	if e.flavour == GRPC {
		return []*hcm.HttpFilter{
			httpFilter(filterFault, &faultfilter.HTTPFault{}), httpFilter(filterRouter, &routerfilter.Router{}),
		}, nil
	}
	out, err := rbacHTTP(a)
	if err != nil {
		return nil, err
	}
	return append(out,
		httpFilter(filterFault, &faultfilter.HTTPFault{}),
		httpFilter(filterCORS, &corsfilter.Cors{}),
		httpFilter(filterRouter, &routerfilter.Router{}),
	), nil
}

func fault(f *plan.Fault) *faultfilter.HTTPFault {
	out := &faultfilter.HTTPFault{}
	if f.Delay > 0 && f.DelayPercent > 0 {
		out.Delay = &commonfault.FaultDelay{
			FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: duration(f.Delay)}, Percentage: percent(f.DelayPercent),
		}
	}
	if f.AbortPercent <= 0 {
		return out
	}
	switch {
	case f.AbortStatus > 0:
		out.Abort = &faultfilter.FaultAbort{
			ErrorType: &faultfilter.FaultAbort_HttpStatus{HttpStatus: uint32(f.AbortStatus)}, Percentage: percent(f.AbortPercent),
		}
	case f.AbortGRPC > 0:
		out.Abort = &faultfilter.FaultAbort{
			ErrorType: &faultfilter.FaultAbort_GrpcStatus{GrpcStatus: uint32(f.AbortGRPC)}, Percentage: percent(f.AbortPercent),
		}
	}
	return out
}

func cors(c *plan.CORS) *corsfilter.CorsPolicy {
	out := &corsfilter.CorsPolicy{
		AllowMethods: strings.Join(c.AllowMethods, ","), AllowHeaders: strings.Join(c.AllowHeaders, ","),
		ExposeHeaders: strings.Join(c.ExposeHeaders, ","), AllowCredentials: wrapperspb.Bool(c.AllowCredentials),
		ForwardNotMatchingPreflights: wrapperspb.Bool(c.ForwardUnmatched),
		FilterEnabled:                &core.RuntimeFractionalPercent{DefaultValue: percent(100)},
	}
	if c.MaxAge > 0 {
		out.MaxAge = strconv.Itoa(int(c.MaxAge / time.Second))
	}
	for _, o := range c.AllowOrigins {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, text(o))
	}
	return out
}
