// Command load is what the pods of test/kubelife run: servers that end as well-behaved ones do, and clients that send
// requests steadily and count what becomes of them.
//
//	load serve ADDRESS [URL]            answer requests, or hand each on to a URL
//	load call ADDRESS NAME=KIND=URL...  send requests of these kinds; GET ADDRESS/report tells of them and counts anew
//
// In: flags and connections. Out: answers; a Report as JSON. It must not know the mesh. The tests read Report by the names
// of its fields.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// patience bounds a request of a client: whoever waits longer takes it for failed.
	patience = 60 * time.Second
	// kept is how long a server leaves connections open that nobody uses, when it is to end.
	kept = 2 * time.Second
	// farewell bounds the end of a server after that.
	farewell     = 10 * time.Second
	bodyMaxBytes = 1 << 20
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		return serve(ctx, args[1], answer(host))
	case len(args) == 3 && args[0] == "serve":
		return serve(ctx, args[1], handOn(args[2]))
	case len(args) > 2 && args[0] == "call":
		return call(ctx, args[1], args[2:])
	}
	return errors.New("usage: load serve ADDRESS [URL] | call ADDRESS NAME=KIND=URL, as often as wanted")
}

// serve serves HTTP/1.1 and HTTP/2 until ctx ends. Then it takes no connections any more, and leaves each that it has with an
// answer, or after a while: Shutdown by itself would close at once what is idle, while requests may be on their way to it.
func serve(ctx context.Context, address string, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	server := &http.Server{ReadHeaderTimeout: patience, Protocols: &both, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	if err := l.Close(); err != nil {
		return err
	}
	<-time.After(kept)
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	return server.Shutdown(late)
}

// answer says which host answers, and that a call of gRPC went well.
func answer(host string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, io.LimitReader(r.Body, bodyMaxBytes)); err != nil {
			return // the client has gone
		}
		w.Header().Set("Host-Name", host)
		if r.Header.Get("Content-Type") != grpcType {
			fmt.Fprintln(w, host)
			return
		}
		w.Header().Set("Content-Type", grpcType)
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(grpcMessage) // the client may have gone
		w.Header().Set("Grpc-Status", "0")
	})
}

// handOn sends each request on, as a program between two others does.
func handOn(url string) http.Handler {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next, err := http.NewRequestWithContext(r.Context(), r.Method, url, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		next.ContentLength = r.ContentLength
		response, err := client.Do(next)
		if err != nil {
			http.Error(w, "hand on: "+err.Error(), http.StatusBadGateway)
			return
		}
		defer func() { _ = response.Body.Close() }()
		w.Header().Set("Host-Name", response.Header.Get("Host-Name"))
		w.Header().Set(behindField, response.Header.Get(reasonField))
		w.WriteHeader(response.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(response.Body, bodyMaxBytes)) // the client may have gone
	})
}
