package channel

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
)

// Stream is a bidirectional stream of messages. One goroutine may Send while
// another calls Recv; Close may be called by any, at any time, and must be
// called in the end.
type Stream struct {
	ctx    context.Context
	cancel context.CancelFunc
	out    *io.PipeWriter

	// answered is closed when the server's head has arrived or the call has
	// failed; response and err may be read after it.
	answered chan struct{}
	response *http.Response
	err      error
}

// Stream begins a call of a streaming method. It returns when the request's
// head is on its way, or with an *Error if no server can be reached. The stream
// ends with the context.
func (c *Channel) Stream(ctx context.Context, method string, md Metadata) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	in, out := io.Pipe()
	s := &Stream{ctx: ctx, cancel: cancel, out: out, answered: make(chan struct{})}
	sent := make(chan struct{}, 1)
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() {
		select {
		case sent <- struct{}{}:
		default: // The request has been sent again on a new connection.
		}
	}})
	// A server may keep its head until it has a message to send, so the
	// sending must not wait for it. The goroutine ends with the call's head,
	// its failure, or Close.
	go func() {
		s.response, s.err = c.roundTrip(traced, method, in, md) //nolint:bodyclose // Close closes it.
		if s.err != nil {
			in.CloseWithError(s.err)
		}
		close(s.answered)
	}()
	select {
	case <-sent:
		return s, nil
	case <-s.answered:
	}
	if s.err != nil {
		err := transportError(ctx, s.err)
		s.Close()
		return nil, err
	}
	return s, nil
}

// Send sends a message. It blocks while the server's flow control or the
// connection holds it up. When the stream has ended it returns io.EOF, and Recv
// says why.
func (s *Stream) Send(message []byte) error {
	frame, err := frameOf(message)
	if err != nil {
		return err
	}
	if _, err := s.out.Write(frame); err != nil {
		return io.EOF
	}
	return nil
}

// CloseSend tells the server that no more messages will come.
func (s *Stream) CloseSend() { _ = s.out.Close() }

// Recv waits for a message. It returns io.EOF when the server has ended the
// stream with the status OK, and an *Error when it ended otherwise.
func (s *Stream) Recv() ([]byte, error) {
	<-s.answered
	if s.err != nil {
		return nil, transportError(s.ctx, s.err)
	}
	if err := checkHead(s.response); err != nil {
		return nil, err
	}
	message, err := readFrame(s.response.Body)
	if err == nil {
		return message, nil
	}
	if !errors.Is(err, io.EOF) {
		return nil, transportError(s.ctx, err)
	}
	if err := statusOf(s.response); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

// Close ends the stream, at once and for both sides, and frees it.
func (s *Stream) Close() {
	s.cancel()
	s.out.CloseWithError(context.Canceled)
	<-s.answered
	if s.response != nil {
		_ = s.response.Body.Close()
	}
}
