package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/test/bench/load"
	"github.com/lateen-mesh/lateen/test/world"
)

// answers waits until the ports of the peer take connections.
func answers(ctx context.Context, p *peer) error {
	for _, at := range p.ports {
		if err := takes(ctx, p.place, at.String(), nil); err != nil {
			return err
		}
	}
	return nil
}

// listens waits until a process in a place listens where its routes say, or has ended.
func listens(ctx context.Context, at *world.Place, routes []route, ended <-chan struct{}) error {
	for _, r := range routes {
		if err := takes(ctx, at, r.Listen, ended); err != nil {
			return err
		}
	}
	return nil
}

// takes waits until somebody takes connections at an address.
func takes(ctx context.Context, from *world.Place, address string, ended <-chan struct{}) error {
	deadline := time.After(patience)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		c, err := from.Dial(ctx, netip.Addr{}, address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("nobody listens at %s after %s: %w", address, patience, err)
		case <-ended:
			return errors.New("it has ended")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// check asks a peer once for each service, with a client that is not the generator, and compares the whole answer.
func (s *stage) check(ctx context.Context, p *peer, list []service) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i, v := range list {
		d := dialer{p.place, p.ports[i].String(), s.tls}
		var err error
		switch v.Kind {
		case load.ServeHTTP1:
			err = d.askHTTP(ctx, v.downstream != "HTTP", load.Body(v.Size))
		case load.ServeGRPC:
			err = d.askGRPC(ctx, load.Message(1), load.Message(v.Size))
		case load.ServeStream:
			err = d.askGRPC(ctx, load.Message(v.Size), load.Message(v.Size))
		case load.ServeEcho:
			err = d.askTCP(ctx, []byte("echo"), []byte("echo"))
		case load.ServeSource:
			err = d.askTCP(ctx, nil, load.Body(message))
		}
		if err != nil {
			return fmt.Errorf("ask %s for service %d: %w", p.name, i, err)
		}
	}
	return nil
}

// dialer connects as the load does.
type dialer struct {
	from *world.Place
	to   string
	tls  *load.TLS
}

func (d dialer) dial(ctx context.Context) (net.Conn, error) {
	c, err := d.from.Dial(ctx, netip.Addr{}, d.to)
	if err != nil || d.tls == nil {
		return c, err
	}
	config, err := d.tls.Config()
	if err != nil {
		return nil, err
	}
	return tls.Client(c, config), nil
}

func (d dialer) client(h2 bool) *http.Client {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	return &http.Client{Transport: &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx) },
	}}
}

// ask compares a whole answer and returns its trailers.
func ask(c *http.Client, req *http.Request, want []byte) (http.Header, error) {
	defer c.CloseIdleConnections()
	req.Host = load.Host
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK || !bytes.Equal(body, want) {
		return nil, fmt.Errorf("%s with %d bytes, want 200 and the service's %d: %.200q", res.Status, len(body), len(want), body)
	}
	return res.Trailer, nil
}

func (d dialer) askHTTP(ctx context.Context, h2 bool, want []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.to+"/bench", nil)
	if err != nil {
		return err
	}
	_, err = ask(d.client(h2), req, want)
	return err
}

func (d dialer) askGRPC(ctx context.Context, send, want []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.to+"/bench.Bench/Call", bytes.NewReader(send))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	trailer, err := ask(d.client(true), req, want)
	if err == nil && trailer.Get("Grpc-Status") != "0" {
		err = fmt.Errorf("grpc-status %q in %v", trailer.Get("Grpc-Status"), trailer)
	}
	return err
}

func (d dialer) askTCP(ctx context.Context, send, want []byte) (err error) {
	c, err := d.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(send); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}
