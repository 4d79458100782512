package proxy

import (
	"bytes"
	"math/bits"
	"net/netip"
	"strconv"

	"github.com/cespare/xxhash/v2"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/stream"
)

// The fields in which proxies of an Istio mesh tell one another who they stand before.
const (
	peerField   = "x-envoy-peer-metadata"
	peerIDField = "x-envoy-peer-metadata-id"
)

// prepare makes the request's head what will be sent on, once for all attempts.
func (x *exchange) prepare() {
	h, http := &x.req, x.d.http
	x.identify()
	if x.d.s.listener.Plan.Direction == plan.Gateway {
		dropInternal(h)
	} else if x.rule != nil {
		x.takeOrders(h)
	}
	x.clientCert(h, http.ForwardClientCert)
	x.peerRequest(h, http)
	x.trace(h)
	x.operation(h)
	rule := x.rule
	if rule == nil {
		return
	}
	if rule.Request != nil {
		rule.Request.Apply(h, x)
	}
	if x.choice != nil && x.choice.Request != nil {
		x.choice.Request.Apply(h, x)
	}
	if rw := rule.Plan.Rewrite; rw != nil {
		x.rec.originalPath = append(x.rec.originalPath[:0], h.Path()...)
		if rw.Path != "" || rw.Prefix != "" || rw.Regex != "" {
			h.Set("x-envoy-original-path", h.Path())
			x.w.scratch = rule.Rewrite(x.w.scratch[:0], x.query.Path, x.query.Query)
			h.SetPath(x.w.scratch)
		}
		if rw.Authority != "" {
			h.SetAuthorityString(rw.Authority)
		}
	}
}

// internalFields are what proxies of a mesh say to, and order of, one another in requests. As an Envoy at the edge does
// ("HTTP header sanitizing"), a gateway takes them from nobody outside.
var internalFields = [...]string{
	"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
	"x-envoy-expected-rq-timeout-ms", "x-envoy-external-address", "x-envoy-force-trace", "x-envoy-hedge-on-per-try-timeout",
	"x-envoy-internal", "x-envoy-ip-tags", "x-envoy-max-retries", "x-envoy-original-host", "x-envoy-original-path",
	"x-envoy-original-url", "x-envoy-retriable-header-names", "x-envoy-retriable-status-codes", "x-envoy-retry-grpc-on",
	"x-envoy-retry-on", "x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-per-try-timeout-ms",
	"x-envoy-upstream-rq-timeout-alt-response", "x-envoy-upstream-rq-timeout-ms",
}

// dropInternal takes them out of a request; mostly there are none.
func dropInternal(h *stream.Head) {
	const prefix = "x-envoy-"
	for i := range h.Len() {
		if name, _ := h.At(i); len(name) > len(prefix) && stream.EqualFold(name[:len(prefix)], prefix) {
			for _, f := range internalFields {
				h.Del(f)
			}
			return
		}
	}
}

// operationField carries the name of a client's span to the proxy of the server, whose span is then called alike.
const operationField = "x-envoy-decorator-operation"

// operation exchanges the names of spans as Envoy does: only where spans are made.
func (x *exchange) operation(h *stream.Head) {
	switch {
	case !x.traced:
	case x.d.s.listener.Plan.Direction != plan.Inbound:
		if x.rule != nil && x.rule.Plan.Operation != "" {
			h.SetString(operationField, x.rule.Plan.Operation)
		}
	default:
		if name, has := h.Get(operationField); has {
			if x.span.Decision.Recorded() {
				x.rec.operation = string(name)
			}
			h.Del(operationField)
		}
	}
}

// identify says once where the request came from and what it is called, for whoever sees it next: the upstream, or the
// log if we answer it ourselves.
func (x *exchange) identify() {
	if x.identified {
		return
	}
	x.identified = true
	x.forwarded(&x.req, x.d.http)
	x.requestID(&x.req)
}

// forwarded says where the request came from and how (x-forwarded-for, x-forwarded-proto).
func (x *exchange) forwarded(h *stream.Head, http *plan.HTTP) {
	proto := "http"
	if x.d.s.secured && x.d.s.tunnel == nil { // what a tunnel carries was plaintext before
		proto = "https"
	}
	if http.AppendForwardedFor {
		x.appendForwardedFor(h)
	}
	if _, has := h.Get("x-forwarded-proto"); !has || http.AppendForwardedFor && http.TrustedHops == 0 {
		h.SetLine("x-forwarded-proto", []byte(proto))
	}
}

// appendForwardedFor adds the client to x-forwarded-for. What the client says in it is kept, also where it is not
// believed, as Envoy does.
func (x *exchange) appendForwardedFor(h *stream.Head) {
	client := x.d.s.src().Addr().Unmap()
	if _, has := h.Get("x-forwarded-for"); !has {
		x.w.scratch = client.AppendTo(x.w.scratch[:0])
		h.SetLine("x-forwarded-for", x.w.scratch)
		return
	}
	x.w.scratch = appendJoined(x.w.scratch[:0], h, "x-forwarded-for")
	if len(x.w.scratch) > 0 {
		x.w.scratch = append(x.w.scratch, ',')
	}
	x.w.scratch = client.AppendTo(x.w.scratch)
	h.Set("x-forwarded-for", x.w.scratch)
}

// appendJoined appends all fields of a name as one list (RFC 9110 section 5.3): what a client sends in a line of its own
// must not stand in front of, or instead of, what a proxy said in the next.
func appendJoined(dst []byte, h *stream.Head, name string) []byte {
	first := true
	for i := range h.Len() {
		n, v := h.At(i)
		if !stream.EqualFold(n, name) {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, v...)
	}
	return dst
}

// clientAddr is who asks, by what the proxies in front that are believed have said (Envoy, "x-forwarded-for"): at a
// gateway, which adds its peer's address, the last address that its TrustedHops proxies have added; in a sidecar, which adds
// none, the last of all, so that a policy knows the client of the gateway before it.
func clientAddr(http *plan.HTTP, xff []byte, peer netip.Addr) netip.Addr {
	but := http.TrustedHops
	if http.AppendForwardedFor {
		if but--; but < 0 {
			return peer
		}
	}
	return trustedAddr(xff, but, peer)
}

// trustedAddr is the last address of a list but for some, which are those of believed proxies; peer if the list is
// shorter, or says something else there.
func trustedAddr(xff []byte, but int, peer netip.Addr) netip.Addr {
	for range but {
		i := bytes.LastIndexByte(xff, ',')
		if i < 0 {
			return peer
		}
		xff = xff[:i]
	}
	a, err := netip.ParseAddr(string(bytes.TrimSpace(xff[bytes.LastIndexByte(xff, ',')+1:])))
	if err != nil {
		return peer
	}
	return a.Unmap()
}

// requestID gives every request a name that stays with it.
func (x *exchange) requestID(h *stream.Head) {
	if id, has := h.Get("x-request-id"); has && len(id) > 0 && x.d.s.listener.Plan.Direction != plan.Gateway {
		return
	}
	x.w.scratch = x.w.propagator.IDs.AppendRequestID(x.w.scratch[:0])
	h.SetLine("x-request-id", x.w.scratch)
}

// clientCert tells the application who called, in x-forwarded-client-cert.
func (x *exchange) clientCert(h *stream.Head, how plan.ClientCert) {
	const field = "x-forwarded-client-cert"
	if how == plan.ClientCertLeave {
		return
	}
	value := x.d.xfcc()
	if how == plan.ClientCertSanitize || len(value) == 0 {
		h.Del(field) // without mutual TLS nobody has vouched for what the field says
		return
	}
	switch how {
	case plan.ClientCertForward:
	case plan.ClientCertAppendForward:
		x.w.scratch = appendJoined(x.w.scratch[:0], h, field)
		if len(x.w.scratch) > 0 {
			x.w.scratch = append(x.w.scratch, ',')
		}
		x.w.scratch = append(x.w.scratch, value...)
		h.Set(field, x.w.scratch)
	default:
		h.Set(field, value)
	}
}

// peerRequest exchanges workload metadata with the proxies of the mesh: what the client's said is kept for
// telemetry, and our own is sent only to those who are of the mesh.
func (x *exchange) peerRequest(h *stream.Head, http *plan.HTTP) {
	inbound := x.d.s.listener.Plan.Direction == plan.Inbound
	if inbound && http.Peers && x.d.s.meshed {
		if value, has := h.Get(peerField); has {
			x.rec.source = x.d.rec.peer(x.w, value, x.d.s.peerText)
		}
	}
	// What comes from outside of the mesh, or from the application, is not passed on as if a proxy had said it.
	h.Del(peerField)
	h.Del(peerIDField)
	if http.Peers && !inbound && x.meshBound() {
		h.AddLine(x.w.p.self.line, len(peerField))
		h.Set(peerIDField, x.w.p.self.id)
	}
}

// meshBound reports whether the request goes to a place that the mesh knows.
func (x *exchange) meshBound() bool {
	return x.choice != nil && x.choice.Cluster != nil && !x.choice.Cluster.Plan().External &&
		x.choice.Cluster.Plan().Discovery == plan.DiscoverEndpoints
}

// peerResponse keeps what proxies tell one another out of what leaves the mesh.
func (x *exchange) peerResponse(h *stream.Head) {
	if x.d.s.listener.Plan.Direction != plan.Inbound {
		h.Del(peerField)
		h.Del(peerIDField)
		if x.traced {
			h.Del(operationField) // an Envoy before the server says it in responses too
		}
	}
}

// hashRequest computes the input of consistent hashing where the chosen cluster balances by it: by what the cluster says,
// else by what the rule says, which may speak of other clusters too.
func (x *exchange) hashRequest() {
	if x.choice.Cluster == nil {
		return
	}
	b := &x.choice.Cluster.Plan().Balance
	if b.Algorithm != plan.RingHash && b.Algorithm != plan.Maglev {
		return
	}
	on := b.HashOn
	if len(on) == 0 {
		on = x.rule.Plan.HashOn
	}
	for _, in := range on {
		switch {
		case in.Header != "":
			if v, has := x.req.Get(in.Header); has {
				x.addHash(v)
			}
		case in.Cookie != "":
			if v, has := cookie(&x.req, in.Cookie); has {
				x.addHash(v)
			} else if in.CookieTTL != nil {
				x.rec.newCookie = strconv.AppendUint(x.rec.newCookie[:0], x.w.rnd.Uint64(), 16)
				x.rec.cookie = in
				x.addHash(x.rec.newCookie)
			}
		case in.SourceIP:
			x.w.scratch = x.d.s.src().Addr().AppendTo(x.w.scratch[:0])
			x.addHash(x.w.scratch)
		case in.Query != "":
			if v, has := queryValue(x.query.Query, in.Query); has {
				x.addHash(v)
			}
		}
	}
}

// addHash mixes one more input in as Envoy does (xxHash, the inputs before it rotated by one), so that all proxies of a
// mesh send one key to one place, ours and Envoy's.
func (x *exchange) addHash(p []byte) {
	h := xxhash.Sum64(p)
	if x.hasHash {
		h ^= bits.RotateLeft64(x.hash, 1)
	}
	x.hash, x.hasHash = h, true
}

// hashCookie hands a new hash cookie to the client.
func (x *exchange) hashCookie(h *stream.Head) {
	if len(x.rec.newCookie) == 0 {
		return
	}
	c := x.rec.cookie
	b := append(append(append(x.w.scratch[:0], c.Cookie...), '='), x.rec.newCookie...)
	if *c.CookieTTL > 0 {
		b = strconv.AppendInt(append(b, "; Max-Age="...), int64(c.CookieTTL.Seconds()), 10)
	}
	if c.CookiePath != "" {
		b = append(append(b, "; Path="...), c.CookiePath...)
	}
	b = append(b, "; HttpOnly"...)
	x.w.scratch = b
	h.Add([]byte("set-cookie"), b)
}

// cookie finds a cookie of the request (RFC 6265 section 4.2).
func cookie(h *stream.Head, name string) ([]byte, bool) {
	for i := range h.Len() {
		n, v := h.At(i)
		if !stream.EqualFold(n, "cookie") {
			continue
		}
		for len(v) > 0 {
			var part []byte
			part, v, _ = bytes.Cut(v, []byte(";"))
			key, value, ok := bytes.Cut(bytes.TrimSpace(part), []byte("="))
			if ok && string(key) == name {
				if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
					value = value[1 : n-1] // RFC 6265 section 4.1.1 allows quotes, and Envoy's own cookies have them
				}
				return value, true
			}
		}
	}
	return nil, false
}

// queryValue finds a query parameter, undecoded.
func queryValue(query []byte, name string) ([]byte, bool) {
	for len(query) > 0 {
		var part []byte
		part, query, _ = bytes.Cut(query, []byte("&"))
		key, value, _ := bytes.Cut(part, []byte("="))
		if string(key) == name {
			return value, true
		}
	}
	return nil, false
}

func appendLower(dst, p []byte) []byte {
	for _, c := range p {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}

func appendPort(dst []byte, port uint16) []byte { return strconv.AppendUint(dst, uint64(port), 10) }

func atoi(p []byte) int {
	n, err := strconv.Atoi(string(p))
	if err != nil {
		return -1
	}
	return n
}
