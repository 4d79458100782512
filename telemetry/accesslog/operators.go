package accesslog

// parameter says what an operator takes in parentheses.
type parameter uint8

const (
	parameterNone parameter = iota
	// parameterHeader: X or X?Y, required.
	parameterHeader
	// parameterName: a name, required.
	parameterName
	// parameterTime: a time format, optional.
	parameterTime
	// parameterMask: the length of an address prefix, optional.
	parameterMask
	// parameterGRPC: CAMEL_STRING, SNAKE_STRING or NUMBER, optional.
	parameterGRPC
	// parameterPath: WQ or NQ and the source, optional.
	parameterPath
	// parameterSpaces: ALLOW_WHITESPACES, optional.
	parameterSpaces
	// parameterServerName: SNI_ONLY, optional.
	parameterServerName
)

// spec describes an operator before it has its parameter.
type spec struct {
	op        operator
	parameter parameter
	truncates bool
}

func number(f field) spec   { return spec{op: operator{class: classNumber, field: f}} }
func duration(f field) spec { return spec{op: operator{class: classDuration, field: f}} }
func text(f field) spec     { return spec{op: operator{class: classText, field: f}} }
func underscored(f field) spec {
	return spec{op: operator{class: classText, field: f, form: formUnderscore}}
}
func id(f field) spec { return spec{op: operator{class: classID, field: f}} }

func address(f field, x form) spec {
	s := spec{op: operator{class: classAddress, field: f, form: x}}
	if x == formWithoutPort {
		s.parameter = parameterMask
	}
	return s
}

func moment(f field, x form) spec {
	return spec{op: operator{class: classTime, field: f, form: x}, parameter: parameterTime}
}

func header(f field, x form) spec {
	return spec{op: operator{class: classHeader, field: f, form: x}, parameter: parameterHeader, truncates: true}
}

// specs are the operators that are supported, by name. Meanings are Envoy's
// (advanced configuration, substitution formatter); LATEEN_REASON and
// LATEEN_DECIDED_BY are our own: the Reason's word, and the object that decided.
var specs = map[string]spec{
	"START_TIME":       moment(fieldStart, formFull),
	"START_TIME_LOCAL": moment(fieldStart, formLocal),
	"EMIT_TIME":        moment(fieldEmit, formFull),
	"EMIT_TIME_LOCAL":  moment(fieldEmit, formLocal),

	"REQ":                header(fieldRequest, formFull),
	"REQUEST_HEADER":     header(fieldRequest, formFull),
	"REQ_WITHOUT_QUERY":  header(fieldRequest, formWithoutQuery),
	"RESP":               header(fieldResponse, formFull),
	"RESPONSE_HEADER":    header(fieldResponse, formFull),
	"TRAILER":            header(fieldTrailers, formFull),
	"RESPONSE_TRAILER":   header(fieldTrailers, formFull),
	"PATH":               {op: operator{class: classPath}, parameter: parameterPath, truncates: true},
	"QUERY_PARAM":        {op: operator{class: classQuery}, parameter: parameterName, truncates: true},
	"PROTOCOL":           text(fieldProtocol),
	"UPSTREAM_PROTOCOL":  text(fieldUpstreamProtocol),
	"GRPC_STATUS":        {op: operator{class: classGRPC, form: formCamel}, parameter: parameterGRPC},
	"GRPC_STATUS_NUMBER": {op: operator{class: classGRPC, form: formNumber}},

	"RESPONSE_CODE":                       number(fieldStatus),
	"RESPONSE_CODE_DETAILS":               {op: operator{class: classDetails}, parameter: parameterSpaces},
	"RESPONSE_FLAGS":                      {op: operator{class: classFlags}},
	"RESPONSE_FLAGS_LONG":                 {op: operator{class: classFlags, form: formLong}},
	"LATEEN_REASON":                       text(fieldReason),
	"LATEEN_DECIDED_BY":                   text(fieldDecider),
	"CONNECTION_TERMINATION_DETAILS":      underscored(fieldTermination),
	"UPSTREAM_TRANSPORT_FAILURE_REASON":   underscored(fieldUpstreamFailure),
	"DOWNSTREAM_TRANSPORT_FAILURE_REASON": underscored(fieldDownstreamFailure),

	"BYTES_RECEIVED":                 number(fieldBytesReceived),
	"BYTES_SENT":                     number(fieldBytesSent),
	"REQUEST_HEADERS_BYTES":          number(fieldRequestHeaderBytes),
	"RESPONSE_HEADERS_BYTES":         number(fieldResponseHeaderBytes),
	"RESPONSE_TRAILERS_BYTES":        number(fieldResponseTrailerBytes),
	"DOWNSTREAM_WIRE_BYTES_RECEIVED": number(fieldDownstreamWireReceived),
	"DOWNSTREAM_WIRE_BYTES_SENT":     number(fieldDownstreamWireSent),
	"UPSTREAM_WIRE_BYTES_RECEIVED":   number(fieldUpstreamWireReceived),
	"UPSTREAM_WIRE_BYTES_SENT":       number(fieldUpstreamWireSent),
	"UPSTREAM_REQUEST_ATTEMPT_COUNT": number(fieldAttempts),
	"CONNECTION_ID":                  number(fieldConnectionID),
	"UPSTREAM_CONNECTION_ID":         number(fieldUpstreamConnectionID),

	"DURATION":             duration(fieldDuration),
	"REQUEST_DURATION":     duration(fieldRequestDuration),
	"REQUEST_TX_DURATION":  duration(fieldRequestTxDuration),
	"RESPONSE_DURATION":    duration(fieldResponseDuration),
	"RESPONSE_TX_DURATION": duration(fieldResponseTxDuration),

	"UPSTREAM_HOST":                                 address(fieldUpstreamHost, formFull),
	"UPSTREAM_REMOTE_ADDRESS":                       address(fieldUpstreamRemote, formFull),
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":          address(fieldUpstreamRemote, formWithoutPort),
	"UPSTREAM_REMOTE_PORT":                          address(fieldUpstreamRemote, formPort),
	"UPSTREAM_LOCAL_ADDRESS":                        address(fieldUpstreamLocal, formFull),
	"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":           address(fieldUpstreamLocal, formWithoutPort),
	"UPSTREAM_LOCAL_PORT":                           address(fieldUpstreamLocal, formPort),
	"DOWNSTREAM_REMOTE_ADDRESS":                     address(fieldDownstreamRemote, formFull),
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        address(fieldDownstreamRemote, formWithoutPort),
	"DOWNSTREAM_REMOTE_PORT":                        address(fieldDownstreamRemote, formPort),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              address(fieldDownstreamDirect, formFull),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": address(fieldDownstreamDirect, formWithoutPort),
	"DOWNSTREAM_DIRECT_REMOTE_PORT":                 address(fieldDownstreamDirect, formPort),
	"DOWNSTREAM_LOCAL_ADDRESS":                      address(fieldDownstreamLocal, formFull),
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         address(fieldDownstreamLocal, formWithoutPort),
	"DOWNSTREAM_LOCAL_PORT":                         address(fieldDownstreamLocal, formPort),
	"DOWNSTREAM_DIRECT_LOCAL_ADDRESS":               address(fieldDownstreamDirectLocal, formFull),
	"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT":  address(fieldDownstreamDirectLocal, formWithoutPort),
	"DOWNSTREAM_DIRECT_LOCAL_PORT":                  address(fieldDownstreamDirectLocal, formPort),

	"UPSTREAM_CLUSTER":      text(fieldUpstreamCluster),
	"UPSTREAM_CLUSTER_RAW":  text(fieldUpstreamCluster),
	"ROUTE_NAME":            text(fieldRoute),
	"FILTER_CHAIN_NAME":     text(fieldFilterChain),
	"REQUESTED_SERVER_NAME": {op: operator{class: classText, field: fieldServerName}, parameter: parameterServerName},

	"DOWNSTREAM_PEER_URI_SAN":  text(fieldDownstreamPeerURI),
	"DOWNSTREAM_LOCAL_URI_SAN": text(fieldDownstreamLocalURI),
	"DOWNSTREAM_TLS_VERSION":   text(fieldDownstreamTLSVersion),
	"DOWNSTREAM_TLS_CIPHER":    text(fieldDownstreamTLSCipher),
	"UPSTREAM_PEER_URI_SAN":    text(fieldUpstreamPeerURI),
	"UPSTREAM_LOCAL_URI_SAN":   text(fieldUpstreamLocalURI),
	"UPSTREAM_TLS_VERSION":     text(fieldUpstreamTLSVersion),
	"UPSTREAM_TLS_CIPHER":      text(fieldUpstreamTLSCipher),

	"TRACE_ID":        id(fieldTraceID),
	"SPAN_ID":         id(fieldSpanID),
	"ACCESS_LOG_TYPE": text(fieldLogType),
	"HOSTNAME":        {op: operator{class: classFixed}},
	"ENVIRONMENT":     {op: operator{class: classFixed}, parameter: parameterName, truncates: true},
}

func lookup(name string) (spec, bool) {
	s, ok := specs[name]
	return s, ok
}

// isUnfilled reports whether Envoy has an operator of that name, so that the error can say so.
func isUnfilled(name string) bool {
	switch name {
	case "DYNAMIC_METADATA", "CLUSTER_METADATA", "UPSTREAM_METADATA", "METADATA", "FILTER_STATE", "UPSTREAM_FILTER_STATE", "CEL", "TYPED_CEL",
		"COALESCE", "COMMON_DURATION", "VIRTUAL_CLUSTER_NAME", "UPSTREAM_HOST_NAME", "UPSTREAM_HOSTS_ATTEMPTED", "LOCAL_REPLY_BODY", "STREAM_ID",
		"UNIQUE_ID", "CUSTOM_FLAGS", "QUERY_PARAMS", "DOWNSTREAM_PEER_SUBJECT", "DOWNSTREAM_PEER_CERT", "DOWNSTREAM_PEER_FINGERPRINT_256",
		"DOWNSTREAM_PEER_DNS_SAN", "TLS_JA3_FINGERPRINT", "TLS_JA4_FINGERPRINT", "UPSTREAM_PEER_SUBJECT", "UPSTREAM_PEER_CERT":
		return true
	default:
		return false
	}
}
