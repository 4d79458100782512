// Command peer is what the pods of test/kubeadopt run.
//
//	peer serve ADDRESS            answer HTTP requests with this host's name; GET /seen counts those before it, by path
//	peer relay ADDRESS URL        hand each HTTP request on, header and all
//	peer greet ADDRESS...         speak first, as a server of MySQL does, and then send back what comes
//	peer get [--quit] URL         send one request at once, and no second one; --quit ends the proxy beside, too
//	peer last URL                 at SIGTERM send one request, and end with its success
//	peer hello ADDRESS DURATION   connect, wait silently for the greeting, and have a word sent back, all within this time
//
// In: flags, connections and signals. Out: answers, and for clients the exit code. It must not know the mesh, but for --quit,
// which is what Istio's users put into their Jobs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

const (
	// patience bounds what a client does.
	patience = 30 * time.Second
	// farewell bounds the end of a server.
	farewell     = 15 * time.Second
	bodyMaxBytes = 1 << 20
	// maxPaths bounds what is counted.
	maxPaths = 1000
	// proxyEnd is where the proxy of a pod is told to end.
	proxyEnd = "http://127.0.0.1:15020/quitquitquit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("usage: peer serve|relay|greet|get|last|hello ADDRESS or URL")
	}
	switch order, rest := args[0], args[1:]; {
	case order == "serve" && len(rest) == 1:
		return serve(ctx, rest[0], answer())
	case order == "relay" && len(rest) == 2:
		return serve(ctx, rest[0], relay(rest[1]))
	case order == "greet":
		return greet(ctx, rest)
	case order == "get" && len(rest) == 1:
		return get(ctx, http.MethodGet, rest[0])
	case order == "get" && len(rest) == 2 && rest[0] == "--quit":
		return errors.Join(get(ctx, http.MethodGet, rest[1]), get(ctx, http.MethodPost, proxyEnd))
	case order == "last" && len(rest) == 1:
		<-ctx.Done()
		return get(context.WithoutCancel(ctx), http.MethodGet, rest[0])
	case order == "hello" && len(rest) == 2:
		within, err := time.ParseDuration(rest[1])
		if err != nil {
			return err
		}
		return hello(ctx, rest[0], within)
	}
	return fmt.Errorf("%q is no order", args)
}

// serve serves HTTP until ctx ends, and then finishes what is under way.
func serve(ctx context.Context, address string, h http.Handler) error {
	server := &http.Server{Addr: address, Handler: h, ReadHeaderTimeout: patience}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	return errors.Join(server.Shutdown(late), ignoreClosed(<-ended))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// answer says which host answers, and counts.
func answer() http.Handler {
	host, _ := os.Hostname() // without a name the tests that look for one fail
	var mu sync.Mutex
	seen := map[string]int{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Host-Name", host)
		if r.URL.Path == "/seen" {
			mu.Lock()
			now := maps.Clone(seen)
			mu.Unlock()
			_ = json.NewEncoder(w).Encode(now) // the asker may have gone
			return
		}
		mu.Lock()
		if len(seen) < maxPaths {
			seen[r.URL.Path]++
		}
		mu.Unlock()
		fmt.Fprintln(w, host)
	})
}

// relay hands requests on, as a program between two others does.
func relay(url string) http.Handler {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next, err := http.NewRequestWithContext(r.Context(), r.Method, url+r.URL.Path, http.NoBody)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for _, name := range []string{"Cookie", "X-Canary"} {
			if v := r.Header.Get(name); v != "" {
				next.Header.Set(name, v)
			}
		}
		response, err := client.Do(next)
		if err != nil {
			http.Error(w, "hand on: "+err.Error(), http.StatusBadGateway)
			return
		}
		defer func() { _ = response.Body.Close() }()
		for _, name := range []string{"Host-Name", "X-Lateen-Reason"} {
			if v := response.Header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		w.WriteHeader(response.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(response.Body, bodyMaxBytes)) // the client may have gone
	})
}

// get sends one request over a connection of its own.
func get(ctx context.Context, method, url string) error {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, bodyMaxBytes))
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s %s: %s %s\n", method, url, response.Status, text)
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// listenAll listens on addresses.
func listenAll(ctx context.Context, addresses []string) ([]net.Listener, error) {
	var all []net.Listener
	for _, a := range addresses {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a)
		if err != nil {
			return nil, errors.Join(err, closeAll(all))
		}
		all = append(all, l)
	}
	return all, nil
}

func closeAll(all []net.Listener) error {
	var faults []error
	for _, l := range all {
		faults = append(faults, l.Close())
	}
	return errors.Join(faults...)
}
