package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// session is one stream from its opening to its end.
type session struct {
	client *Client
	stream Stream
	cancel context.CancelCauseFunc
	served bool // the server has answered, or let the stream stand
}

// session opens a stream, serves it to its end and says why it ended and whether the server had served it.
func (c *Client) session(ctx context.Context, node []byte) (served bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := c.open(ctx, cancel)
	if err != nil {
		return false, fmt.Errorf("open stream to the control plane: %w", err)
	}
	s := &session{client: c, stream: stream, cancel: cancel}
	messages, broken := make(chan []byte), make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() { broken <- receive(ctx, stream, messages) })
	defer reader.Wait()
	defer stream.Close()
	defer cancel(nil)

	err = s.run(ctx, node, messages, broken)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if s.served {
		c.config.Handler.Connected(false)
	}
	return s.served, err
}

// open opens a stream within openTimeout.
func (c *Client) open(ctx context.Context, cancel context.CancelCauseFunc) (Stream, error) {
	late := time.AfterFunc(openTimeout, func() {
		cancel(fmt.Errorf("no answer within %v; is the control plane's address right and its port open?", openTimeout))
	})
	stream, err := c.config.Dialer.OpenStream(ctx, Method)
	inTime := late.Stop()
	if err == nil && !inTime {
		stream.Close()
	}
	if !inTime {
		return nil, context.Cause(ctx)
	}
	return stream, err
}

// receive passes messages on until the stream ends, and returns why it did.
func receive(ctx context.Context, stream Stream, messages chan<- []byte) error {
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case messages <- message:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run tells the server what is wanted, and takes what it answers, until the stream or the context ends.
func (s *session) run(ctx context.Context, node []byte, messages <-chan []byte, broken <-chan error) error {
	subscriptions := &s.client.subscriptions
	subscriptions.restart()
	first := node
	settled := time.NewTimer(settleTime)
	defer settled.Stop()
	for {
		for _, request := range subscriptions.pending() {
			request.node, first = first, nil
			if err := s.send(request); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broken:
			return err
		case <-subscriptions.changed:
		case <-settled.C:
			s.serve()
		case message := <-messages:
			if err := s.take(message); err != nil {
				return err
			}
		}
	}
}

// serve notes that the server serves this client.
func (s *session) serve() {
	if !s.served {
		s.served = true
		s.client.config.Handler.Connected(true)
	}
}

// take hands a response to the handler and tells the server whether it was accepted.
func (s *session) take(message []byte) error {
	c := s.client
	response, err := decodeResponse(message)
	if err != nil {
		return err
	}
	s.serve()
	refusal := response.check()
	if refusal == nil {
		if d := c.subscriptions.wanted(response); d != nil {
			refusal = c.config.Handler.Update(response.typeURL, d.added, d.removed)
			if refused, some := errors.AsType[Refused](refusal); refusal == nil || some {
				c.subscriptions.hold(response.typeURL, d, refused)
			}
		}
	}
	if refusal != nil {
		c.logger.Warn("configuration refused; the last good one stays in force",
			"type", response.typeURL, "nonce", response.nonce, "cause", refusal)
	}
	request := c.subscriptions.answer(response, refusal)
	// What the orders name is asked for before they are acknowledged: a server that has the acknowledgement knows that
	// nothing else is wanting.
	for _, wanted := range c.subscriptions.pending() {
		if err := s.send(wanted); err != nil {
			return err
		}
	}
	if request == nil {
		return nil
	}
	return s.send(request)
}

// send sends a request, and ends the session if the server does not take it within sendTimeout.
func (s *session) send(request *request) error {
	late := time.AfterFunc(sendTimeout, func() {
		s.cancel(fmt.Errorf("the control plane took no request within %v", sendTimeout))
	})
	defer late.Stop()
	if err := s.stream.Send(request.encode()); err != nil {
		return fmt.Errorf("send discovery request: %w", err)
	}
	return nil
}
