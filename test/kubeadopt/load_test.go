package kubeadopt

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/test/kubemesh"
)

const (
	// workers send a load's requests, each one after another, this often.
	workers = 2
	every   = 50 * time.Millisecond
	// some is how many requests must have come through before a step counts as survived.
	some = 30
)

// load sends requests steadily, from the cluster's network, and counts what becomes of them.
type load struct {
	m    *kubemesh.Mesh
	what string
	stop context.CancelFunc
	done sync.WaitGroup

	mu               sync.Mutex
	total, last      int
	failures, before int
	first            string
	hosts            map[string]int
	from             time.Time // requests that began before are not counted in hosts
}

// begin starts a load; send sends one request and returns who answered it.
func begin(m *kubemesh.Mesh, what string, send func() (string, error)) *load {
	ctx, stop := context.WithCancel(m.Context())
	l := &load{m: m, what: what, stop: stop, hosts: map[string]int{}}
	for range workers {
		l.done.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					l.count(time.Now())(send())
				case <-ctx.Done():
					return
				}
			}
		})
	}
	m.Cleanup(l.end)
	return l
}

func (l *load) count(began time.Time) func(who string, err error) {
	return func(who string, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.total++
		if err == nil {
			if began.After(l.from) {
				l.hosts[who]++
			}
			return
		}
		l.failures++
		if l.first == "" {
			l.first = fmt.Sprintf("%s, after %v: %v", began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err)
		}
	}
}

// survives does something, waits until some more requests were answered, and fails the test if one was not.
func (l *load) survives(m *kubemesh.Mesh, step string, do func()) {
	m.Helper()
	began := time.Now()
	do()
	l.more(m)
	l.mu.Lock()
	defer l.mu.Unlock()
	m.Logf("%6.1fs %s: %d requests to %s, %d failed", time.Since(began).Seconds(), step, l.total-l.last, l.what, l.failures-l.before)
	if l.failures > l.before {
		m.Errorf("%s: %d requests to %s failed, the first at %s", step, l.failures-l.before, l.what, l.first)
	}
	l.last, l.before, l.first = l.total, l.failures, ""
}

// more waits for some more answers.
func (l *load) more(m *kubemesh.Mesh) {
	m.Helper()
	l.mu.Lock()
	enough := l.total + some
	l.mu.Unlock()
	m.Await("requests to "+l.what+" are answered", func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.total < enough {
			return fmt.Sprintf("%d of %d", l.total, enough)
		}
		return ""
	})
}

// since counts the answers of each server to some requests that are sent from now on.
func (l *load) since(m *kubemesh.Mesh) map[string]int {
	m.Helper()
	l.mu.Lock()
	l.from, l.hosts = time.Now(), map[string]int{}
	l.mu.Unlock()
	l.more(m)
	l.mu.Lock()
	defer l.mu.Unlock()
	hosts := l.hosts
	l.hosts = map[string]int{}
	return hosts
}

// end ends the load; no request is under way any more when it returns.
func (l *load) end() {
	l.stop()
	l.done.Wait()
}
