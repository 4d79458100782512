package accesslog

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"time"
)

// operator is a compiled command operator.
type operator struct {
	class class
	field field
	form  form
	// headers are those to look for, in turn (classHeader).
	headers [2]string
	// clock is the compiled time format (classTime).
	clock []clockPart
	// fixed is the value of classFixed, or the parameter of classQuery.
	fixed string
	// mask is the prefix length of formMasked.
	mask int
	// maxBytes truncates the value; 0 does not.
	maxBytes int
}

// class says how an operator's value is found and written.
type class uint8

const (
	// classNone: no operator.
	classNone class = iota
	// classNumber: an unsigned number of the Entry.
	classNumber
	// classDuration: a duration in milliseconds.
	classDuration
	// classText: a string of the Entry.
	classText
	// classAddress: an address.
	classAddress
	// classID: a trace or span id.
	classID
	// classTime: a point in time.
	classTime
	// classHeader: a header, or the property that has a pseudo-header's name.
	classHeader
	// classPath: the path, with or without its query.
	classPath
	// classQuery: one parameter of the query.
	classQuery
	// classFlags: response flags.
	classFlags
	// classDetails: response code details.
	classDetails
	// classGRPC: the gRPC status.
	classGRPC
	// classFixed: text that is known when the format is compiled.
	classFixed
)

// field is a field of Entry, or one of the three sets of headers.
type field uint8

const (
	// Numbers.
	fieldStatus field = iota + 1
	fieldBytesReceived
	fieldBytesSent
	fieldRequestHeaderBytes
	fieldResponseHeaderBytes
	fieldResponseTrailerBytes
	fieldDownstreamWireReceived
	fieldDownstreamWireSent
	fieldUpstreamWireReceived
	fieldUpstreamWireSent
	fieldAttempts
	fieldConnectionID
	fieldUpstreamConnectionID
	// Durations.
	fieldDuration
	fieldRequestDuration
	fieldRequestTxDuration
	fieldResponseDuration
	fieldResponseTxDuration
	// Texts.
	fieldProtocol
	fieldUpstreamProtocol
	fieldReason
	fieldDecider
	fieldTermination
	fieldUpstreamFailure
	fieldDownstreamFailure
	fieldUpstreamCluster
	fieldRoute
	fieldFilterChain
	fieldServerName
	fieldDownstreamPeerURI
	fieldDownstreamLocalURI
	fieldDownstreamTLSVersion
	fieldDownstreamTLSCipher
	fieldUpstreamPeerURI
	fieldUpstreamLocalURI
	fieldUpstreamTLSVersion
	fieldUpstreamTLSCipher
	fieldLogType
	// Addresses.
	fieldUpstreamHost
	fieldUpstreamRemote
	fieldUpstreamLocal
	fieldDownstreamRemote
	fieldDownstreamDirect
	fieldDownstreamLocal
	fieldDownstreamDirectLocal
	// IDs.
	fieldTraceID
	fieldSpanID
	// Times.
	fieldStart
	fieldEmit
	// Headers.
	fieldRequest
	fieldResponse
	fieldTrailers
)

// form says in which form a value is written.
type form uint8

const (
	formFull form = iota
	// Addresses.
	formWithoutPort
	formMasked
	formPort
	// Flags.
	formLong
	// gRPC status.
	formCamel
	formSnake
	formNumber
	// Times.
	formLocal
	// Headers and paths.
	formWithoutQuery
	// Paths: formFull takes the original path if there is one.
	formPathOnly
	formOriginalOnly
	formWithoutQueryPathOnly
	formWithoutQueryOriginalOnly
	// Texts and details: white space becomes '_'.
	formUnderscore
)

// foreign reports whether the value may hold bytes that must be escaped. What is between a time's parts is the format's
// own, so in a bare column its spaces are meant.
func (o *operator) foreign(x escape) bool {
	switch o.class {
	case classText, classHeader, classPath, classQuery, classFixed, classDetails:
		return true
	case classTime:
		return x != escapeBare
	default:
		return false
	}
}

// numeric reports whether the value is a JSON number.
func (o *operator) numeric() bool {
	switch o.class {
	case classNumber, classDuration:
		return true
	case classGRPC:
		return o.form == formNumber
	case classAddress:
		return o.form == formPort
	default:
		return false
	}
}

// append appends the value as it is, or nothing if there is none.
func (o *operator) append(dst []byte, e *Entry) []byte {
	switch o.class {
	case classNumber:
		return strconv.AppendUint(dst, e.number(o.field), 10)
	case classDuration:
		d, ok := e.duration(o.field)
		if !ok {
			return dst
		}
		return strconv.AppendInt(dst, d.Milliseconds(), 10)
	case classText:
		start := len(dst)
		dst = append(dst, e.text(o.field)...)
		if o.form == formUnderscore {
			underscore(dst[start:])
		}
		return dst
	case classAddress:
		return o.appendAddress(dst, e.address(o.field))
	case classID:
		return e.appendID(dst, o.field)
	case classTime:
		return o.appendTime(dst, e)
	case classHeader:
		return o.appendHeader(dst, e)
	case classPath:
		return o.appendPath(dst, e)
	case classQuery:
		return appendParameter(dst, e.Path, o.fixed)
	case classFlags:
		if o.form == formLong {
			return e.Flags.AppendLong(dst)
		}
		return e.Flags.Append(dst)
	case classDetails:
		return o.appendDetails(dst, e)
	case classGRPC:
		return o.appendGRPC(dst, e)
	case classFixed:
		return append(dst, o.fixed...)
	default:
		return dst
	}
}

func (e *Entry) number(f field) uint64 {
	switch f {
	case fieldStatus:
		return uint64(e.Status)
	case fieldBytesReceived:
		return e.BytesReceived
	case fieldBytesSent:
		return e.BytesSent
	case fieldRequestHeaderBytes:
		return e.RequestHeaderBytes
	case fieldResponseHeaderBytes:
		return e.ResponseHeaderBytes
	case fieldResponseTrailerBytes:
		return e.ResponseTrailerBytes
	case fieldDownstreamWireReceived:
		return e.DownstreamWireReceived
	case fieldDownstreamWireSent:
		return e.DownstreamWireSent
	case fieldUpstreamWireReceived:
		return e.UpstreamWireReceived
	case fieldUpstreamWireSent:
		return e.UpstreamWireSent
	case fieldAttempts:
		return e.Attempts
	case fieldConnectionID:
		return e.ConnectionID
	case fieldUpstreamConnectionID:
		return e.UpstreamConnectionID
	default:
		return 0
	}
}

// duration reports false for what did not happen. The whole duration always did.
func (e *Entry) duration(f field) (time.Duration, bool) {
	switch f {
	case fieldDuration:
		return e.Duration, true
	case fieldRequestDuration:
		return e.RequestDuration, e.RequestDuration > 0
	case fieldRequestTxDuration:
		return e.RequestTxDuration, e.RequestTxDuration > 0
	case fieldResponseDuration:
		return e.ResponseDuration, e.ResponseDuration > 0
	case fieldResponseTxDuration:
		return e.Duration - e.ResponseDuration, e.ResponseDuration > 0
	default:
		return 0, false
	}
}

func (e *Entry) text(f field) string {
	switch f {
	case fieldProtocol:
		return e.Protocol
	case fieldUpstreamProtocol:
		return e.UpstreamProtocol
	case fieldReason:
		return e.Reason.String()
	case fieldDecider:
		return e.Decider
	case fieldTermination:
		return e.Termination
	case fieldUpstreamFailure:
		return e.UpstreamFailure
	case fieldDownstreamFailure:
		return e.DownstreamFailure
	case fieldUpstreamCluster:
		return e.UpstreamCluster
	case fieldRoute:
		return e.Route
	case fieldFilterChain:
		return e.FilterChain
	case fieldServerName:
		return e.ServerName
	case fieldLogType:
		return e.LogType
	default:
		return e.tls(f)
	}
}

func (e *Entry) tls(f field) string {
	switch f {
	case fieldDownstreamPeerURI:
		return e.DownstreamPeerURI
	case fieldDownstreamLocalURI:
		return e.DownstreamLocalURI
	case fieldDownstreamTLSVersion:
		return e.DownstreamTLSVersion
	case fieldDownstreamTLSCipher:
		return e.DownstreamTLSCipher
	case fieldUpstreamPeerURI:
		return e.UpstreamPeerURI
	case fieldUpstreamLocalURI:
		return e.UpstreamLocalURI
	case fieldUpstreamTLSVersion:
		return e.UpstreamTLSVersion
	case fieldUpstreamTLSCipher:
		return e.UpstreamTLSCipher
	default:
		return ""
	}
}

func (e *Entry) address(f field) netip.AddrPort {
	switch f {
	case fieldUpstreamHost:
		return e.UpstreamHost
	case fieldUpstreamRemote:
		return e.UpstreamRemote
	case fieldUpstreamLocal:
		return e.UpstreamLocal
	case fieldDownstreamRemote:
		return e.DownstreamRemote
	case fieldDownstreamDirect:
		return e.DownstreamDirect
	case fieldDownstreamLocal:
		return e.DownstreamLocal
	case fieldDownstreamDirectLocal:
		return e.DownstreamDirectLocal
	default:
		return netip.AddrPort{}
	}
}

func (o *operator) appendAddress(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return dst
	}
	switch o.form {
	case formWithoutPort:
		return a.Addr().WithZone("").AppendTo(dst)
	case formMasked:
		return netip.PrefixFrom(a.Addr(), min(o.mask, a.Addr().BitLen())).Masked().AppendTo(dst)
	case formPort:
		return strconv.AppendUint(dst, uint64(a.Port()), 10)
	default:
		// A zone is the name of one of our own interfaces: of no use in a log, and free text.
		return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port()).AppendTo(dst)
	}
}

func (e *Entry) appendID(dst []byte, f field) []byte {
	switch {
	case f == fieldTraceID && e.TraceID != [16]byte{}:
		return hex.AppendEncode(dst, e.TraceID[:])
	case f == fieldSpanID && e.SpanID != [8]byte{}:
		return hex.AppendEncode(dst, e.SpanID[:])
	default:
		return dst
	}
}

func (o *operator) appendTime(dst []byte, e *Entry) []byte {
	t := e.Start
	if o.field == fieldEmit {
		t = t.Add(e.Duration)
	}
	if o.form == formLocal {
		t = t.Local()
	} else {
		t = t.UTC()
	}
	return appendClock(dst, o.clock, t)
}

func (o *operator) appendDetails(dst []byte, e *Entry) []byte {
	if e.Protocol == "" || e.Status == 0 && e.Reason == 0 {
		return dst // TCP, or nothing was answered and nobody knows why
	}
	return e.Reason.AppendDetails(dst, e.Particular)
}

func (o *operator) appendGRPC(dst []byte, e *Entry) []byte {
	name := e.GRPC.Name()
	switch {
	case name == "":
		return dst
	case o.form == formNumber:
		return strconv.AppendInt(dst, int64(e.GRPC.Code()), 10)
	case o.form == formSnake:
		for i := range len(name) {
			c := name[i]
			if 'a' <= c && c <= 'z' {
				c -= 'a' - 'A'
			} else if i > 0 && name != "OK" {
				dst = append(dst, '_')
			}
			dst = append(dst, c)
		}
		return dst
	default:
		return append(dst, name...)
	}
}

func underscore(p []byte) {
	for i, c := range p {
		if c <= ' ' {
			p[i] = '_'
		}
	}
}
