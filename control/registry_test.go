package control

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/mesh"
)

func newTestRegistry(t *testing.T, path string) (*registry, *mesh.Builder) {
	t.Helper()
	b := mesh.NewBuilder()
	r, err := newRegistry(path, func(c []mesh.Change) { b.Apply(c) }, func(mesh.Ref) bool { return false }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r, b
}

func instance(account string) *mesh.Workload {
	return &mesh.Workload{
		Namespace: "default", ID: "reviews-v1", ServiceAccount: account, Labels: mesh.Labels{"app": "reviews"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2")},
	}
}

func TestRegistry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workloads.jsonl")
	r, b := newTestRegistry(t, path)
	ref := instance("a").Ref()
	health := func(b *mesh.Builder) mesh.Health { return b.Snapshot().Object(ref).(*mesh.Workload).Health }
	if err := r.join(instance("a")); err != nil {
		t.Fatal(err)
	}
	if err := r.join(instance("b")); err == nil {
		t.Error("another service account took the workload's name over")
	}
	if !r.setHealth(ref, mesh.Unhealthy) || health(b) != mesh.Unhealthy {
		t.Error("the workload is not unhealthy")
	}
	if err := r.join(instance("a")); err != nil || health(b) != mesh.Unhealthy {
		t.Errorf("coming back made the workload healthy (%v)", err)
	}
	now := time.Now()
	r.sweep(map[mesh.Ref]bool{ref: true}, now)
	r.sweep(nil, now)
	r.sweep(nil, now.Add(goneAfter-time.Second))
	if b.Snapshot().Object(ref) == nil {
		t.Error("the workload left before its time")
	}
	_, restarted := newTestRegistry(t, path)
	if restarted.Snapshot().Object(ref) == nil || health(restarted) != mesh.Unhealthy {
		t.Error("a restart forgot the workload, or its health")
	}
	r.sweep(nil, now.Add(goneAfter+time.Second))
	if b.Snapshot().Object(ref) != nil {
		t.Error("the workload did not leave")
	}
	if r.leave(ref) {
		t.Error("a workload left twice")
	}
}

// TestJoinsUnhealthy: who is said to be unhealthy before it joins is never called before it is healthy.
func TestJoinsUnhealthy(t *testing.T) {
	r, b := newTestRegistry(t, filepath.Join(t.TempDir(), "workloads.jsonl"))
	ref := instance("a").Ref()
	health := func() mesh.Health { return b.Snapshot().Object(ref).(*mesh.Workload).Health }
	join := func(want mesh.Health) {
		t.Helper()
		if err := r.join(instance("a")); err != nil || health() != want {
			t.Errorf("it joined as %v (%v), want %v", health(), err, want)
		}
	}
	if r.setHealth(ref, mesh.Healthy) {
		t.Error("a workload that has not joined is healthy")
	}
	if !r.setHealth(ref, mesh.Unhealthy) {
		t.Error("it is not noted that a workload is to join as unhealthy")
	}
	join(mesh.Unhealthy)
	if !r.setHealth(ref, mesh.Healthy) || health() != mesh.Healthy {
		t.Error("the workload does not become healthy")
	}
	r.leave(ref)
	join(mesh.Healthy)
	r.leave(ref)
	r.setHealth(ref, mesh.Unhealthy)
	r.leave(ref) // It never joined.
	join(mesh.Healthy)
	r.leave(ref)
	r.setHealth(ref, mesh.Unhealthy)
	r.sweep(nil, time.Now().Add(returnWithin+time.Second))
	join(mesh.Healthy)
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"reviews-v1": true, "a.b": true, "": false, "-a": false, "A": false, "x\nevil: y": false, "a b": false,
	} {
		if nameValid(name) != want {
			t.Errorf("nameValid(%q) = %v", name, !want)
		}
	}
	for addr, want := range map[string]bool{"10.0.0.1": true, "fd77::5": true, "127.0.0.1": false, "::1": false, "0.0.0.0": false, "224.0.0.1": false, "fe80::1%eth0": false} {
		if addressValid(netip.MustParseAddr(addr)) != want {
			t.Errorf("addressValid(%s) = %v", addr, !want)
		}
	}
}
