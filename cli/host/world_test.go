package host_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/cli/host"
	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	// patience is how long a test waits for what must come.
	patience = 2 * time.Minute
	// stranger is a user id that nobody has.
	stranger = 60123
)

// world is a folder with the programs of a mesh and its run directory.
type world struct {
	t       *testing.T
	dir     host.Dir
	bin     string
	journal string
	uid     int
	env     []string
	linger  time.Duration
	links   int
	files   []*os.File // What clients have open besides their standard files.
	machine *machine   // Where clients run; nil: on this one.
}

// each runs a test as root and as an ordinary user.
func each(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("root", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		t.Parallel()
		test(t, newWorld(t, 0))
	})
	t.Run("user", func(t *testing.T) {
		t.Parallel()
		uid := os.Geteuid()
		if uid == 0 {
			uid = stranger
		}
		test(t, newWorld(t, uid))
	})
}

func newWorld(t *testing.T, uid int) *world {
	t.Helper()
	base, err := os.MkdirTemp("", "lt") //nolint:usetesting // Shorter than TempDir: paths of sockets are bounded.
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, bin: filepath.Join(base, "bin"), journal: filepath.Join(base, "journal"), uid: uid, linger: 50 * time.Millisecond, links: links(t)}
	run := filepath.Join(base, "run")
	w.dir = host.Dir(filepath.Join(run, "mesh"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	check := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	check(os.Chmod(base, 0o755), os.Mkdir(w.bin, 0o755), os.Mkdir(run, 0o700), os.Chown(run, uid, uid),
		copyFile(self, w.program("lateen")), os.Link(w.program("lateen"), w.program("lateend")),
		os.Link(w.program("lateen"), w.program("lateen-proxy")), os.WriteFile(w.journal, nil, 0o600),
		os.Chmod(w.journal, 0o666))
	t.Cleanup(func() {
		if t.Failed() {
			w.showLogs()
		}
		for _, pid := range w.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		check(os.RemoveAll(base))
	})
	if denied, err := w.command("check").CombinedOutput(); err != nil {
		t.Fatalf("ask whether namespaces can be made here: %v: %s", err, denied)
	} else if len(denied) > 0 {
		t.Skipf("namespaces cannot be made here: %s", denied)
	}
	return w
}

// copyFile copies a program. No process is started meanwhile: it would have the copy open for writing, and until
// it let go the copy could not be run (ETXTBSY).
func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(to, text, 0o755)
}

func (w *world) program(name string) string { return filepath.Join(w.bin, name) }

func (w *world) showLogs() {
	logs, _ := filepath.Glob(w.dir.Log("*"))
	for _, path := range logs {
		w.t.Logf("%s:\n%s", filepath.Base(path), host.LastLines(path))
	}
	text, _ := os.ReadFile(w.journal)
	w.t.Logf("journal:\n%s", text)
}

// command is the double of lateen, run by the world's user.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), w.program("lateen"), args...)
	// A program that was built with -race otherwise waits for a second when it ends.
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0 halt_on_error=1", journalVariable+"="+w.journal, lingerVariable+"="+w.linger.String()), w.env...)
	cmd.Dir = "/"
	cmd.ExtraFiles = w.files
	if w.machine != nil {
		return w.machine.command(cmd, w.uid)
	}
	if w.uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(w.uid), Gid: uint32(w.uid)}}
	}
	return cmd
}

// workload is a shell script in the mesh.
func workload(name, script string) host.Workload {
	return host.Workload{
		Name: name, Namespace: "default", ServiceAccount: "default", Role: host.RoleSidecar,
		Command: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/",
		Grace: 5 * time.Second, Drain: time.Second,
	}
}

// client is a running client of the host.
type client struct {
	*exec.Cmd
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
	err *strings.Builder
}

// start starts a client that runs a workload; how is "run" or "follow".
func (w *world) start(how string, load host.Workload) *client {
	w.t.Helper()
	text, err := json.Marshal(load)
	if err != nil {
		w.t.Fatal(err)
	}
	c := &client{Cmd: w.command(how, string(w.dir), string(text)), t: w.t, err: &strings.Builder{}}
	c.Stderr = c.err
	if c.in, err = c.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	begin := c.Start
	if w.machine != nil {
		begin = func() error { return netns.Do(w.machine.near, c.Start) }
	}
	if err := begin(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c
}

// events reads events until one of a kind has come, and returns their kinds and the last one.
func (c *client) events(until string) (kinds []string, last host.Event) {
	c.t.Helper()
	for last.Kind != until {
		line, err := c.out.ReadString('\n')
		if err != nil {
			_ = c.Wait()
			c.t.Fatalf("waiting for %q after %v: %v: %s", until, kinds, err, c.err)
		}
		if !strings.HasPrefix(line, "{") {
			continue
		}
		last = host.Event{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			c.t.Fatal(err)
		}
		kinds = append(kinds, last.Kind)
	}
	return kinds, last
}

// failure waits for the client's end and returns what it said.
func (c *client) failure() string {
	c.t.Helper()
	_, _ = io.Copy(io.Discard, c.out)
	if err := c.Wait(); err == nil {
		c.t.Error("the client did not fail")
	}
	return c.err.String()
}

// await polls until something is so: there is no event to wait for when foreign processes end.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// processes are those that run a program of the world.
func (w *world) processes() (pids []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if pid, perr := strconv.Atoi(strings.Split(path, "/")[2]); err == nil && perr == nil &&
			(strings.HasPrefix(string(text), w.bin) || strings.Contains(string(text), w.journal)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// program finds the one process of a program with such a first argument.
func (w *world) process(program, argument string) int {
	w.t.Helper()
	for _, pid := range w.processes() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if args := strings.Split(string(text), "\x00"); args[0] == w.program(program) && slices.Contains(args, argument) {
			return pid
		}
	}
	w.t.Fatalf("no %s %s runs", program, argument)
	return 0
}

// links counts the machine's interfaces that a mesh may have made: others may make some meanwhile, too.
func links(t *testing.T) (n int) {
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if strings.HasPrefix(i.Name, "lateen") {
			n++
		}
	}
	return n
}

// nothingLeft waits until no process is left, and looks for links and, unless it was killed, the directory.
func (w *world) nothingLeft(killed bool) {
	w.t.Helper()
	await(w.t, "the end of all processes", func() bool { return len(w.processes()) == 0 })
	if got := links(w.t); got != w.links {
		w.t.Errorf("%d links on the machine, before %d", got, w.links)
	}
	left, _ := filepath.Glob(filepath.Dir(string(w.dir)) + "/*")
	if !killed && len(left) > 0 {
		w.t.Errorf("these are left: %v", left)
	}
}

// lines are what the programs wrote down.
func (w *world) lines() []string {
	text, err := os.ReadFile(w.journal)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// write is a script's command that adds a line to the journal.
func (w *world) write(line string) string { return fmt.Sprintf("echo %s >> %s; ", line, w.journal) }
