// Command peer is what the pods of test/kubegateway run.
//
//	peer ADDRESS
//
// In: HTTP requests. Out: an Answer as JSON, which says who has answered and what has come; GET /ask sends requests from
// here and answers with the list of their Answers: the query names the url, how many times it is asked, and headers as
// field=NAME:VALUE. It must not know the mesh. The tests read Answer by the names of its fields.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// patience bounds a request.
	patience = 30 * time.Second
	// farewell bounds the end of the server.
	farewell     = 10 * time.Second
	bodyMaxBytes = 1 << 20
	// maxTimes bounds how often one is asked.
	maxTimes = 1000
)

// Answer is what became of a request.
type Answer struct {
	// Status is that of the response, as the one who asked has it.
	Status int `json:",omitempty"`
	// Pod is who answers.
	Pod string
	// Host, Path and Header are those of the request as it has come.
	Host, Path string
	Header     http.Header
	// Response is the header of the response, as the one who asked has it.
	Response http.Header `json:",omitempty"`
	// Failure says why there is no answer.
	Failure string `json:",omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and then finishes what is under way.
func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: peer ADDRESS, not %q", args)
	}
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ask", ask)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server-Version", strings.Split(pod, "-")[0])
		_ = json.NewEncoder(w).Encode(Answer{Pod: pod, Host: r.Host, Path: r.URL.Path, Header: r.Header}) // the asker may have gone
	})
	server := &http.Server{Addr: args[0], Handler: mux, ReadHeaderTimeout: patience}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	return server.Shutdown(late)
}

func ask(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	times, _ := strconv.Atoi(query.Get("times")) // none is one
	client := &http.Client{Timeout: patience, Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	defer client.CloseIdleConnections()
	out := make([]Answer, 0, maxTimes)
	for range min(max(times, 1), maxTimes) {
		out = append(out, once(r.Context(), client, query.Get("url"), query["field"]))
	}
	_ = json.NewEncoder(w).Encode(out) // the asker may have gone
}

func once(ctx context.Context, client *http.Client, url string, fields []string) Answer {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return Answer{Failure: err.Error()}
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return Answer{Failure: err.Error()}
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, bodyMaxBytes))
	if err != nil {
		return Answer{Failure: err.Error()}
	}
	var a Answer
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, &a); err != nil {
			return Answer{Failure: fmt.Sprintf("an answer of somebody else: %q", text)}
		}
	}
	a.Status, a.Response = response.StatusCode, response.Header
	return a
}
