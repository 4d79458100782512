package proxy

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/loop"
	"github.com/lateen-mesh/lateen/proxy/table"
)

// A port that could not be opened is tried again after portRetry, then after twice as long each time, up to portRetryMax.
const (
	portRetry    = 250 * time.Millisecond
	portRetryMax = 30 * time.Second
)

// gateways are the ports of a gateway: opened, obeyed and closed as the plan says. What cannot be opened is tried again
// until it is open or has left the plan.
type gateways struct {
	p *Proxy

	// mu is held while loops open ports; no loop may take it.
	mu     sync.Mutex
	wanted []string // the names of the listeners in force
	open   map[string]*gatewayPort
	faults map[string]*portFault
	timer  *time.Timer // of the next attempt; nil: none is due
	ended  bool
}

type gatewayPort struct {
	bind netip.AddrPort
	mu   sync.Mutex
	list map[*worker]*loop.Listener
}

// portFault is a port that is in the plan and not open.
type portFault struct {
	bind  netip.AddrPort
	err   error
	since time.Time
	tries int
	next  time.Time
}

// PortStatus is one port of a gateway.
type PortStatus struct {
	Listener string         `json:"listener"`
	Bind     netip.AddrPort `json:"bind"`
	Open     bool           `json:"open"`
	Cause    string         `json:"cause,omitempty"` // why it is not open, and what to do
	Since    time.Time      `json:"since,omitzero"`  // when opening it failed first
	Retry    time.Time      `json:"retry,omitzero"`  // when it is tried next
}

// update is told the names of the listeners that are in force.
func (g *gateways) update(names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = slices.Clone(names)
	g.apply(true)
}

// retry tries again what is due.
func (g *gateways) retry() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.apply(false)
}

// run ends the attempts with ctx.
func (g *gateways) run(ctx context.Context) error {
	<-ctx.Done()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	if g.timer != nil {
		g.timer.Stop()
	}
	return nil
}

// status tells of all ports in the plan, in the order of their names.
func (g *gateways) status() []PortStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []PortStatus
	for name, port := range g.open {
		out = append(out, PortStatus{Listener: name, Bind: port.bind, Open: true})
	}
	for name, f := range g.faults {
		out = append(out, PortStatus{Listener: name, Bind: f.bind, Cause: f.err.Error(), Since: f.since, Retry: f.next})
	}
	slices.SortFunc(out, func(a, b PortStatus) int { return cmp.Compare(a.Listener, b.Listener) })
	return out
}

// apply brings the ports up to the plan; changed: the plan is new, so that what failed is tried at once. The caller
// holds mu.
func (g *gateways) apply(changed bool) {
	if g.ended {
		return
	}
	binds := map[string]netip.AddrPort{}
	for _, name := range g.wanted {
		if !strings.HasPrefix(name, plan.ListenerGateway) {
			continue
		}
		if l, state := g.p.table.Listener(name); state == table.Ready {
			binds[name] = l.Plan.Bind
		}
	}
	for name, port := range g.open {
		if binds[name] != port.bind {
			port.close()
			delete(g.open, name)
		}
	}
	maps.DeleteFunc(g.faults, func(name string, f *portFault) bool { return binds[name] != f.bind })
	now := time.Now()
	for _, name := range g.wanted {
		bind, ok := binds[name]
		if !ok || g.open[name] != nil {
			continue
		}
		if f := g.faults[name]; f == nil || changed || !now.Before(f.next) {
			g.try(name, bind)
		}
	}
	g.schedule()
}

// try opens a port, and notes if that fails. The caller holds mu.
func (g *gateways) try(name string, bind netip.AddrPort) {
	port := &gatewayPort{bind: bind, list: map[*worker]*loop.Listener{}}
	err := g.p.listen(bind, func(w *worker, c *loop.Conn) { w.acceptGateway(c, name) }, port.opened)
	if err == nil {
		if g.open == nil {
			g.open = map[string]*gatewayPort{}
		}
		g.open[name] = port
		delete(g.faults, name)
		g.p.cfg.Logger.Info("gateway port open", "listener", name, "bind", bind)
		return
	}
	port.close() // some workers may have it
	now := time.Now()
	f := g.faults[name]
	if f == nil {
		f = &portFault{bind: bind, since: now}
		if g.faults == nil {
			g.faults = map[string]*portFault{}
		}
		g.faults[name] = f
		if !errors.Is(err, errLoopEnded) {
			g.p.cfg.Logger.Error("a gateway's port is not open; it is tried again until it is, or until it leaves the plan",
				"listener", name, "bind", bind, "cause", err)
		}
	}
	f.err, f.next = err, now.Add(portBackoff(f.tries))
	f.tries++
}

// portBackoff is how long to wait after so many earlier attempts.
func portBackoff(tries int) time.Duration {
	return min(portRetry<<min(tries, 16), portRetryMax)
}

// schedule sees to the next attempt. The caller holds mu.
func (g *gateways) schedule() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	var next time.Time
	for _, f := range g.faults {
		if next.IsZero() || f.next.Before(next) {
			next = f.next
		}
	}
	if !next.IsZero() {
		g.timer = time.AfterFunc(time.Until(next), g.retry)
	}
}

func (p *gatewayPort) opened(w *worker, l *loop.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list[w] = l
}

func (p *gatewayPort) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w, l := range p.list {
		w.loop.Post(l.Close)
	}
}
