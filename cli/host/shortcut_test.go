package host_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/redirect/accelerate"
)

// TestAccelerate: root gets an accelerator where the kernel can, and others are told why they get none; a workload runs
// in either case.
func TestAccelerate(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		w.env = []string{accelerateVariable + "=1"}
		c := w.start("run", workload("one", "true"))
		c.events(host.EventDone)
		i := slices.IndexFunc(w.lines(), func(line string) bool { return strings.HasPrefix(line, "accelerator ") })
		if i < 0 {
			t.Fatalf("the proxy was told nothing: %q", w.lines())
		}
		state := strings.TrimPrefix(w.lines()[i], "accelerator ")
		want := "on"
		if w.uid != 0 {
			want = "unavailable: "
		} else if a, err := accelerate.New(accelerate.Config{Ports: []uint16{1}, Mark: 1}); err != nil {
			want = "unavailable: " + err.Error()
		} else if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(state, want) {
			t.Errorf("the accelerator is %q, want %q", state, want)
		}
		w.nothingLeft(false)
	})
}
