package kube

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestTrust: where the API server has ClusterTrustBundles, the mesh's is kept there, at the event; elsewhere nothing is
// asked for but whether it has.
func TestTrust(t *testing.T) {
	for _, served := range []bool{true, false} {
		s := newServer(t)
		s.trusts = served
		var roots atomic.Value
		roots.Store("PEM\n")
		store, err := Open(Config{Cluster: s.cluster(), Roots: func() []byte { return []byte(roots.Load().(string)) }})
		if err != nil {
			t.Fatal(err)
		}
		store.retry = time.Hour
		r := &rig{t: t, server: s, Store: store}
		s.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}")
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		there := func() bool {
			spec, _ := s.get("ClusterTrustBundle", "/"+TrustName)["spec"].(object)
			return spec["trustBundle"] == roots.Load() && spec["signerName"] == trustSigner
		}
		if served {
			r.await("the roots", there)
			roots.Store("OTHER\n")
			r.RootsChanged()
			r.await("other roots", there)
			s.remove("ClusterTrustBundle", "/"+TrustName)
			r.await("the roots again", there)
		} else {
			r.await("it leads", func() bool { return s.get("ConfigMap", "shop/"+RootsName) != nil })
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, q := range s.asked() {
			if !served && strings.Contains(q, "clustertrustbundles") {
				t.Errorf("asked for what is not served: %s", q)
			}
		}
	}
}

// TestTrustAskedAgain: an API server that does not say at first whether it has ClusterTrustBundles is asked until it does.
func TestTrustAskedAgain(t *testing.T) {
	s := newServer(t)
	s.trusts = true
	asked := 0
	s.broken = func(path string) bool {
		if path != "/apis/certificates.k8s.io/v1" {
			return false
		}
		asked++
		return asked < 3
	}
	store, err := Open(Config{Cluster: s.cluster(), Roots: func() []byte { return []byte("PEM\n") }})
	if err != nil {
		t.Fatal(err)
	}
	store.retry = 10 * time.Millisecond
	r := &rig{t: t, server: s, Store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.await("the roots", func() bool { return s.get("ClusterTrustBundle", "/"+TrustName) != nil })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
