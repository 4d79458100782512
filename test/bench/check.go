package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/lateen-mesh/lateen/test/bench/load"
)

// answers waits until a port of the peer takes connections.
func answers(ctx context.Context, p *peer) error {
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for _, at := range p.ports {
		for {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at.String())
			if err == nil {
				_ = c.Close()
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("nobody listens at %s after %s: %w", at, patience, err)
			}
			select {
			case <-tick.C:
			case <-p.ended:
				return errors.New("it has ended")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// check asks a peer once for each service, with a client that is not the generator, and compares the whole answer.
func (p *peer) check(ctx context.Context, list []service) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i, v := range list {
		var err error
		switch {
		case v.Kind == load.ServeHTTP1:
			err = askHTTP(ctx, p.ports[i], v.downstream != "HTTP", load.Body(v.Size))
		case v.Kind == load.ServeGRPC:
			err = askGRPC(ctx, p.ports[i], load.Message(1), load.Message(v.Size))
		case v.Kind == load.ServeStream:
			err = askGRPC(ctx, p.ports[i], load.Message(v.Size), load.Message(v.Size))
		case v.Kind == load.ServeEcho:
			err = askTCP(ctx, p.ports[i], []byte("echo"), []byte("echo"))
		case v.Kind == load.ServeSource:
			err = askTCP(ctx, p.ports[i], nil, load.Body(message))
		}
		if err != nil {
			return fmt.Errorf("ask %s for service %d: %w", p.name, i, err)
		}
	}
	return nil
}

func client(h2 bool) *http.Client {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	return &http.Client{Transport: &http.Transport{Protocols: protocols, DisableCompression: true}}
}

func ask(c *http.Client, req *http.Request, want []byte) (*http.Response, error) {
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
	return res, nil
}

func askHTTP(ctx context.Context, at netip.AddrPort, h2 bool, want []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/bench", nil)
	if err != nil {
		return err
	}
	_, err = ask(client(h2), req, want)
	return err
}

func askGRPC(ctx context.Context, at netip.AddrPort, send, want []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+at.String()+"/bench.Bench/Call", bytes.NewReader(send))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	res, err := ask(client(true), req, want)
	if err == nil && res.Trailer.Get("Grpc-Status") != "0" {
		err = fmt.Errorf("grpc-status %q in %v", res.Trailer.Get("Grpc-Status"), res.Trailer)
	}
	return err
}

func askTCP(ctx context.Context, at netip.AddrPort, send, want []byte) (err error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at.String())
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
