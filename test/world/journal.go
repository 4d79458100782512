package world

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
)

// journalMax bounds a journal: what comes later is not noted.
const journalMax = 1 << 16

// Record is what a backend received: a request, or a connection where it does not speak HTTP.
type Record struct {
	Backend string
	From    netip.AddrPort
	// Proto, Method, Target (as on the request line), Host and Header are the request's, all as net/http reads them.
	Proto, Method, Target, Host string
	Header, Trailer             http.Header
	// Body is what came of the body, or of the connection, up to its end or to BodyError.
	Body      string
	BodyError string
	// Attempt counts the requests with the same x-key, from 1 on. 0: it has none.
	Attempt int
}

// Journal is where backends note what they receive. The zero value is empty.
type Journal struct {
	mu       sync.Mutex
	records  []Record
	attempts map[string]int
	more     chan struct{} // closed and replaced at the next record
}

// attempt counts a request that bears a key.
func (j *Journal) attempt(key string) int {
	if key == "" {
		return 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.attempts == nil || len(j.attempts) > journalMax {
		j.attempts = map[string]int{}
	}
	j.attempts[key]++
	return j.attempts[key]
}

func (j *Journal) add(r Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.records) < journalMax {
		j.records = append(j.records, r)
	}
	if j.more != nil {
		close(j.more)
		j.more = nil
	}
}

// Take returns what was noted since the last time, in the order in which it was received.
func (j *Journal) Take() []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := j.records
	j.records = nil
	return out
}

// Await returns when there are n records to take, or when ctx ends.
func (j *Journal) Await(ctx context.Context, n int) error {
	for {
		j.mu.Lock()
		have := len(j.records)
		if j.more == nil {
			j.more = make(chan struct{})
		}
		more := j.more
		j.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d records: there are %d: %w", n, have, ctx.Err())
		}
	}
}
