package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/test/world"
)

// machine is what the figures depend on besides us.
type machine struct {
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Go       string            `json:"go"`
	Versions map[string]string `json:"versions"` // of the peers
	commit   string
}

// findTools finds the programs that are measured, and builds our own. Peers that are not here leave the list, and missing
// says why.
func findTools(ctx context.Context, cfg *config, dir string) (t tools, missing []string, err error) {
	if t.self, err = os.Executable(); err != nil {
		return t, nil, fmt.Errorf("find this program's own file: %w", err)
	}
	t.lateen = filepath.Join(dir, "lateen-proxy")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", t.lateen, "github.com/lateen-mesh/lateen/cmd/lateen-proxy")
	if out, err := build.CombinedOutput(); err != nil {
		return t, nil, fmt.Errorf("build lateen-proxy: %w: %s", err, out)
	}
	t.paths = map[string]string{}
	cfg.peers = slices.DeleteFunc(cfg.peers, func(name string) bool {
		path, err := find(name, cfg.other)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s is left out: tools/setup-bench installs it: %v", name, err))
			return true
		}
		t.paths[name] = path
		return false
	})
	return t, missing, nil
}

// find looks for a peer's program.
func find(name, other string) (string, error) {
	switch name {
	case peerEnvoy:
		return world.EnvoyBinary()
	case peerOther:
		return exec.LookPath(other)
	}
	return exec.LookPath(name)
}

var number = regexp.MustCompile(`\d+\.\d+[.\d]*`)

// describe reads what the report says about the machine and the programs.
func describe(ctx context.Context, cfg config, t tools) (machine, error) {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version(), Versions: map[string]string{}}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("read the CPU's model: %w", err)
	}
	m.Cores = bytes.Count(text, []byte("processor\t:"))
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan() && m.CPU == ""; {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("read the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	for _, p := range cfg.peers {
		flag := "-v"
		switch p {
		case peerEnvoy:
			flag = "--version"
		case peerOther:
			m.Versions[p] = t.paths[p]
			continue
		}
		out, err := exec.CommandContext(ctx, t.paths[p], flag).CombinedOutput()
		if err != nil {
			m.Versions[p] = "of an unknown version" // whether it runs is seen when it is started
			continue
		}
		m.Versions[p] = number.FindString(string(out))
	}
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return m, fmt.Errorf("ask git for the commit: %w", err)
	}
	m.commit = strings.TrimSpace(string(out))
	return m, nil
}
