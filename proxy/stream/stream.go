package stream

// Abort says why one side of an exchange ended before its message was complete.
type Abort uint8

// The closed list of ways in which a message is cut short.
const (
	// AbortNone is the zero value: nothing was cut short.
	AbortNone Abort = iota
	// AbortClosed: the peer closed the connection in the middle of a message.
	AbortClosed
	// AbortReset: the peer reset the stream or the connection.
	AbortReset
	// AbortRefused: the peer refused the stream before doing any work (HTTP/2 REFUSED_STREAM, GOAWAY above our stream), so
	// that it is safe to send again; or the connection of HTTP/1 ended before a byte of the response, so that it may be.
	AbortRefused
	// AbortProtocol: what arrived is not valid HTTP.
	AbortProtocol
	// AbortTooLarge: a limit on heads or bodies was passed.
	AbortTooLarge
	// AbortTimeout: a deadline of ours passed.
	AbortTimeout
	// AbortLocal: our own side gave up.
	AbortLocal
)

var abortNames = [...]string{"none", "closed", "reset", "refused", "protocol", "too large", "timeout", "local"}

// String returns the abort's name in lower case.
func (a Abort) String() string {
	if int(a) < len(abortNames) {
		return abortNames[a]
	}
	return "unknown"
}

// Receiver is told what arrives on one side of an exchange, always on that
// connection's loop and always in this order: OnHead (once; before it, on the
// client side, any number of OnInterim), OnData*, then either a call with end
// set, OnTrailers, or OnAbort. After the end or an abort nothing more is called.
// Slices and heads are valid only during the call.
type Receiver interface {
	// OnHead delivers the request or the final response head. end: no body and no trailers follow.
	OnHead(h *Head, end bool)
	// OnInterim delivers a 1xx response other than 101 (client side only).
	OnInterim(h *Head)
	// OnData delivers body bytes as they arrive, already freed of any transfer coding.
	OnData(p []byte, end bool)
	// OnTrailers delivers the trailers and ends the message.
	OnTrailers(h *Head)
	// OnAbort ends the message before it was complete.
	OnAbort(why Abort, err error)
	// OnDrain says that a Sender that was Full has room again.
	OnDrain()
}

// Sender writes one side's outgoing message of an exchange and steers its
// incoming one. A server connection hands one out with each request, a client
// connection returns one for each request that it opens. All methods are called
// on the connection's loop; calls after the end of the message or after an
// abort are ignored.
type Sender interface {
	// SendInterim writes a 1xx response (server side only).
	SendInterim(h *Head)
	// SendHead writes the head. end: neither body nor trailers follow.
	SendHead(h *Head, end bool)
	// SendData writes body bytes; they are copied or written before it returns.
	SendData(p []byte, end bool)
	// SendTrailers writes trailers and ends the message.
	SendTrailers(h *Head)
	// Reset gives the exchange up, in both directions: an HTTP/2 stream is reset, an HTTP/1 connection closed.
	// The Receiver is not called any more.
	Reset(why Abort)
	// Full reports that more is waiting to be written than the low-water mark allows; the caller stops reading
	// from where it gets the data until OnDrain.
	Full() bool
	// Pause stops the delivery of incoming data of this exchange (an HTTP/2 stream's window is not renewed;
	// an HTTP/1 connection is not read). Data already read may still be delivered once.
	Pause()
	// Resume undoes Pause.
	Resume()
	// Release says that nothing of the Sender will be called any more, so that it may serve another exchange once what is
	// under way here is over. Nothing is ended by it: an exchange whose message is not complete is Reset before. A Sender
	// that is not released is left to the garbage collector.
	Release()
}

// Server is asked for a Receiver by a server connection when a request begins.
type Server interface {
	// Accept is called once per request, before its head is delivered.
	Accept(s Sender) Receiver
}
