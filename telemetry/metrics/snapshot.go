package metrics

import (
	"cmp"
	"slices"

	"github.com/lateen-mesh/lateen/telemetry"
)

// Snapshot is the sum of all shards at one moment. The order of its series is
// not defined. A request that ends meanwhile may be in one number and not yet
// in another.
type Snapshot struct {
	Requests []RequestSeries
	Peers    []EdgeSeries
	TCP      []TCPSeries
	// Overflows counts how often something was counted under "other", because a shard was full.
	Overflows uint64
}

// RequestSeries is one series of the HTTP and gRPC metrics.
type RequestSeries struct {
	Key telemetry.RequestKey
	// Duration is in milliseconds; its count is the number of requests.
	Duration Histogram
	// Received and Sent are the sizes of requests and responses in bytes.
	Received, Sent Histogram
}

// EdgeSeries is what is counted for each pair of peers.
type EdgeSeries struct {
	Key telemetry.EdgeKey
	// RequestMessages and ResponseMessages count gRPC messages.
	RequestMessages, ResponseMessages uint64
	// Latency is of all requests, whatever their outcome.
	Latency Latency
}

// TCPSeries is one series of the TCP metrics.
type TCPSeries struct {
	Key            telemetry.TCPKey
	Opened, Closed uint64
	Sent, Received uint64
}

// Edge is one arrow of the picture: who talks to whom and how it goes.
type Edge struct {
	Source, Destination telemetry.Peer
	Service             telemetry.Service
	Reporter            telemetry.Reporter
	// Requests is the number of finished requests, Failures of those among them that had no answer, a status of
	// 500 or more, or a gRPC status other than OK.
	Requests, Failures uint64
	// RequestMessages and ResponseMessages count gRPC messages.
	RequestMessages, ResponseMessages uint64
	// Latency of all requests; Quantile gives p50 and p99.
	Latency Latency
	// Opened and Closed count TCP connections, Sent and Received their bytes.
	Opened, Closed, Sent, Received uint64
	// MutualTLS and Plain count the requests and opened connections known to be secured and known not to be.
	MutualTLS, Plain uint64
}

// Edges adds the series up to one Edge per pair of peers, service and reporter,
// in the order of their names.
func (s *Snapshot) Edges() []Edge {
	index := map[telemetry.EdgeKey]*Edge{}
	at := func(k telemetry.EdgeKey) *Edge {
		e := index[k]
		if e == nil {
			e = &Edge{Source: k.Source.Peer(), Destination: k.Destination.Peer(), Service: k.Service.Service(), Reporter: k.Reporter}
			index[k] = e
		}
		return e
	}
	for i := range s.Requests {
		r := &s.Requests[i]
		e, n := at(r.Key.Edge()), r.Duration.Count()
		e.Requests += n
		if failed(&r.Key) {
			e.Failures += n
		}
		e.secure(r.Key.Security, n)
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		e := at(p.Key)
		e.Latency, e.RequestMessages, e.ResponseMessages = p.Latency, p.RequestMessages, p.ResponseMessages
	}
	for i := range s.TCP {
		t := &s.TCP[i]
		e := at(t.Key.Edge())
		e.Opened, e.Closed, e.Sent, e.Received = e.Opened+t.Opened, e.Closed+t.Closed, e.Sent+t.Sent, e.Received+t.Received
		e.secure(t.Key.Security, t.Opened)
	}
	edges := make([]Edge, 0, len(index))
	for _, e := range index {
		edges = append(edges, *e)
	}
	slices.SortFunc(edges, compareEdges)
	return edges
}

func (e *Edge) secure(s telemetry.Security, n uint64) {
	switch s {
	case telemetry.SecurityMutualTLS:
		e.MutualTLS += n
	case telemetry.SecurityNone:
		e.Plain += n
	default:
	}
}

func failed(k *telemetry.RequestKey) bool {
	return k.Code == 0 || k.Code >= 500 || k.GRPC.Code() > 0
}

func compareEdges(a, b Edge) int {
	return cmp.Or(
		comparePeers(a.Source, b.Source), comparePeers(a.Destination, b.Destination),
		cmp.Compare(a.Service.Host, b.Service.Host), cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace), cmp.Compare(a.Reporter, b.Reporter))
}

func comparePeers(a, b telemetry.Peer) int {
	return cmp.Or(
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.App, b.App), cmp.Compare(a.CanonicalService, b.CanonicalService),
		cmp.Compare(a.CanonicalRevision, b.CanonicalRevision), cmp.Compare(a.Cluster, b.Cluster))
}

func requestSeries(k telemetry.RequestKey, cells []uint64) RequestSeries {
	s := RequestSeries{
		Key:      k,
		Duration: histogram(cells[cellDuration:]), Received: histogram(cells[cellReceived:]), Sent: histogram(cells[cellSent:]),
	}
	s.Duration.Sum /= 1000 // microseconds to milliseconds
	return s
}

func histogram(cells []uint64) Histogram {
	return Histogram{Buckets: [bucketCount]uint64(cells), Sum: float64(cells[bucketCount])}
}

func edgeSeries(k telemetry.EdgeKey, cells []uint64) EdgeSeries {
	return EdgeSeries{
		Key: k, RequestMessages: cells[cellRequestMessages], ResponseMessages: cells[cellResponseMessages],
		Latency: Latency(cells[cellLatency:]),
	}
}

func tcpSeries(k telemetry.TCPKey, cells []uint64) TCPSeries {
	return TCPSeries{Key: k, Opened: cells[cellOpened], Closed: cells[cellClosed], Sent: cells[cellTCPSent], Received: cells[cellTCPReceived]}
}
