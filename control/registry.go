package control

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lateen-mesh/lateen/identity"
	"github.com/lateen-mesh/lateen/mesh"
)

// The bounds of what a node may say of itself.
const (
	nameMax      = 253
	addressesMax = 8
	portsMax     = 64
)

// nameValid reports whether a text can be the name of a workload (RFC 1123 section 2.1).
func nameValid(s string) bool {
	if s == "" || len(s) > nameMax {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'; !letter && (i == 0 || c != '-' && c != '.') {
			return false
		}
	}
	return true
}

// addressValid reports whether a workload can be reached at an address from elsewhere.
func addressValid(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast()
}

// The times of a workload's leaving.
const (
	// goneAfter is how long a workload without connection stays in the mesh (Istio's grace for auto-registered entries).
	goneAfter = 10 * time.Second
	// returnWithin is how long the workloads of an earlier run have to come back after a restart.
	returnWithin = 60 * time.Second
	pollEvery    = time.Second
)

// workloadsMax bounds the registered workloads.
const workloadsMax = 100_000

// registry knows the workloads that registered themselves by connecting. They survive a restart in a journal, so that
// the mesh is whole before the proxies have come back.
type registry struct {
	apply   func([]mesh.Change)
	written func(mesh.Ref) bool // whether the configuration has an entry of that name
	log     *slog.Logger

	mu      sync.Mutex
	members map[mesh.Ref]*member
	awaited map[mesh.Ref]time.Time // who is to join as unhealthy, and until when that is remembered
	journal *journal
}

type member struct {
	Workload *mesh.Workload
	deadline time.Time // when it is removed, unless it is connected; zero while it is
}

func newRegistry(path string, apply func([]mesh.Change), written func(mesh.Ref) bool, log *slog.Logger) (*registry, error) {
	r := &registry{apply: apply, written: written, log: log, members: map[mesh.Ref]*member{}, awaited: map[mesh.Ref]time.Time{}}
	known, err := readJournal(path, log)
	if err != nil {
		return nil, err
	}
	var changes []mesh.Change
	for ref, w := range known {
		r.members[ref] = &member{Workload: w, deadline: time.Now().Add(returnWithin)}
		changes = append(changes, mesh.Change{Ref: ref, Object: w})
	}
	r.journal = newJournal(path, log)
	r.journal.rewrite(r.workloads())
	apply(changes)
	return r, nil
}

// close lets go of the journal.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.journal.close()
}

// writtenError says why a workload cannot register under a name.
func writtenError(ref mesh.Ref) error {
	return fmt.Errorf("the configuration has a WorkloadEntry %s/%s, which stands for another workload; choose another name, or remove the entry with `lateen delete workloadentry %s -n %s`",
		ref.Namespace, ref.Name, ref.Name, ref.Namespace)
}

// join brings a workload into the mesh, or back. What is known of its health stays.
func (r *registry) join(w *mesh.Workload) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[w.Ref()]
	switch {
	case r.written(w.Ref()):
		return writtenError(w.Ref())
	case m != nil && m.Workload.ServiceAccount != w.ServiceAccount:
		return fmt.Errorf("%s is in the mesh already, as service account %s", w.Ref(), m.Workload.ServiceAccount)
	case m == nil && len(r.members) >= workloadsMax:
		return fmt.Errorf("the mesh has its limit of %d registered workloads", workloadsMax)
	case m != nil:
		w.Health = m.Workload.Health
		if reflect.DeepEqual(m.Workload, w) {
			m.deadline = time.Now().Add(goneAfter) // until the next look at the connections
			return nil
		}
	}
	if _, unhealthy := r.awaited[w.Ref()]; m == nil && unhealthy {
		w.Health = mesh.Unhealthy
		delete(r.awaited, w.Ref())
	}
	r.set(w.Ref(), &member{Workload: w, deadline: time.Now().Add(goneAfter)})
	r.log.Info("workload joined", "workload", w.Ref(), "addresses", w.Addresses)
	return nil
}

// has reports whether a workload has registered.
func (r *registry) has(ref mesh.Ref) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members[ref] != nil
}

// setHealth notes whether a workload may get traffic; false if it is not known. Who runs a workload may say that it is
// unhealthy before it joins, so that it is never called too early.
func (r *registry) setHealth(ref mesh.Ref, h mesh.Health) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[ref]
	if m == nil {
		if h != mesh.Unhealthy || len(r.awaited) >= workloadsMax {
			return false
		}
		r.awaited[ref] = time.Now().Add(returnWithin)
		return true
	}
	if m.Workload.Health == h {
		return true
	}
	w := *m.Workload
	w.Health = h
	r.set(ref, &member{Workload: &w, deadline: m.deadline})
	return true
}

// leave takes a workload out of the mesh.
func (r *registry) leave(ref mesh.Ref) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.awaited, ref)
	if r.members[ref] == nil {
		return false
	}
	r.remove(ref)
	return true
}

// set puts a member in the mesh. It is written down before anybody is told: a control plane that is killed never
// forgets a workload that proxies know. The caller holds mu, so that changes reach the picture in their order.
func (r *registry) set(ref mesh.Ref, m *member) {
	r.members[ref] = m
	r.note(ref, m.Workload)
	r.apply([]mesh.Change{{Ref: ref, Object: m.Workload}})
}

// remove takes a member out, as set puts it in.
func (r *registry) remove(ref mesh.Ref) {
	delete(r.members, ref)
	r.note(ref, nil)
	r.apply([]mesh.Change{{Ref: ref}})
	r.log.Info("workload left", "workload", ref)
}

// note writes a change down. The caller holds mu.
func (r *registry) note(ref mesh.Ref, w *mesh.Workload) {
	if r.journal.add(ref, w); r.journal.stale(len(r.members)) {
		r.journal.rewrite(r.workloads())
	}
}

// list returns the workloads, sorted by name.
func (r *registry) list() []*mesh.Workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.workloads()
}

// workloads is list for who holds mu.
func (r *registry) workloads() []*mesh.Workload {
	out := make([]*mesh.Workload, 0, len(r.members))
	for _, m := range r.members {
		out = append(out, m.Workload)
	}
	slices.SortFunc(out, func(a, b *mesh.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// run removes those who have gone until ctx ends. connected tells who has a connection.
func (r *registry) run(ctx context.Context, connected func() map[mesh.Ref]bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.sweep(connected(), time.Now())
		case <-ctx.Done():
			return nil
		}
	}
}

// sweep removes those who have been without a connection for too long, and mends a journal that could not be written.
func (r *registry) sweep(connected map[mesh.Ref]bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ref, m := range r.members {
		switch {
		case connected[ref]:
			m.deadline = time.Time{}
		case m.deadline.IsZero():
			m.deadline = now.Add(goneAfter)
		case now.After(m.deadline):
			r.remove(ref)
		}
	}
	for ref, until := range r.awaited {
		if now.After(until) {
			delete(r.awaited, ref)
		}
	}
	if r.journal.broken {
		r.journal.rewrite(r.workloads())
	}
}

// workloadOf is the workload that a sidecar stands before, from its node metadata; nil without an address.
func workloadOf(m map[string]any, n *node, id identity.ID) *mesh.Workload {
	w := &mesh.Workload{
		Origin:    mesh.Origin{Kind: "WorkloadEntry", Namespace: id.Namespace, Name: n.name},
		Namespace: id.Namespace, ID: n.name, Labels: n.asker.Labels, ServiceAccount: id.ServiceAccount, MTLS: true,
		Locality: n.asker.Locality, Ports: map[string]uint16{},
	}
	ips, _ := m["INSTANCE_IPS"].([]any)
	for _, v := range ips {
		s, _ := v.(string)
		if a, err := netip.ParseAddr(s); err == nil && addressValid(a.Unmap()) && len(w.Addresses) < addressesMax {
			w.Addresses = append(w.Addresses, a.Unmap())
		}
	}
	if len(w.Addresses) == 0 {
		return nil
	}
	ports, _ := m["PORTS"].(map[string]any)
	for name, v := range ports {
		s, _ := v.(string)
		if p, err := strconv.ParseUint(s, 10, 16); err == nil && p > 0 && len(w.Ports) < portsMax {
			w.Ports[name] = uint16(p)
		}
	}
	w.WorkloadName, _ = m["WORKLOAD_NAME"].(string)
	w.CanonicalName = cmp.Or(w.Labels["service.istio.io/canonical-name"], w.Labels["app.kubernetes.io/name"], w.Labels["app"], w.WorkloadName)
	w.CanonicalRevision = cmp.Or(w.Labels["service.istio.io/canonical-revision"], w.Labels["app.kubernetes.io/version"], w.Labels["version"], "latest")
	return w
}
