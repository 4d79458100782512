package proxy

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lateen-mesh/lateen/plan"
	"github.com/lateen-mesh/lateen/proxy/table"
)

// TestNamesWithoutControl: a name that nobody has told of is waited for while the control plane may still tell, and not once
// that has been away for a while: what is foreign is left to others then, and what can only be ours cannot be told.
func TestNamesWithoutControl(t *testing.T) {
	for _, tt := range []struct {
		name      string
		connected bool
		lost      time.Duration // ago; 0: never connected
		started   time.Duration // ago
		wait      time.Duration
	}{
		{"connected", true, 0, time.Hour, nameWait},
		{"connected again", true, time.Hour, time.Hour, nameWait},
		{"just lost", false, time.Second, time.Hour, nameWait - time.Second},
		{"lost for long", false, nameWait, time.Hour, 0},
		{"not found yet", false, 0, time.Second, nameWait - time.Second},
		{"never found", false, 0, time.Hour, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &Proxy{started: time.Now().Add(-tt.started)}
				p.table = table.New(table.Config{Subscribe: func(plan.Kind, ...string) {}, Unsubscribe: func(plan.Kind, ...string) {}})
				if tt.lost > 0 {
					feed{p}.Connected(false)
					p.lostAt.Add(-int64(tt.lost))
				}
				if tt.connected {
					feed{p}.Connected(true)
				}
				asked := time.Now()
				if addrs, known, err := p.lookup(t.Context(), "api.example.com"); addrs != nil || known || err != nil {
					t.Errorf("a foreign name: %v, %v, %v", addrs, known, err)
				}
				if waited := time.Since(asked); waited != tt.wait {
					t.Errorf("it took %v, want %v", waited, tt.wait)
				}
				if _, known, err := p.lookup(t.Context(), "new.default.svc.cluster.local"); known || err == nil {
					t.Errorf("a name of ours: %v, %v", known, err)
				}
			})
		})
	}
}
