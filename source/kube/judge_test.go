package kube

import (
	"strings"
	"testing"
)

// TestJudge: an object is judged among all that is in force, which it does not change.
func TestJudge(t *testing.T) {
	s := newServer(t)
	s.define()
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: old, namespace: default}
spec: {host: nowhere}
`)
	r := follow(t, s)
	r.read()
	rule := func(host string) []byte {
		return []byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"x","namespace":"default"},"spec":{"host":"` + host + `"}}`)
	}
	for _, tt := range []struct {
		name    string
		raw     []byte
		fault   string
		finding string
	}{
		{"fits", rule("web"), "", ""},
		{"fits nothing", rule("wep"), "", "no service has the host wep.default.svc.cluster.local"},
		{"faulty", rule(""), "host", ""},
	} {
		o, faults, findings := r.Judge(tt.raw)
		if (o == nil) != (tt.fault != "") || (len(faults) == 0) != (tt.fault == "") || len(faults) > 0 && !strings.Contains(faults[0].String(), tt.fault) {
			t.Errorf("%s: %v %v, want %q", tt.name, o, faults, tt.fault)
		}
		if (len(findings) == 0) != (tt.finding == "") || len(findings) > 0 && (!strings.Contains(findings[0].String(), tt.finding) || len(findings) > 1) {
			t.Errorf("%s: findings %v, want %q", tt.name, findings, tt.finding)
		}
	}
	if got := r.List("DestinationRule", "", ""); len(got) != 1 || got[0].Name != "old" {
		t.Errorf("in force is %v", got)
	}
	// Where many are judged already, what is wrong by itself is told, and nobody waits for the rest.
	for range judgesMax {
		r.judging <- struct{}{}
	}
	if o, _, findings := r.Judge(rule("wep")); o == nil || len(findings) > 0 {
		t.Errorf("%v, findings %v", o, findings)
	}
	if _, faults, _ := r.Judge(rule("")); len(faults) == 0 {
		t.Error("a fault is not told")
	}
}
