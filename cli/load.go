package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// loadTimeout bounds one request of the load.
	loadTimeout = 15 * time.Second
	// loadInFlight bounds the requests under way; beyond it the load waits, as users do.
	loadInFlight = 256
	// loadPerConn is how many requests go over one connection, about.
	loadPerConn = 5
	// loadBody bounds what is read of an answer.
	loadBody = 4 << 20
)

// load sends requests at a steady rate and counts what comes back. It may be read while it runs.
type load struct {
	url    string
	header http.Header
	rate   int
	// want must be in the body of an answer with status 200; empty: any body will do.
	want   []byte
	client *http.Client

	mu       sync.Mutex
	requests uint64
	failed   uint64
	statuses map[string]uint64
	lastErr  error
}

// newLoad makes a load that has not begun.
func newLoad(url string, header http.Header, rate int, want string) *load {
	return &load{
		url: url, header: header, rate: rate, want: []byte(want), statuses: map[string]uint64{},
		client: &http.Client{
			Timeout:       loadTimeout,
			Transport:     &http.Transport{MaxIdleConnsPerHost: loadInFlight, DisableCompression: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// run sends until ctx ends, and returns when the last answer has come or abandon has ended, too.
func (l *load) run(ctx, abandon context.Context) {
	tick := time.NewTicker(time.Second / time.Duration(l.rate))
	defer tick.Stop()
	defer l.client.CloseIdleConnections()
	var group sync.WaitGroup
	defer group.Wait()
	room := make(chan struct{}, loadInFlight)
	for n := 1; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		group.Go(func() {
			l.count(l.once(abandon, n%loadPerConn == 0))
			<-room
		})
	}
}

// once sends one request and returns its status.
func (l *load) once(ctx context.Context, last bool) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url, nil)
	if err != nil {
		return 0, err
	}
	maps.Copy(req.Header, l.header)
	if h := l.header.Get("Host"); h != "" {
		req.Host = h
	}
	req.Close = last
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, loadBody))
	if err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK && !bytes.Contains(body, l.want) {
		return 0, fmt.Errorf("the answer, of %d bytes, does not have %q in it", len(body), l.want)
	}
	return resp.StatusCode, nil
}

func (l *load) count(status int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	if err != nil {
		l.failed++
		l.lastErr = err
		return
	}
	l.statuses[strconv.Itoa(status)]++
	if status >= http.StatusInternalServerError {
		l.failed++
		l.lastErr = errors.New(http.StatusText(status))
	}
}

// totals returns what was counted so far.
func (l *load) totals() (requests, failed uint64, statuses map[string]uint64, last error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests, l.failed, maps.Clone(l.statuses), l.lastErr
}
