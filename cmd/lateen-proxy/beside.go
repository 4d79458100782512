package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/lateen-mesh/lateen/proxy"
)

// How a process beside the proxy asks it, which Kubernetes starts in the proxy's container.
const (
	waitMax   = 10 * time.Minute
	waitEvery = 100 * time.Millisecond
	askMax    = 3 * time.Second
)

// beside does what a lifecycle handler of the container has been told: wait until the proxy is ready, or have it tell
// others that it will end.
func beside(ctx context.Context, command, host string) error {
	switch command {
	case "wait":
		ctx, cancel := context.WithTimeout(ctx, waitMax)
		defer cancel()
		return wait(ctx, fmt.Sprintf("http://%s:%d/healthz/ready", host, proxy.PortHealth))
	case "drain":
		return ask(ctx, http.MethodPost, fmt.Sprintf("http://%s:%d/drain", host, proxy.PortMetrics))
	}
	return fmt.Errorf("%q is not a command: want wait or drain", command)
}

// wait asks until the answer is a success.
func wait(ctx context.Context, url string) error {
	tick := time.NewTicker(waitEvery)
	defer tick.Stop()
	for {
		err := ask(ctx, http.MethodGet, url)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the proxy is not ready; its log says why: %w", err)
		}
	}
}

func ask(ctx context.Context, method, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return err
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	return nil
}
