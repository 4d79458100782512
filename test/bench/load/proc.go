package load

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CPU is the user and system time that the processes have used so far, from the scheduler's own clock.
func CPU(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil || len(names) == 0 {
			return 0, fmt.Errorf("read the CPU time of process %d: it is gone", pid)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // a thread that has just ended
			}
			ns, _, _ := bytes.Cut(text, []byte(" "))
			n, err := strconv.ParseInt(string(ns), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", name, err)
			}
			sum += time.Duration(n)
		}
	}
	return sum, nil
}

// PSS is the processes' proportional share of memory in bytes, and how much of it is anonymous.
func PSS(pids []int) (pss, anonymous int64, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
			f := strings.Fields(s.Text())
			if len(f) < 2 {
				continue
			}
			kib, _ := strconv.ParseInt(f[1], 10, 64) // a line of another form counts nothing
			switch f[0] {
			case "Pss:":
				pss += kib << 10
			case "Pss_Anon:":
				anonymous += kib << 10
			}
		}
	}
	return pss, anonymous, nil
}

// Tree is a process and all its descendants.
func Tree(pid int) []int {
	out := []int{pid}
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return out
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that has just ended
		}
		for child := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(child); err == nil {
				out = append(out, Tree(n)...)
			}
		}
	}
	return out
}
