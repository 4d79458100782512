package envoy

import (
	"errors"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lateen-mesh/lateen/plan"
)

const filterManager = "envoy.filters.network.http_connection_manager"

var errNoRequests = errors.New("a gRPC client needs a port that speaks HTTP or gRPC: name the service's port grpc, or set its appProtocol")

// apiListener is a listener without a socket: how a gRPC client treats the calls to a target.
func (e *encoder) apiListener(p *plan.Listener) ([]Resource, error) {
	var c *plan.Chain
	for i := range p.Chains {
		if p.Chains[i].HTTP != nil {
			c = &p.Chains[i]
		}
	}
	if c == nil || p.Direction != plan.Outbound {
		return nil, errNoRequests
	}
	m := &hcm.HttpConnectionManager{StatPrefix: p.Name}
	if err := e.routeOf(m, c); err != nil {
		return nil, err
	}
	filters, err := e.httpFilters(nil)
	if err != nil {
		return nil, err
	}
	m.HttpFilters = filters
	return []Resource{{TypeURL: TypeURL(plan.KindListener), Name: p.Name, Message: &listener.Listener{
		Name: p.Name, ApiListener: &listener.ApiListener{ApiListener: pack(m)},
	}}}, nil
}

// routeOf says which route a connection manager obeys.
func (e *encoder) routeOf(m *hcm.HttpConnectionManager, c *plan.Chain) error {
	h := c.HTTP
	switch {
	case c.TLS.RedirectHTTPS:
		m.RouteSpecifier = inline(&route.RouteConfiguration{Name: "redirect_https", VirtualHosts: []*route.VirtualHost{{
			Name: "redirect_https", Domains: []string{"*"}, RequireTls: route.VirtualHost_ALL,
		}}})
	case h.Inline != nil:
		r, err := e.routeConfig(h.Inline)
		if err != nil {
			return err
		}
		m.RouteSpecifier = inline(r)
	case h.Route != "":
		m.RouteSpecifier = &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{
			ConfigSource: ads(), RouteConfigName: Names(e.flavour, plan.KindRoute, h.Route)[0],
		}}
	case c.TCP != nil && len(c.TCP.Clusters) > 0:
		m.RouteSpecifier = inline(&route.RouteConfiguration{
			Name: "allow_any", VirtualHosts: []*route.VirtualHost{everything("allow_any", c.TCP.Clusters[0].Cluster)},
			ValidateClusters: wrapperspb.Bool(false),
		})
	default:
		return errors.New("the chain says of requests neither a route nor a cluster")
	}
	return nil
}

func inline(r *route.RouteConfiguration) *hcm.HttpConnectionManager_RouteConfig {
	return &hcm.HttpConnectionManager_RouteConfig{RouteConfig: r}
}

// manager treats requests.
func (e *encoder) manager(p *plan.Listener, c *plan.Chain) (*listener.Filter, error) {
	h := c.HTTP
	m := &hcm.HttpConnectionManager{
		StatPrefix: statPrefix(p, c), AccessLog: accessLogs(p.Telemetry.AccessLogs), StreamIdleTimeout: duration(0),
		CommonHttpProtocolOptions: &core.HttpProtocolOptions{IdleTimeout: orDuration(h.IdleTimeout, idleTimeout)},
		UpgradeConfigs:            []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		UseRemoteAddress:          wrapperspb.Bool(h.AppendForwardedFor), XffNumTrustedHops: uint32(max(h.TrustedHops, 0)),
		SkipXffAppend: !h.AppendForwardedFor, NormalizePath: wrapperspb.Bool(h.PathNormalization != plan.PathNone),
		MergeSlashes:        h.PathNormalization == plan.PathMergeSlashes || h.PathNormalization == plan.PathDecodeAndMergeSlashes,
		HttpProtocolOptions: &core.Http1ProtocolOptions{AcceptHttp_10: h.HTTP10},
	}
	if h.PathNormalization == plan.PathDecodeAndMergeSlashes {
		m.PathWithEscapedSlashesAction = hcm.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
	if h.ServerName == "" {
		m.ServerHeaderTransformation = hcm.HttpConnectionManager_PASS_THROUGH
	} else {
		m.ServerName = h.ServerName
	}
	clientCert(m, h.ForwardClientCert, p.Direction == plan.Gateway)
	if err := e.routeOf(m, c); err != nil {
		return nil, err
	}
	filters, err := e.httpFilters(c.Authz)
	if err != nil {
		return nil, err
	}
	m.HttpFilters = filters
	return networkFilter(filterManager, m), nil
}

// clientCert says what to do with x-forwarded-client-cert; whole: our view holds the certificate itself.
func clientCert(m *hcm.HttpConnectionManager, how plan.ClientCert, whole bool) {
	switch how {
	case plan.ClientCertAppendForward:
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_APPEND_FORWARD
	case plan.ClientCertSanitizeSet:
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE_SET
	case plan.ClientCertSanitize:
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_SANITIZE
		return
	case plan.ClientCertForward:
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_FORWARD_ONLY
		return
	default:
		m.ForwardClientCertDetails = hcm.HttpConnectionManager_ALWAYS_FORWARD_ONLY
		return
	}
	m.SetCurrentClientCertDetails = &hcm.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: wrapperspb.Bool(true), Dns: true, Uri: true, Cert: whole,
	}
}
