package host_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/cli/host"
)

const (
	// patience is how long a test waits for what must come.
	patience = 30 * time.Second
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
	if out, err := w.command("check").CombinedOutput(); err != nil {
		t.Skipf("namespaces cannot be made here: %s", out)
	}
	return w
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
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
	if err := c.Start(); err != nil {
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

// links counts the machine's interfaces.
func links(t *testing.T) int {
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
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

func TestWorkload(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		load := workload("one", w.write("app '$HOSTNAME' $(cat /etc/resolv.conf | head -1)")+"exit 7")
		c := w.start("run", load)
		kinds, _ := c.events(host.EventStarted)
		more, last := c.events(host.EventExited)
		rest, _ := c.events(host.EventDone)
		want := []string{host.EventStarted, host.EventProxy, host.EventReady, host.EventExited, host.EventDone}
		got := slices.Concat(kinds, more, rest)
		if i := slices.Index(got, host.EventReady); i < 0 { // The command may end before it counts as ready.
			want = slices.Delete(want, 2, 3)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if last.Code != 7 {
			t.Errorf("exit code %d, want 7", last.Code)
		}
		w.nothingLeft(false)
		wantLines := []string{"lateend start", "proxy ready", "app $HOSTNAME nameserver 10.77.0.1", "gone", "proxy end"}
		gotLines := w.lines()
		if i := slices.Index(gotLines, "gone"); i > 3 { // It goes to lateend while the proxy ends.
			gotLines[3], gotLines[i] = gotLines[i], gotLines[3]
		}
		if diff := cmp.Diff(wantLines, gotLines); diff != "" {
			t.Error(diff)
		}
	})
}

// TestCapabilities: no command can change its capture rules, mark its sockets or leave.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		c := w.start("run", workload("caps", "grep CapBnd /proc/self/status >> "+w.journal))
		c.events(host.EventDone)
		line := w.lines()[2]
		bits, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(line, "CapBnd:")), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		const netAdmin, netRaw, sysAdmin, ptrace = 1 << 12, 1 << 13, 1 << 21, 1 << 19
		if bits&(netAdmin|netRaw|sysAdmin|ptrace) != 0 {
			t.Errorf("the command may have the capabilities %x", bits)
		}
	})
}

// looping is a script that goes on until SIGTERM, and then ends with code 3.
func (w *world) looping() string {
	return "trap '" + w.write("app term") + "exit 3' TERM; " + w.write("app start") + "while :; do sleep 0.02; done"
}

func TestStop(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		c := w.start("run", workload("one", w.looping()))
		c.events(host.EventReady)
		await(t, "the app's start", func() bool { return slices.Contains(w.lines(), "app start") })
		if _, err := io.WriteString(c.in, "stop\n"); err != nil {
			t.Fatal(err)
		}
		if _, ev := c.events(host.EventExited); ev.Code != 3 {
			t.Errorf("exit code %d, want 3", ev.Code)
		}
		c.events(host.EventDone)
		w.nothingLeft(false)
		got := w.lines()
		order := []string{"lateend start", "proxy ready", "app start", "draining", "app term", "proxy end"}
		got = slices.DeleteFunc(got, func(line string) bool { return line == "gone" })
		if diff := cmp.Diff(order, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestStubborn: a command that does not end is killed after its grace, with all that it started.
func TestStubborn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		load := workload("one", "trap '' TERM; "+w.write("app start")+"(while :; do sleep 0.02; done; : "+w.journal+") & while :; do sleep 0.02; done")
		load.Grace = 100 * time.Millisecond
		c := w.start("run", load)
		await(t, "the app's start", func() bool { return slices.Contains(w.lines(), "app start") })
		if _, err := io.WriteString(c.in, "stop\n"); err != nil {
			t.Fatal(err)
		}
		if _, ev := c.events(host.EventExited); ev.Code != 128+9 {
			t.Errorf("exit code %d, want 137", ev.Code)
		}
		c.events(host.EventDone)
		w.nothingLeft(false)
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		load := workload("one", w.looping())
		load.Probe = "http://:15021/" // The double of the proxy answers it.
		c := w.start("run", load)
		c.events(host.EventReady)
		if out, err := w.command("stop", string(w.dir), "one").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		c.events(host.EventDone)
		var states []string
		for _, line := range w.lines() {
			if slices.Contains([]string{"healthy", "unhealthy", "draining", "gone"}, line) {
				states = append(states, line)
			}
		}
		if diff := cmp.Diff([]string{"unhealthy", "healthy", "draining", "gone"}, states); diff != "" {
			t.Error(diff)
		}
	})
}

// TestSockets: sockets that were opened outside are served from inside, and reached from outside.
func TestSockets(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		load := workload("gate", "")
		load.Command, load.Role, load.Sockets = nil, host.RoleGateway, []string{"8080", "admin"}
		c := w.start("run", load)
		for _, name := range load.Sockets {
			line, err := c.out.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if got := fetch(t, "http://"+strings.TrimSpace(line)); got != name+" of gate" {
				t.Errorf("%s answers %q", name, got)
			}
		}
		c.events(host.EventReady)
		if _, err := io.WriteString(c.in, "stop\n"); err != nil {
			t.Fatal(err)
		}
		c.events(host.EventDone)
		w.nothingLeft(false)
	})
}

// fetch waits until somebody accepts: connections wait in the socket's queue meanwhile.
func fetch(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestKilled kills the client, the host, or the host's owner with SIGKILL: no process, link or namespace stays, and
// the next one starts as if nothing had been.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, how string
		victim    func(w *world, c *client) int
		killed    bool // The run directory stays.
	}{
		{"client", "run", func(_ *world, c *client) int { return c.Process.Pid }, false},
		{"host", "run", func(w *world, _ *client) int { return w.process("lateen", "host") }, true},
		{"owner", "follow", func(_ *world, c *client) int { return c.Process.Pid }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				c := w.start(test.how, workload("one", w.looping()))
				c.events(host.EventReady)
				if err := syscall.Kill(test.victim(w, c), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if text := c.failure(); test.name == "host" && !strings.Contains(text, "the host has ended") {
					t.Errorf("the client says %q", text)
				}
				w.nothingLeft(test.killed)
				again := w.start("run", workload("one", "true"))
				again.events(host.EventDone)
				w.nothingLeft(false)
			})
		})
	}
}

// TestFollow: a host that follows its client ends with it, and takes everything with it.
func TestFollow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		load := workload("one", w.looping())
		load.Detach = true
		c := w.start("follow", load)
		c.events(host.EventReady)
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %s", err, c.err)
		}
		w.nothingLeft(false)
	})
}

// TestDetach: a detached workload outlives its client until it is stopped, or all is cleaned.
func TestDetach(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		for _, end := range [][]string{{"stop", string(w.dir), "one"}, {"clean", string(w.dir)}} {
			load := workload("one", w.looping())
			load.Detach = true
			c := w.start("run", load)
			c.events(host.EventReady)
			if err := c.Wait(); err != nil {
				t.Errorf("%v: %s", err, c.err)
			}
			w.process("lateen-proxy", "--config")
			if out, err := w.command(end...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v: %s", end, err, out)
			}
			w.nothingLeft(false)
		}
	})
}

// TestControlRestarts: a control plane that is killed comes back, and the workloads do not notice.
func TestControlRestarts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		c := w.start("run", workload("one", w.looping()))
		c.events(host.EventReady)
		if err := syscall.Kill(w.process("lateend", "--api"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		starts := func() (n int) {
			for _, line := range w.lines() {
				if line == "lateend start" {
					n++
				}
			}
			return n
		}
		await(t, "the control plane's second start", func() bool { return starts() == 2 })
		second := w.start("run", workload("two", "true"))
		second.events(host.EventDone)
		if _, err := io.WriteString(c.in, "stop\n"); err != nil {
			t.Fatal(err)
		}
		if _, ev := c.events(host.EventExited); ev.Code != 3 {
			t.Errorf("exit code %d, want 3", ev.Code)
		}
	})
}

// TestProxyDies: without its proxy a command does not run on.
func TestProxyDies(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		c := w.start("run", workload("one", w.looping()))
		c.events(host.EventReady)
		if err := syscall.Kill(w.process("lateen-proxy", "--config"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if text := c.failure(); !strings.Contains(text, "the proxy ended with code 137, and with it the workload") {
			t.Errorf("the client says %q", text)
		}
		w.nothingLeft(false)
	})
}

// TestTogether starts several workloads at once where no host runs yet.
func TestTogether(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		w.linger = 2 * time.Second // One host is to serve all.
		var clients []*client
		for i := range 4 {
			clients = append(clients, w.start("run", workload(fmt.Sprint("w", i), "true")))
		}
		for _, c := range clients {
			c.events(host.EventDone)
		}
		w.nothingLeft(false)
		starts := slices.DeleteFunc(w.lines(), func(line string) bool { return line != "lateend start" })
		if len(starts) != 1 {
			t.Errorf("the control plane was started %d times", len(starts))
		}
	})
}

// TestRefused: what cannot be is refused with a message that says what to do.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, os.Geteuid())
	broken := workload("one", "true")
	w.env = []string{brokenVariable + "=lateend"}
	if text := w.start("run", broken).failure(); !strings.Contains(text, "the state folder is on fire") {
		t.Errorf("of a control plane that does not start it says %q", text)
	}
	w.nothingLeft(false)
	w.env = nil
	first := w.start("run", workload("one", w.looping()))
	first.events(host.EventReady)
	wrong, nobody, nothing := workload("No!", "true"), workload("two", "true"), workload("three", "true")
	nobody.ServiceAccount = "nobody"
	nothing.Command = []string{"/no/such/program"}
	for _, test := range []struct {
		load host.Workload
		want string
	}{
		{workload("one", "true"), `the name "one" is in use`},
		{wrong, `the name "No!" is not a label`},
		{nobody, "nobody may join"},
	} {
		if text := w.start("run", test.load).failure(); !strings.Contains(text, test.want) {
			t.Errorf("of %s it says %q, want %q", test.load.Name, text, test.want)
		}
	}
	if _, ev := w.start("run", nothing).events(host.EventExited); ev.Code == 0 {
		t.Error("a program that is not there ended well")
	}
	if err := os.Remove(w.program("lateen-proxy")); err != nil {
		t.Fatal(err)
	}
	if text := w.start("run", workload("four", "true")).failure(); !strings.Contains(text, "make build") {
		t.Errorf("without lateen-proxy it says %q", text)
	}
}
