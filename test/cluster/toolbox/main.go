// Command toolbox is what the test cluster's own tests run in pods: a server, a client, and a webhook.
//
//	toolbox serve ADDRESS         answer every request with this host's name
//	toolbox get URL               print the answer to a request; fail if there is none
//	toolbox webhook CERT KEY      admit every object and give it the label webhook=called
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	patience     = 5 * time.Second
	maxBodyBytes = 4 << 20
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ended
		os.Exit(0)
	}()
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 2 && args[0] == "get":
		return get(args[1], os.Stdout)
	case len(args) == 3 && args[0] == "webhook":
		return webhook(args[1], args[2])
	}
	return errors.New("usage: toolbox serve ADDRESS | get URL | webhook CERT KEY")
}

func serve(address string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{Addr: address, ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(os.Stderr, "request %s from %s\n", r.URL.Path, r.RemoteAddr)
		fmt.Fprintln(w, host)
	})}
	fmt.Fprintln(os.Stderr, "serving on", address)
	return server.ListenAndServe()
}

func get(url string, out io.Writer) error {
	client := http.Client{Timeout: patience}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, io.LimitReader(response.Body, maxBodyBytes)); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// review is what of an AdmissionReview (admission.k8s.io/v1) matters here.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID string `json:"uid"`
}

type response struct {
	UID       string `json:"uid"`
	Allowed   bool   `json:"allowed"`
	PatchType string `json:"patchType"`
	Patch     []byte `json:"patch"`
}

func webhook(certificate, key string) error {
	server := &http.Server{Addr: ":8443", ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var rev review
		if err := json.NewDecoder(io.LimitReader(r.Body, maxBodyBytes)).Decode(&rev); err != nil || rev.Request == nil {
			http.Error(w, "no review", http.StatusBadRequest)
			return
		}
		rev.Response = &response{
			UID: rev.Request.UID, Allowed: true, PatchType: "JSONPatch",
			Patch: []byte(`[{"op": "add", "path": "/metadata/labels/webhook", "value": "called"}]`),
		}
		rev.Request = nil
		// A client that has gone needs no answer.
		_ = json.NewEncoder(w).Encode(rev)
	})}
	return server.ListenAndServeTLS(certificate, key)
}
