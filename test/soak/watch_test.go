package soak

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lateen-mesh/lateen/test/world"
)

// held is what a proxy holds at a moment.
type held struct {
	files, goroutines int
	heap, resident    int // bytes; heap: what is reachable, after a collection
}

func (h held) String() string {
	return fmt.Sprintf("%d files, %d goroutines, heap %.1f MiB, resident %.1f MiB", h.files, h.goroutines, mib(h.heap), mib(h.resident))
}

func mib(n int) float64 { return float64(n) / (1 << 20) }

var heapLine = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)

// look reads what a proxy holds now. It makes the proxy collect its garbage.
func look(ctx context.Context, p *world.Proxy) (h held, err error) {
	heap, err := p.Admin(ctx, "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return h, err
	}
	if m := heapLine.FindStringSubmatch(heap); m != nil {
		h.heap, _ = strconv.Atoi(m[1]) // digits
	}
	goroutines, err := p.Admin(ctx, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return h, err
	}
	if _, err := fmt.Sscanf(goroutines, "goroutine profile: total %d", &h.goroutines); err != nil {
		return h, fmt.Errorf("read the number of goroutines: %w", err)
	}
	proc := fmt.Sprintf("/proc/%d/", p.PID())
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		return h, err
	}
	h.files = len(files)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return h, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	kib, err := strconv.Atoi(number)
	h.resident = kib << 10
	return h, err
}

// The growth that is no leak, between the second quarter of a soak and its last one.
const (
	growthShare = 0.15
	growthBytes = 6 << 20
	growthCount = 24
)

// growth compares the second quarter of what was seen with the last one, and names what has grown.
func growth(list []held) error {
	if len(list) < 8 {
		return nil
	}
	n := len(list) / 4
	for _, q := range []struct {
		what  string
		value func(held) int
		slack int
	}{
		{"files", func(h held) int { return h.files }, growthCount},
		{"goroutines", func(h held) int { return h.goroutines }, growthCount},
		{"heap", func(h held) int { return h.heap }, growthBytes},
		{"resident memory", func(h held) int { return h.resident }, 2 * growthBytes},
	} {
		before, after := median(list[n:2*n], q.value), median(list[3*n:], q.value)
		if after-before > q.slack+int(growthShare*float64(before)) {
			return fmt.Errorf("%s grew from %d to %d", q.what, before, after)
		}
	}
	return nil
}

func median(list []held, value func(held) int) int {
	var all []int
	for _, h := range list {
		all = append(all, value(h))
	}
	slices.Sort(all)
	return all[len(all)/2]
}
