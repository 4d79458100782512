package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
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

// registry knows the workloads that registered themselves by connecting. It
// survives a restart in a file, so that the mesh is whole before the proxies
// have come back.
type registry struct {
	path  string
	apply func([]mesh.Change)
	log   *slog.Logger

	mu      sync.Mutex
	members map[mesh.Ref]*member
	dirty   chan struct{} // holds one element when there is something to write down
}

type member struct {
	Workload *mesh.Workload
	deadline time.Time // when it is removed, unless it is connected; zero while it is
}

func newRegistry(path string, apply func([]mesh.Change), log *slog.Logger) (*registry, error) {
	r := &registry{path: path, apply: apply, log: log, members: map[mesh.Ref]*member{}, dirty: make(chan struct{}, 1)}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the known workloads: %w", err)
	}
	var list []*mesh.Workload
	if err := json.Unmarshal(text, &list); err != nil {
		log.Warn("the known workloads are not readable; they come back when their proxies do", "file", path, "cause", err)
		return r, nil
	}
	var changes []mesh.Change
	for _, w := range list {
		if w == nil || !nameValid(w.ID) || len(w.Addresses) == 0 {
			continue
		}
		r.members[w.Ref()] = &member{Workload: w, deadline: time.Now().Add(returnWithin)}
		changes = append(changes, mesh.Change{Ref: w.Ref(), Object: w})
	}
	apply(changes)
	return r, nil
}

// join brings a workload into the mesh, or back. What is known of its health stays.
func (r *registry) join(w *mesh.Workload) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[w.Ref()]
	switch {
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
	r.members[w.Ref()] = &member{Workload: w, deadline: time.Now().Add(goneAfter)}
	r.changed()
	r.apply([]mesh.Change{{Ref: w.Ref(), Object: w}})
	r.log.Info("workload joined", "workload", w.Ref(), "addresses", w.Addresses)
	return nil
}

// setHealth notes whether a workload may get traffic; false if it is not known.
func (r *registry) setHealth(ref mesh.Ref, h mesh.Health) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[ref]
	if m == nil {
		return false
	}
	if m.Workload.Health == h {
		return true
	}
	w := *m.Workload
	w.Health = h
	m.Workload = &w
	r.changed()
	r.apply([]mesh.Change{{Ref: ref, Object: &w}})
	return true
}

// leave takes a workload out of the mesh.
func (r *registry) leave(ref mesh.Ref) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.members[ref]
	if known {
		r.remove(ref)
	}
	return known
}

// remove takes a member out. The caller holds mu, so that changes reach the picture in the order in which they are
// made here.
func (r *registry) remove(ref mesh.Ref) {
	delete(r.members, ref)
	r.changed()
	r.apply([]mesh.Change{{Ref: ref}})
	r.log.Info("workload left", "workload", ref)
}

// changed has run write the members down at once: whom a control plane that is killed has not written down is missing
// after its restart, until the proxy has come back.
func (r *registry) changed() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// list returns the workloads, sorted by name.
func (r *registry) list() []*mesh.Workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*mesh.Workload, 0, len(r.members))
	for _, m := range r.members {
		out = append(out, m.Workload)
	}
	slices.SortFunc(out, func(a, b *mesh.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// run removes those who have gone and writes the rest down, until ctx ends. connected tells who has a connection.
func (r *registry) run(ctx context.Context, connected func() map[mesh.Ref]bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.sweep(connected(), time.Now())
		case <-r.dirty:
			r.save()
		case <-ctx.Done():
			r.save()
			return nil
		}
	}
}

// sweep removes those who have been without a connection for too long.
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
}

func (r *registry) save() {
	text, err := json.Marshal(r.list())
	if err == nil {
		if err = os.WriteFile(r.path+".new", text, 0o600); err == nil {
			err = os.Rename(r.path+".new", r.path)
		}
	}
	if err != nil {
		r.log.Warn("the known workloads are not written down", "cause", err)
		r.changed() // again at the next change or tick
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
