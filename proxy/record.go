package proxy

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/http1"
	"github.com/lateen-mesh/lateen/proxy/http2"
	"github.com/lateen-mesh/lateen/proxy/stream"
	"github.com/lateen-mesh/lateen/telemetry"
	"github.com/lateen-mesh/lateen/telemetry/accesslog"
)

// record gathers what is told about one exchange when it is over.
type record struct {
	reason        telemetry.Reason
	flags         telemetry.Flags
	detail        string
	policy        *plan.Policy
	local         bool // the proxy answered by itself
	status        int
	grpcStatus    int
	received      int64 // body bytes from the client
	sent          int64 // body bytes to the client
	upstreamError error
	target        target
	attempts      int
	upstreamLocal netip.AddrPort
	completed     time.Time // when the request was complete and its rule known
	responded     time.Time // when the upstream's head arrived
	operation     string    // what the client's proxy calls its span, if a span is made here
	source        telemetry.PeerRef
	originalPath  []byte
	newCookie     []byte
	cookie        plan.HashOn
}

// begin starts the record of an exchange and keeps its memory.
func (r *record) begin(x *exchange) {
	*r = record{grpcStatus: -1, source: x.d.rec.source, originalPath: r.originalPath[:0], newCookie: r.newCookie[:0]}
}

// fail notes why the exchange ended as it did; the first reason that is more than a flag stays.
func (r *record) fail(why telemetry.Reason) {
	if r.reason == telemetry.None {
		r.reason = why
	}
	r.flags |= why.Flags()
}

// flag notes what happened besides.
func (r *record) flag(why telemetry.Reason) { r.flags |= why.Flags() }

func (r *record) attempt(a *attempt) {
	r.attempts++
	r.target = a.t
}

// upstream notes the upstream's answer.
func (r *record) upstream(x *exchange, a *attempt, h *stream.Head, end bool) {
	r.status, r.responded = h.Status, x.w.loop.Now()
	if a.conn != nil {
		r.upstreamLocal = a.conn.localAddr()
	}
	if v, ok := h.Get("grpc-status"); ok && end {
		r.grpcStatus = atoi(v)
	}
}

// end counts the exchange and writes its line.
func (r *record) end(x *exchange) {
	w, s := x.w, x.d.s
	l := s.listener.Plan
	took := w.loop.Now().Sub(x.start)
	grpc := telemetry.NoGRPCStatus
	if x.grpc && r.grpcStatus >= 0 {
		grpc = telemetry.GRPCCode(r.grpcStatus)
	}
	if !l.Telemetry.NoMetrics {
		k := telemetry.RequestKey{Code: uint16(r.status), GRPC: grpc, Flags: r.flags}
		if x.grpc {
			k.Protocol = telemetry.ProtocolGRPC
		}
		k.Reporter, k.Source, k.Destination, k.Service, k.Security = w.edge(x)
		w.shard.Request(k, took, uint64(r.received), uint64(r.sent))
	}
	if logs := w.logsOf(l); len(logs) > 0 {
		e := &w.entry
		*e = accesslog.Entry{
			Start: x.start.In(time.UTC), Duration: took, Protocol: x.d.protocol(), Method: x.req.Method(), Authority: x.req.Authority(),
			Path: x.req.Path(), Request: &x.req, Status: r.status, GRPC: grpc, Reason: r.reason, Particular: r.detail, Flags: r.flags,
			BytesReceived: uint64(r.received), BytesSent: uint64(r.sent), Attempts: uint64(r.attempts),
			UpstreamHost: r.target.addr, UpstreamRemote: r.target.addr, UpstreamLocal: r.upstreamLocal,
			DownstreamRemote: s.src(), DownstreamDirect: s.src(), DownstreamLocal: s.dst, ServerName: s.sni, LogType: "DownstreamEnd",
		}
		if len(r.originalPath) > 0 {
			e.Path = r.originalPath
		}
		if !r.responded.IsZero() {
			e.ResponseDuration = r.responded.Sub(x.start)
		}
		r.names(x, e)
		w.log(logs, e, r.status >= 400 || r.reason != telemetry.None)
	}
	x.report(took)
}

// names fills in what configuration calls things.
func (r *record) names(x *exchange, e *accesslog.Entry) {
	if x.cluster != nil {
		e.UpstreamCluster = x.cluster.Plan().Name
	}
	if x.rule != nil {
		e.Route = x.rule.Plan.Name
		e.Decider = x.d.w.decider(x.rule.Plan.Origin)
	}
	if r.policy != nil {
		e.Decider = x.d.w.decider(r.policy.Origin)
	}
	if r.upstreamError != nil && (r.reason == telemetry.TLSFailure || r.reason == telemetry.TLSIdentityMismatch) {
		e.UpstreamFailure = r.upstreamError.Error()
	}
	e.FilterChain = x.d.s.chain.Plan.Name
}

// decider is the text of an origin, made once.
func (w *worker) decider(o plan.Origin) string {
	if o.Kind == "" {
		return ""
	}
	if s, ok := w.origins[o]; ok {
		return s
	}
	if len(w.origins) >= cacheMax {
		clear(w.origins)
	}
	s := o.String()
	w.origins[o] = s
	return s
}

// edge names both ends of an exchange as metrics do.
func (w *worker) edge(x *exchange) (rep telemetry.Reporter, src, dst telemetry.PeerRef, svc telemetry.ServiceRef, sec telemetry.Security) {
	s := x.d.s
	if s.listener.Plan.Direction == plan.Inbound {
		sec = telemetry.SecurityNone
		if s.meshed {
			sec = telemetry.SecurityMutualTLS
		}
		return telemetry.ReporterDestination, x.rec.source, w.p.self.ref, w.serviceRef(s.chain.Plan.Service), sec
	}
	var name plan.ServiceName
	switch {
	case x.cluster != nil:
		name = x.cluster.Plan().Service
	case x.vhost != nil:
		name = x.vhost.Plan.Service
	}
	return telemetry.ReporterSource, w.p.self.ref, w.endpointRef(x.rec.target), w.serviceRef(name), w.sentSecurity(x.rec.target)
}

// sentSecurity is how a request travelled, as its sender knows.
func (w *worker) sentSecurity(t target) telemetry.Security {
	if t.cluster == nil {
		return telemetry.SecurityUnknown
	}
	if t.peer() {
		return telemetry.SecurityMutualTLS
	}
	return telemetry.SecurityNone
}

// cacheMax bounds the small caches of names.
const cacheMax = 4096

func (w *worker) serviceRef(n plan.ServiceName) telemetry.ServiceRef {
	if r, ok := w.services[n]; ok {
		return r
	}
	if len(w.services) >= cacheMax {
		clear(w.services)
	}
	r := telemetry.Service{Host: n.Host, Name: n.Name, Namespace: n.Namespace}.Ref()
	w.services[n] = r
	return r
}

func (w *worker) endpointRef(t target) telemetry.PeerRef {
	if t.ep == nil {
		return telemetry.PeerRef{}
	}
	p := t.ep.Plan()
	if r, ok := w.endpoints[p]; ok {
		return r
	}
	if len(w.endpoints) >= cacheMax {
		clear(w.endpoints)
	}
	r := peerOf(p.Workload, p.Identity).Ref()
	w.endpoints[p] = r
	return r
}

// forgetPlans empties the caches that go by parts of the plan: a part that is not in force any more would be held by them,
// and with an endpoint all that came with it. What is still used is made again.
func (w *worker) forgetPlans() {
	clear(w.endpoints)
	clear(w.sinks)
}

func peerOf(p plan.Workload, identity string) telemetry.Peer {
	return telemetry.Peer{
		Workload: p.Name, Namespace: p.Namespace, Principal: identity, App: p.App, Version: p.Version,
		CanonicalService: p.CanonicalName, CanonicalRevision: p.CanonicalRevision, Cluster: p.Cluster,
	}
}

// logSink is one access log of a listener, compiled.
type logSink struct {
	format     *accesslog.Format
	buffer     *accesslog.Buffer
	minStatus  int
	errorsOnly bool
}

// logsOf compiles a listener's access logs once.
func (w *worker) logsOf(l *plan.Listener) []logSink {
	if len(l.Telemetry.AccessLogs) == 0 {
		return nil
	}
	if s, ok := w.sinks[l]; ok {
		return s
	}
	if len(w.sinks) >= cacheMax {
		clear(w.sinks)
	}
	sinks := []logSink{}
	for _, a := range l.Telemetry.AccessLogs {
		cfg := accesslog.Config{Text: a.Format}
		if a.JSON || len(a.Labels) > 0 {
			cfg.JSON = accesslog.DefaultJSON()
			if len(a.Labels) > 0 {
				cfg.JSON = map[string]any{}
				for k, v := range a.Labels {
					cfg.JSON[k] = v
				}
			}
		}
		f, err := accesslog.Compile(cfg)
		if err != nil {
			w.p.logs.loops.Error("an access log is not written", "path", a.Path, "cause", err)
			continue
		}
		writer, err := w.p.logs.open(a.Path)
		if err != nil {
			w.p.logs.loops.Error("an access log is not written", "path", a.Path, "cause", err)
			continue
		}
		sinks = append(sinks, logSink{f, w.buffer(writer), a.MinStatus, a.ErrorsOnly})
	}
	w.sinks[l] = sinks
	return sinks
}

// buffer is the worker's one buffer to a writer.
func (w *worker) buffer(to *accesslog.Writer) *accesslog.Buffer {
	b := w.buffers[to]
	if b == nil {
		b = to.Buffer()
		w.buffers[to] = b
	}
	return b
}

func (w *worker) log(sinks []logSink, e *accesslog.Entry, failed bool) {
	for _, s := range sinks {
		if e.Status >= s.minStatus && (!s.errorsOnly || failed) {
			s.buffer.Log(s.format, e)
		}
	}
	*e = accesslog.Entry{}
}

// protocol is the client's, as access logs write it.
func (d *downstream) protocol() string {
	if d.h2 != nil && !d.mux {
		return "HTTP/2"
	}
	return "HTTP/1.1"
}

// connRecord is what is told about each exchange of a connection.
type connRecord struct {
	source telemetry.PeerRef
	xfcc   []byte
	// The peer's metadata, which is the same with each request, and what it says.
	metadata []byte
	named    telemetry.PeerRef
}

// peer is what the proxy at the other end says of its workload.
func (r *connRecord) peer(w *worker, metadata []byte, principal string) telemetry.PeerRef {
	if len(r.metadata) == 0 || !bytes.Equal(r.metadata, metadata) {
		r.metadata = append(r.metadata[:0], metadata[:min(len(metadata), peerMax)]...)
		r.named = w.peers.read(metadata, principal)
	}
	return r.named
}

// nothingNoted is the record of all who have proven nothing: there is nothing to keep about them.
var nothingNoted = &connRecord{}

func newConnRecord(s *session) *connRecord {
	if !s.secured {
		return nothingNoted
	}
	r := &connRecord{}
	if s.meshed {
		r.source = telemetry.Peer{Principal: s.peer.String(), Namespace: s.peer.Namespace}.Ref()
	}
	return r
}

// recordBadRequest tells of what was no request.
func (w *worker) recordBadRequest(d *downstream, f http1.Fault) { w.recordInvalid(d, f.Status(), f) }

// recordFault tells what a client did wrong on an HTTP/2 connection.
func (w *worker) recordFault(d *downstream, err *http2.Error) { w.recordInvalid(d, 0, err) }

// invalidReason is why a codec answers with a status by itself.
func invalidReason(status int) telemetry.Reason {
	if status == 431 {
		return telemetry.HeadersTooLarge
	}
	return telemetry.DownstreamProtocolError
}

func (w *worker) recordInvalid(d *downstream, status int, cause error) {
	l, why := d.s.listener.Plan, invalidReason(status)
	if !l.Telemetry.NoMetrics {
		k := telemetry.RequestKey{Code: uint16(status), Flags: why.Flags(), Source: d.rec.source, Service: w.serviceRef(d.s.chain.Plan.Service)}
		if l.Direction == plan.Inbound {
			k.Reporter, k.Destination = telemetry.ReporterDestination, w.p.self.ref
		} else {
			k.Source = w.p.self.ref
		}
		w.shard.Request(k, 0, 0, 0)
	}
	if logs := w.logsOf(l); len(logs) > 0 {
		w.entry = accesslog.Entry{
			Start: w.loop.Now().In(time.UTC), Protocol: d.protocol(), Status: status, Reason: why,
			Particular: cause.Error(), Flags: why.Flags(), DownstreamRemote: d.s.src(), DownstreamDirect: d.s.src(),
			DownstreamLocal: d.s.dst, ServerName: d.s.sni, LogType: "DownstreamEnd",
		}
		w.log(logs, &w.entry, true)
	}
}

// recordRefusal tells of a connection that was refused before anything else could be.
func (w *worker) recordRefusal(s *session, why telemetry.Reason, err error) {
	name := ""
	if s.listener != nil {
		name = s.listener.Plan.Name
	}
	w.p.logs.loops.Info("connection refused", "reason", why, "listener", name, "from", s.src(), "to", s.dst, "cause", err, "hint", why.Hint())
	if s.tunnel != nil {
		s.tunnel.RefuseWith(tunnelStatus(why))
	}
	if s.listener == nil {
		return
	}
	k := w.tcpKey(s, target{})
	k.Flags = why.Flags()
	if !s.listener.Plan.Telemetry.NoMetrics {
		w.shard.Opened(k)
		w.shard.Closed(k)
	}
	if logs := w.logsOf(s.listener.Plan); len(logs) > 0 {
		w.entry = accesslog.Entry{
			Start: w.loop.At(s.started).In(time.UTC), Duration: w.loop.Elapsed() - s.started, Reason: why, Flags: why.Flags(),
			DownstreamRemote: s.src(), DownstreamDirect: s.src(), DownstreamLocal: s.dst, ServerName: s.sni, Termination: why.String(),
			LogType: "TcpConnectionEnd",
		}
		if err != nil {
			w.entry.DownstreamFailure = err.Error()
		}
		w.log(logs, &w.entry, true)
	}
}

func (w *worker) tcpKey(s *session, t target) telemetry.TCPKey {
	k := telemetry.TCPKey{}
	if s.chain != nil {
		k.Service = w.serviceRef(s.chain.Plan.Service)
	}
	if s.listener.Plan.Direction == plan.Inbound {
		k.Reporter, k.Destination, k.Security = telemetry.ReporterDestination, w.p.self.ref, telemetry.SecurityNone
		if s.meshed {
			k.Security = telemetry.SecurityMutualTLS
			k.Source = telemetry.Peer{Principal: s.peer.String(), Namespace: s.peer.Namespace}.Ref()
		}
		return k
	}
	k.Source, k.Destination = w.p.self.ref, w.endpointRef(t)
	k.Security = w.sentSecurity(t)
	if t.cluster != nil {
		k.Service = w.serviceRef(t.cluster.Plan().Service)
	}
	return k
}

// openRelay counts a connection whose bytes are relayed.
func (w *worker) openRelay(r *relay) {
	r.key = w.tcpKey(r.s, target{cluster: r.cluster(), ep: r.ep})
	if !r.s.listener.Plan.Telemetry.NoMetrics {
		w.shard.Opened(r.key)
	}
}

// closeRelay counts its end and writes its line.
func (w *worker) closeRelay(r *relay, why telemetry.Reason, err error) {
	delete(w.relays, r)
	s := r.s
	if !s.listener.Plan.Telemetry.NoMetrics {
		r.flush()
		w.shard.Closed(r.key)
	}
	if logs := w.logsOf(s.listener.Plan); len(logs) > 0 {
		w.entry = accesslog.Entry{
			Start: w.loop.At(s.started).In(time.UTC), Duration: w.loop.Elapsed() - s.started, Reason: why, Flags: why.Flags(),
			BytesReceived: uint64(r.received), BytesSent: uint64(r.sent), UpstreamHost: r.addr, UpstreamRemote: r.addr,
			DownstreamRemote: s.src(), DownstreamDirect: s.src(), DownstreamLocal: s.dst, ServerName: s.sni, LogType: "TcpConnectionEnd",
		}
		if r.choice != nil {
			w.entry.UpstreamCluster = r.choice.Name
		}
		if err != nil {
			w.entry.Termination = err.Error()
		}
		w.log(logs, &w.entry, why != telemetry.None)
	}
	w.connectionGone()
}
