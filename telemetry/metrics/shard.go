package metrics

import (
	"time"

	"github.com/lateen-mesh/lateen/telemetry"
)

// The cells of a request's series. The number of requests is the sum of the
// duration's buckets.
const (
	cellDuration    = 0
	cellDurationSum = cellDuration + bucketCount // microseconds
	cellReceived    = cellDurationSum + 1
	cellReceivedSum = cellReceived + bucketCount
	cellSent        = cellReceivedSum + 1
	cellSentSum     = cellSent + bucketCount
	requestCells    = cellSentSum + 1
)

// The cells of an edge.
const (
	cellRequestMessages = iota
	cellResponseMessages
	cellLatency
	edgeCells = cellLatency + latencyCells
)

// The cells of a TCP series.
const (
	cellOpened = iota
	cellClosed
	cellTCPSent
	cellTCPReceived
	tcpCells
)

// codeClass divides a status into its class: 503 is of class 500.
const codeClass = 100

// What exceeds a limit is counted under these names.
var (
	otherPeer = telemetry.Peer{
		Workload: telemetry.Other, Namespace: telemetry.Other, Principal: telemetry.Other, App: telemetry.Other, Version: telemetry.Other,
		CanonicalService: telemetry.Other, CanonicalRevision: telemetry.Other, Cluster: telemetry.Other,
	}.Ref()
	otherService = telemetry.Service{Host: telemetry.Other, Name: telemetry.Other, Namespace: telemetry.Other}.Ref()
)

// Shard is one event loop's part of the counts. Only the goroutine that owns it
// may call its methods. They allocate when a series is used for the first time,
// or again after it had expired, and at no other time.
type Shard struct {
	requests table[telemetry.RequestKey]
	edges    table[telemetry.EdgeKey]
	tcp      table[telemetry.TCPKey]
}

// Request counts a finished request: how long it took from its first byte in to
// its last byte out, and the bytes received from and sent to the client.
func (s *Shard) Request(k telemetry.RequestKey, took time.Duration, received, sent uint64) {
	micros := uint64(max(0, took.Microseconds()))
	cells := s.requests.use(k)
	cells[cellDuration+microBounds.bucket(micros)].Add(1)
	cells[cellDurationSum].Add(micros)
	cells[cellReceived+byteBounds.bucket(received)].Add(1)
	cells[cellReceivedSum].Add(received)
	cells[cellSent+byteBounds.bucket(sent)].Add(1)
	cells[cellSentSum].Add(sent)
	s.edges.use(k.Edge())[cellLatency+latencyCell(micros)].Add(1)
}

// Messages counts gRPC messages since the last call for the same stream. Istio
// reports them every 5 seconds while a stream is open and once at its end.
func (s *Shard) Messages(k telemetry.EdgeKey, request, response uint64) {
	cells := s.edges.use(k)
	cells[cellRequestMessages].Add(request)
	cells[cellResponseMessages].Add(response)
}

// Opened counts a TCP connection that was accepted.
func (s *Shard) Opened(k telemetry.TCPKey) { s.tcp.use(k)[cellOpened].Add(1) }

// Transferred counts bytes of an open TCP connection since the last call for it,
// sent to and received from the client. Istio reports them every 5 seconds and
// once at the end.
func (s *Shard) Transferred(k telemetry.TCPKey, sent, received uint64) {
	cells := s.tcp.use(k)
	cells[cellTCPSent].Add(sent)
	cells[cellTCPReceived].Add(received)
}

// Closed counts a TCP connection that ended.
func (s *Shard) Closed(k telemetry.TCPKey) { s.tcp.use(k)[cellClosed].Add(1) }

// What exceeds the limit keeps its reporter and the class of its status, so that a burst of errors stays visible.

func otherRequest(k telemetry.RequestKey) telemetry.RequestKey {
	return telemetry.RequestKey{
		Source: otherPeer, Destination: otherPeer, Service: otherService,
		Reporter: k.Reporter, Code: k.Code / codeClass * codeClass,
	}
}

func otherEdge(k telemetry.EdgeKey) telemetry.EdgeKey {
	return telemetry.EdgeKey{Source: otherPeer, Destination: otherPeer, Service: otherService, Reporter: k.Reporter}
}

func otherTCP(k telemetry.TCPKey) telemetry.TCPKey {
	return telemetry.TCPKey{Source: otherPeer, Destination: otherPeer, Service: otherService, Reporter: k.Reporter}
}
