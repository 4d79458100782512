package kubemesh

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Processes finds the processes of a program in the pods of a namespace that a selector chooses; an empty one chooses all.
func (m *Mesh) Processes(namespace, selector, program string) (pids []int) {
	m.Helper()
	args := []string{"get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].metadata.uid}"}
	if selector != "" {
		args = append(args, "-l", selector)
	}
	uids := strings.Fields(m.Do(args...))
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		m.Fatal(err)
	}
	for _, path := range all {
		name, _ := os.ReadFile(path) // one that has ended is none
		group, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cgroup"))
		if strings.TrimSpace(string(name)) != program || !slices.ContainsFunc(uids, func(uid string) bool {
			return strings.Contains(strings.ReplaceAll(string(group), "_", "-"), uid)
		}) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Memory logs what the processes of a program in the pods of a namespace that a selector chooses have of the machine's memory.
func (m *Mesh) Memory(what, namespace, selector, program string) {
	m.Helper()
	var resident, proportional []string
	for _, pid := range m.Processes(namespace, selector, program) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "Rss:" && f[0] != "Pss:" {
				continue
			}
			kib, _ := strconv.Atoi(f[1])
			mib := fmt.Sprintf("%.1f", float64(kib)/1024)
			if f[0] == "Rss:" {
				resident = append(resident, mib)
			} else {
				proportional = append(proportional, mib)
			}
		}
	}
	m.Logf("memory of %s, MiB: RSS %s, PSS %s", what, strings.Join(resident, " "), strings.Join(proportional, " "))
}
