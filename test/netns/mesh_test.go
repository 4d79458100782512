package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	isolation "github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	// wait bounds everything that a test waits for.
	wait = 30 * time.Second
	// interval is between two looks at something that will be so soon.
	interval = 20 * time.Millisecond
)

// ordinary is the number of the user without rights, who needs no account.
const ordinary = 61234

// account is who runs a mesh.
type account struct {
	name string
	attr *syscall.SysProcAttr
	env  []string
	uid  int
}

// root is who runs the tests.
func root(t *testing.T) account {
	t.Helper()
	if testing.Short() {
		t.Skip("short: namespaces and processes take their time")
	}
	if err := isolation.Check(isolation.Isolation{User: os.Getuid() != 0, PID: true}); isolation.Denied(err) {
		t.Skipf("namespaces cannot be made here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return account{name: "root", attr: &syscall.SysProcAttr{}, env: os.Environ(), uid: os.Getuid()}
}

// sailor is the ordinary user; who is not root is one already.
func sailor(t *testing.T) account {
	t.Helper()
	a := root(t)
	if a.uid != 0 {
		t.Skip("only root can run a mesh as somebody else, too")
	}
	a = account{name: "ordinary", uid: ordinary, env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/"}}
	a.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
	probe := exec.Command("unshare", "--user", "--map-root-user", "--net", "true")
	probe.SysProcAttr = a.attr
	text, err := probe.CombinedOutput()
	if err != nil && strings.Contains(string(text), "ermitted") {
		t.Skipf("the user %d cannot make namespaces: %s", ordinary, text)
	} else if err != nil {
		t.Fatalf("ask whether the user %d can make namespaces: %v: %s", ordinary, err, text)
	}
	return a
}

// meshes counts the meshes of this process, for their names.
var meshes atomic.Int32

// rig is a mesh of its own on this machine.
type rig struct {
	t      *testing.T
	who    account
	name   string
	run    string // The run directory.
	dir    string // Where the account may write.
	agents int
}

// newRig names a mesh; the first workload or demo starts it.
func newRig(t *testing.T, who account) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "lt") //nolint:usetesting // t.TempDir is too long for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, who.uid, -1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m := &rig{t: t, who: who, dir: dir, name: fmt.Sprintf("t%d-%d", os.Getpid(), meshes.Add(1))}
	m.run = filepath.Join("/run/lateen", m.name)
	if who.uid != 0 {
		m.run = filepath.Join(dir, "lateen", m.name)
	}
	t.Cleanup(func() {
		if t.Failed() {
			m.logs()
		}
		if out, code := m.lateen("demo", "--clean"); code != 0 {
			t.Errorf("clean up: %s", out)
		}
	})
	return m
}

// logs shows what the processes of the mesh have said.
func (m *rig) logs() {
	files, _ := filepath.Glob(filepath.Join(m.run, "logs", "*.log"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || len(text) == 0 {
			continue
		}
		lines := strings.SplitAfter(string(text), "\n")
		m.t.Logf("%s:\n%s", filepath.Base(f), strings.Join(lines[max(0, len(lines)-30):], ""))
	}
}

// command is a lateen that has not begun.
func (m *rig) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "lateen"), append([]string{"--mesh", m.name}, args...)...)
	cmd.Env = append(m.who.env, "XDG_RUNTIME_DIR="+m.dir, "NO_COLOR=1")
	attr := *m.who.attr
	cmd.SysProcAttr = &attr
	cmd.Dir = m.dir
	return cmd
}

// lateen runs lateen to its end and returns what it said and its code.
func (m *rig) lateen(args ...string) (string, int) {
	m.t.Helper()
	out, errs, code := m.lateenStreams(args...)
	return out + errs, code
}

func (m *rig) lateenStreams(args ...string) (string, string, int) {
	m.t.Helper()
	cmd := m.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return out.String(), errs.String(), 0
}

// write writes a file that the account can read.
func (m *rig) write(name, text string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// apply applies objects, which must be accepted, and returns what was said.
func (m *rig) apply(yaml string) string {
	m.t.Helper()
	out, code := m.lateen("apply", "-f", m.write("apply.yaml", yaml))
	if code != 0 {
		m.t.Fatalf("apply: code %d\n%s\n%s", code, out, yaml)
	}
	return out
}

// applyExample applies files of the Bookinfo example.
func (m *rig) applyExample(files ...string) {
	m.t.Helper()
	args := []string{"apply"}
	for _, f := range files {
		args = append(args, "-f", filepath.Join(bin, "..", "examples", "bookinfo", f))
	}
	if out, code := m.lateen(args...); code != 0 {
		m.t.Fatalf("apply %v: code %d\n%s", files, code, out)
	}
}

// remove deletes an object.
func (m *rig) remove(kind, name string) {
	m.t.Helper()
	if out, code := m.lateen("delete", kind, name); code != 0 {
		m.t.Fatalf("delete %s %s: code %d\n%s", kind, name, code, out)
	}
}

// unix calls a Unix socket of the mesh.
func (m *rig) unix(socket, method, path, body string) (int, []byte, error) {
	client := http.Client{Timeout: wait, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequest(method, "http://mesh"+path, strings.NewReader(body)) //nolint:noctx // The client has a timeout.
	if err != nil {
		return 0, nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, text, err
}

// control calls the control plane and reads its answer into out.
func (m *rig) control(method, path, body string, out any) error {
	status, text, err := m.unix(filepath.Join(m.run, "api.sock"), method, path, body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, text)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(text, out)
	}
	return err
}

// eventually tries f until it succeeds, at most for the wait.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(wait)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// processes returns the processes that run this test's binaries: command lines by number.
func processes() map[int]string {
	out := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || !strings.HasPrefix(exe, bin+"/") {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		out[pid] = strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")
	}
	return out
}

// children returns the processes of this test's binaries below the host of the mesh, by the name of their program.
func (m *rig) children(program string) []int {
	text, err := os.ReadFile(filepath.Join(m.run, "host.pid"))
	if err != nil {
		return nil
	}
	host, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	var out []int
	for pid, line := range processes() {
		name, _, _ := strings.Cut(line, " ")
		if filepath.Base(name) != program {
			continue
		}
		for p := pid; p > 1; p = parent(p) {
			if p == host {
				out = append(out, pid)
			}
		}
	}
	return out
}

func parent(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	p, _ := strconv.Atoi(fields[1])
	return p
}
