package show

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func TestProxies(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	golden(t, "status", Proxies(NewStyle(io.Discard), []Proxy{
		{
			Name: "details-v1", Namespace: "default", Role: "sidecar", Identity: "spiffe://cluster.local/ns/default/sa/d",
			Connected: true, Synced: true, Ready: true, Updated: now.Add(-3 * time.Second), RSSMiB: 9.94,
			Accelerator: "on",
		},
		{Name: "edge", Namespace: "shop", Role: "gateway", Connected: true, Ready: true, Updated: now.Add(-90 * time.Minute), RSSMiB: 112.2, Accelerator: "off"},
		{Name: "lost", Namespace: "shop", Role: "sidecar", Ready: true, Synced: true, Updated: now.Add(-100 * time.Hour)},
		{Name: "new", Namespace: "shop", Role: "sidecar", Connected: true},
		{
			Name: "sulking", Namespace: "shop", Role: "sidecar", Connected: true, Ready: true, Refused: `route "x": no clusters`,
			Updated: now.Add(-2 * time.Minute), Accelerator: "unavailable: no permission",
		},
	}, now))
}

// TestJoin: whether a proxy goes without some of its orders now it knows better than lateend, which tells the last refusal
// of the stream.
func TestJoin(t *testing.T) {
	p := Proxy{Connected: true, Refused: `route "x": no clusters`}
	p.Join(Own{Connected: true})
	if p.Refused != "" || !p.Connected {
		t.Errorf("%+v", p)
	}
	p.Join(Own{Refused: "route"})
	if p.Refused != "route" || p.Connected {
		t.Errorf("%+v", p)
	}
}

func TestKind(t *testing.T) {
	for section, want := range map[string]string{
		"all": "", "listeners": "listener", "routes": "route", "clusters": "cluster", "endpoints": "endpoints", "secrets": "secret", "names": "name",
	} {
		if got, err := Kind(section); got != want || err != nil {
			t.Errorf("%s is %q (%v), want %q", section, got, err, want)
		}
	}
	if _, err := Kind("sails"); err == nil {
		t.Error("a section that is not there was taken")
	}
}
