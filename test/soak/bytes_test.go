package soak

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// bytesPlayer sends and receives bytes, each way ending by itself, on a connection for each exchange.
type bytesPlayer struct {
	r     *rig
	v     *via
	greet bool // the server speaks first
	tls   bool // over TLS of the client's own
}

func (p *bytesPlayer) close() {}

func (p *bytesPlayer) play(ctx context.Context, w *worker) {
	o := w.order(endClose, endReset, endWaiting, endCut, endCrash)
	o.Mode = modeEarly
	f := &facts{}
	c, err := p.r.dial(ctx, p.v)
	if err == nil {
		f.local = c.LocalAddr().String()
		err = p.exchange(ctx, c, o)
		_ = c.Close()
	}
	w.end(o, f, err)
}

func (p *bytesPlayer) exchange(ctx context.Context, c net.Conn, o *order) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if p.tls {
		t := tls.Client(c, &tls.Config{ServerName: p.v.host, RootCAs: p.r.certs.pool})
		if err := t.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("shake hands: %w", err)
		}
		c = t
	}
	br := bufio.NewReaderSize(c, pieceMax)
	if p.greet {
		line := make([]byte, len(greeting))
		if _, err := io.ReadFull(br, line); err != nil {
			return fmt.Errorf("read the greeting: %w", err)
		}
		if string(line) != greeting {
			return wrong("the greeting is %q", line)
		}
	}
	return talk(ctx, c, br, o, true)
}

// talk sends an order on a connection and then both sends and receives the bytes that it names. With half, each way
// ends by itself.
func talk(ctx context.Context, c net.Conn, br *bufio.Reader, o *order, half bool) error {
	sent := make(chan error, 1)
	go func() {
		sent <- say(ctx, c, o, half)
	}()
	err := listen(ctx, c, br, o)
	if err != nil && !isShort(err) {
		_ = c.Close() // ends the sending
	}
	serr := <-sent
	switch {
	case serr != nil && !isWrong(err):
		return errors.Join(err, fmt.Errorf("send: %w", serr)) // who writes may be told of a reset in the reader's place
	case isShort(err) && o.End == endCrash:
		return wrong("after the backend's reset the answer %v", err)
	}
	return err
}

func say(ctx context.Context, c net.Conn, o *order, half bool) error {
	if _, err := fmt.Fprintf(c, "%s\n", o); err != nil {
		return err
	}
	n := o.Up
	if o.End == endClose || o.End == endReset {
		n = o.UpAt
	}
	if err := send(ctx, c, o.seedUp(), n, newPace(o, 1)); err != nil {
		return err
	}
	switch {
	case o.End == endClose:
		return c.Close()
	case o.End == endReset:
		reset(c)
	case half:
		return closeWrite(c)
	}
	return nil
}

func listen(ctx context.Context, c net.Conn, br *bufio.Reader, o *order) error {
	line, err := br.ReadString('\n')
	if err != nil {
		return fmt.Errorf("read the answer's ID: %w", err)
	}
	if line != fmt.Sprintf("%016x\n", o.ID) {
		return wrong("the answer is that to %q", line)
	}
	_, err = receive(ctx, leaving{br, o, new(int)}, o.seedDown(), o.Down, true, newPace(o, 2))
	if errors.Is(err, errLeft) {
		_ = c.Close()
	}
	return err
}
