package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The kinds of requests.
const (
	kindKeep  = "keep"  // GET over HTTP/1.1 connections that are kept
	kindPost  = "post"  // POST over the same, which no client repeats by itself
	kindFresh = "fresh" // GET, each over a connection of its own
	kindGRPC  = "grpc"  // calls of gRPC over one HTTP/2 connection
)

const (
	// workers is how many requests of a name may be under way at once.
	workers = 2
	// every is how often each of them sends one.
	every       = 40 * time.Millisecond
	grpcType    = "application/grpc"
	reasonField = "X-Lateen-Reason"
	// behindField is the same, of the proxy of a program between, which no proxy takes for its own.
	behindField = "Reason-Behind"
)

// grpcMessage is an empty message of gRPC with its prefix.
var grpcMessage = make([]byte, 5)

// Report tells what became of the requests of one name since the last report.
type Report struct {
	Requests, Failures int
	Slowest            time.Duration
	// First and Last are those that failed.
	First, Last *Failure `json:",omitempty"`
	// Hosts counts the answers of each server.
	Hosts map[string]int
}

// Failure is one request that failed.
type Failure struct {
	At     time.Time
	Took   time.Duration
	Status int
	// Reason is the proxy's that answered; Text is the error or the answer's body.
	Reason, Text string
}

// tally counts the requests of one name.
type tally struct {
	mu     sync.Mutex
	report Report
}

func (t *tally) count(host string, took time.Duration, failed *Failure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := &t.report
	r.Requests++
	r.Slowest = max(r.Slowest, took)
	if r.Hosts == nil {
		r.Hosts = map[string]int{}
	}
	if failed == nil {
		r.Hosts[host]++
		return
	}
	r.Failures++
	if r.First == nil {
		r.First = failed
	}
	r.Last = failed
}

func (t *tally) take() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.report
	t.report = Report{}
	return r
}

// call sends requests of all kinds until ctx ends, and serves the reports.
func call(ctx context.Context, address string, orders []string) error {
	tallies := map[string]*tally{}
	var group sync.WaitGroup
	defer group.Wait()
	for _, order := range orders {
		name, rest, _ := strings.Cut(order, "=")
		kind, url, ok := strings.Cut(rest, "=")
		if !ok || tallies[name] != nil {
			return fmt.Errorf("%q is not NAME=KIND=URL, or has a NAME that is there already", order)
		}
		client, err := clientOf(kind)
		if err != nil {
			return err
		}
		t := &tally{}
		tallies[name] = t
		for range workers {
			group.Go(func() { send(ctx, client, kind, url, t) })
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) {
		out := map[string]Report{}
		for name, t := range tallies {
			out[name] = t.take()
		}
		_ = json.NewEncoder(w).Encode(out) // the asker may have gone
	})
	return serve(ctx, address, mux)
}

func clientOf(kind string) (*http.Client, error) {
	t := &http.Transport{MaxIdleConnsPerHost: workers}
	switch kind {
	case kindKeep, kindPost:
	case kindFresh:
		t.DisableKeepAlives = true
	case kindGRPC:
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	default:
		return nil, fmt.Errorf("%q is not a kind of requests", kind)
	}
	return &http.Client{Transport: t, Timeout: patience}, nil
}

// send sends one request after another.
func send(ctx context.Context, client *http.Client, kind, url string, t *tally) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		// One that is under way at the end is finished.
		host, failed := once(context.WithoutCancel(ctx), client, kind, url)
		took := time.Since(began)
		if failed != nil {
			failed.At, failed.Took = began, took
		}
		t.count(host, took, failed)
	}
}

// once sends a request and returns who answered it, or how it failed.
func once(ctx context.Context, client *http.Client, kind, url string) (host string, failed *Failure) {
	request, err := requestOf(ctx, kind, url)
	if err != nil {
		return "", &Failure{Text: err.Error()}
	}
	response, err := client.Do(request)
	if err != nil {
		return "", &Failure{Text: err.Error()}
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, bodyMaxBytes))
	status := response.Trailer.Get("Grpc-Status")
	if status == "" {
		status = response.Header.Get("Grpc-Status")
	}
	switch {
	case err != nil:
	case response.StatusCode != http.StatusOK:
		err = errors.New(string(text))
	case kind == kindGRPC && status != "0":
		err = fmt.Errorf("grpc-status %q: %q", status, response.Header.Get("Grpc-Message"))
	case response.Header.Get("Host-Name") == "":
		err = fmt.Errorf("an answer of somebody else: %q", text)
	default:
		return response.Header.Get("Host-Name"), nil
	}
	reason := cmp.Or(response.Header.Get(reasonField), response.Header.Get(behindField))
	return "", &Failure{Status: response.StatusCode, Reason: reason, Text: err.Error()}
}

func requestOf(ctx context.Context, kind, url string) (*http.Request, error) {
	switch kind {
	case kindPost:
		return http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("hello"))
	case kindGRPC:
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(grpcMessage))
		if err == nil {
			r.Header.Set("Content-Type", grpcType)
			r.Header.Set("Te", "trailers")
		}
		return r, err
	}
	return http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
}
