package http1

// Fault says what is wrong with a message: a closed list. It is the error that
// a Receiver gets with AbortProtocol or AbortTooLarge, and what a ServerOwner is
// told of a request that never became one.
type Fault uint8

// What can be wrong with a message that arrives, and, from FaultSendField on, with one to be sent.
const (
	faultNone Fault = iota
	// FaultRequestLine: the line is not method, space, target, space, version (RFC 9112 section 3).
	FaultRequestLine
	// FaultMethodLong: no method that anybody implements is that long.
	FaultMethodLong
	// FaultTarget: the request target is in none of the four forms, or in one that the method does not allow (section 3.2).
	FaultTarget
	// FaultStartLineLong: the request line, in practice its target, passes the limit.
	FaultStartLineLong
	// FaultVersion: neither HTTP/1.0 nor HTTP/1.1.
	FaultVersion
	// FaultStatusLine: the line is not version, space, three digits (section 4).
	FaultStatusLine
	// FaultEmptyLines: more empty lines before a request than the limit.
	FaultEmptyLines
	// FaultLineEnd: a CR without LF, or a LF without CR (section 2.2).
	FaultLineEnd
	// FaultControl: a NUL or another control character in a head (RFC 9110 section 5.5).
	FaultControl
	// FaultFold: a field line that begins with white space (section 5.2).
	FaultFold
	// FaultFieldName: a field line whose name is no token, or is not followed by a colon at once (section 5.1).
	FaultFieldName
	// FaultHeadLong: the head, the trailers or one field line passes the limit.
	FaultHeadLong
	// FaultFieldsMany: more fields than the limit.
	FaultFieldsMany
	// FaultHostMissing: an HTTP/1.1 request without Host (section 3.2).
	FaultHostMissing
	// FaultHostTwice: a request with more than one Host.
	FaultHostTwice
	// FaultHost: a Host that is no host and port.
	FaultHost
	// FaultLength: a Content-Length that is no number (section 6.3).
	FaultLength
	// FaultLengthTwice: more than one Content-Length, be they equal.
	FaultLengthTwice
	// FaultLengthLarge: a Content-Length or chunk size too large to count.
	FaultLengthLarge
	// FaultLengthAndCoding: both Content-Length and Transfer-Encoding (section 6.1).
	FaultLengthAndCoding
	// FaultCoding: a Transfer-Encoding whose last coding is not chunked, or where chunked appears otherwise than once, bare and last.
	FaultCoding
	// FaultCodingUnknown: a transfer coding before chunked.
	FaultCodingUnknown
	// FaultCodingOld: Transfer-Encoding in an HTTP/1.0 message.
	FaultCodingOld
	// FaultConnection: Connection names more fields than the limit.
	FaultConnection
	// FaultContent: a message with content that cannot have any: CONNECT, 1xx, 204.
	FaultContent
	// FaultChunk: a malformed chunk (section 7.1).
	FaultChunk
	// FaultUpgrade: a 101 response that was not asked for, or that does not name the protocol.
	FaultUpgrade
	// FaultInterims: more 1xx responses to one request than the limit.
	FaultInterims
	// FaultUnsolicited: bytes from a server that was not asked.
	FaultUnsolicited
	// FaultSendField: a field to be sent that cannot be written as one line.
	FaultSendField
	// FaultSendStart: a method, target or status to be sent that cannot be written.
	FaultSendStart
	// FaultSendLength: the body sent is longer or shorter than its head said.
	FaultSendLength
	// FaultSendHold: more was sent into a tunnel that does not stand yet than the limit.
	FaultSendHold
)

// faults gives each fault the status to answer with and its text.
var faults = [...]struct {
	status int
	text   string
}{
	faultNone:            {200, "no fault"},
	FaultRequestLine:     {400, "malformed request line"},
	FaultMethodLong:      {501, "method too long"},
	FaultTarget:          {400, "invalid request target"},
	FaultStartLineLong:   {414, "request target too long"},
	FaultVersion:         {505, "HTTP version not supported"},
	FaultStatusLine:      {400, "malformed status line"},
	FaultEmptyLines:      {400, "too many empty lines before the request"},
	FaultLineEnd:         {400, "line does not end in CR LF"},
	FaultControl:         {400, "control character in head"},
	FaultFold:            {400, "folded field line"},
	FaultFieldName:       {400, "invalid field name"},
	FaultHeadLong:        {431, "head too large"},
	FaultFieldsMany:      {431, "too many fields"},
	FaultHostMissing:     {400, "missing Host"},
	FaultHostTwice:       {400, "more than one Host"},
	FaultHost:            {400, "invalid Host"},
	FaultLength:          {400, "invalid Content-Length"},
	FaultLengthTwice:     {400, "more than one Content-Length"},
	FaultLengthLarge:     {413, "content too large"},
	FaultLengthAndCoding: {400, "both Content-Length and Transfer-Encoding"},
	FaultCoding:          {400, "invalid Transfer-Encoding"},
	FaultCodingUnknown:   {501, "transfer coding not supported"},
	FaultCodingOld:       {400, "Transfer-Encoding in HTTP/1.0"},
	FaultConnection:      {400, "too many connection options"},
	FaultContent:         {400, "content not allowed"},
	FaultChunk:           {400, "malformed chunk"},
	FaultUpgrade:         {400, "protocol switch that was not asked for"},
	FaultInterims:        {400, "too many interim responses"},
	FaultUnsolicited:     {400, "bytes without a request"},
	FaultSendField:       {500, "field cannot be written"},
	FaultSendStart:       {500, "start line cannot be written"},
	FaultSendLength:      {500, "body does not have the declared length"},
	FaultSendHold:        {500, "too much sent before the tunnel stands"},
}

// Error says what is wrong.
func (f Fault) Error() string { return faults[f].text }

// Status is the status code with which to answer a request that has the fault:
// 400, 413, 414, 431, 501 or 505. For a fault of a response, answer 502 instead.
func (f Fault) Status() int { return faults[f].status }

// reasonPhrase is the phrase of a status code in the IANA registry; empty if it has none (RFC 9112 section 4).
func reasonPhrase(status int) string {
	if i := status - 100; i >= 0 && i < len(reasons) {
		return reasons[i]
	}
	return ""
}

var reasons = [...]string{
	0: "Continue", 1: "Switching Protocols", 2: "Processing", 3: "Early Hints",
	100: "OK", 101: "Created", 102: "Accepted", 103: "Non-Authoritative Information", 104: "No Content",
	105: "Reset Content", 106: "Partial Content", 107: "Multi-Status", 108: "Already Reported", 126: "IM Used",
	200: "Multiple Choices", 201: "Moved Permanently", 202: "Found", 203: "See Other", 204: "Not Modified",
	205: "Use Proxy", 207: "Temporary Redirect", 208: "Permanent Redirect",
	300: "Bad Request", 301: "Unauthorized", 302: "Payment Required", 303: "Forbidden", 304: "Not Found",
	305: "Method Not Allowed", 306: "Not Acceptable", 307: "Proxy Authentication Required", 308: "Request Timeout",
	309: "Conflict", 310: "Gone", 311: "Length Required", 312: "Precondition Failed", 313: "Content Too Large",
	314: "URI Too Long", 315: "Unsupported Media Type", 316: "Range Not Satisfiable", 317: "Expectation Failed",
	321: "Misdirected Request", 322: "Unprocessable Content", 323: "Locked", 324: "Failed Dependency",
	325: "Too Early", 326: "Upgrade Required", 328: "Precondition Required", 329: "Too Many Requests",
	331: "Request Header Fields Too Large", 351: "Unavailable For Legal Reasons",
	400: "Internal Server Error", 401: "Not Implemented", 402: "Bad Gateway", 403: "Service Unavailable",
	404: "Gateway Timeout", 405: "HTTP Version Not Supported", 406: "Variant Also Negotiates",
	407: "Insufficient Storage", 408: "Loop Detected", 411: "Network Authentication Required",
}
