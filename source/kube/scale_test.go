package kube

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/lateen-mesh/lateen/mesh"
)

// crowd fills a server with services of ten pods each.
func crowd(s *apiServer, services int) {
	for i := range services {
		name := fmt.Sprintf("svc-%d", i)
		s.put(object{
			"apiVersion": "v1", "kind": "Service", "metadata": object{"name": name, "labels": object{"app": name}},
			"spec": object{
				"clusterIP": fmt.Sprintf("10.%d.%d.%d", 100+i>>16, i>>8&255, i&255), "selector": object{"app": name},
				"ports": []any{object{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}},
			},
		})
		for j := range 10 {
			n := i*10 + j
			s.put(object{
				"apiVersion": "v1", "kind": "Pod",
				"metadata": object{
					"name":            fmt.Sprintf("%s-7d4b9c-%05x", name, n),
					"labels":          object{"app": name, "version": "v1", "pod-template-hash": "7d4b9c", "security.istio.io/tlsMode": "istio"},
					"ownerReferences": []any{object{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name + "-7d4b9c", "uid": "u", "controller": true}},
				},
				"spec": object{
					"nodeName": fmt.Sprintf("node-%d", n%500), "serviceAccountName": name,
					"containers": []any{object{"name": "app", "image": "registry.example/app:1", "ports": []any{object{"name": "web", "containerPort": 8080}}}},
				},
				"status": object{
					"phase": "Running", "podIPs": []any{object{"ip": fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255)}},
					"conditions": []any{object{"type": "Ready", "status": "True"}},
				},
			})
		}
	}
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkRead reads a cluster of 1,000 services with ten pods each into a snapshot: once each time, as at a start. It
// tells how much of the heap each pod takes, with its share of its service.
func BenchmarkRead(b *testing.B) {
	s := newServer(b)
	crowd(s, 1000)
	for b.Loop() {
		before := heap()
		builder := mesh.NewBuilder()
		read := make(chan struct{}, 1)
		store, err := Open(Config{Cluster: s.cluster(), Apply: func(changes []mesh.Change) {
			builder.Apply(changes)
			read <- struct{}{}
		}})
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- store.Run(ctx) }()
		<-read
		b.ReportMetric(float64(int64(heap()-before))/10_000, "heap-B/pod")
		stop()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
