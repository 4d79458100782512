package host_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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
		lines := w.lines()
		if i := slices.Index(lines, "unhealthy"); i < 0 || i > slices.Index(lines, "proxy ready") {
			t.Errorf("the proxy joins before it is said that nobody may call yet: %q", lines)
		}
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
		w.linger = patience // One host is to serve all, however long the machine takes for them.
		var clients []*client
		for i := range 4 {
			clients = append(clients, w.start("run", workload(fmt.Sprint("w", i), "true")))
		}
		for _, c := range clients {
			c.events(host.EventDone)
		}
		if out, err := w.command("clean", string(w.dir)).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		w.nothingLeft(false)
		starts := slices.DeleteFunc(w.lines(), func(line string) bool { return line != "lateend start" })
		if len(starts) != 1 {
			t.Errorf("the control plane was started %d times", len(starts))
		}
	})
}

// TestLogs: a command that says too much does not fill the run directory, nor is it held up.
func TestLogs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		w.linger = patience // The directory is to stay.
		c := w.start("run", workload("one", "i=0; while [ $i -lt 40 ]; do head -c 100000 /dev/zero; i=$((i+1)); done"))
		c.events(host.EventDone)
		logs, err := filepath.Glob(filepath.Join(filepath.Dir(w.dir.Log("")), "default.one.log*"))
		if err != nil {
			t.Fatal(err)
		}
		sizes := map[string]int64{}
		for _, path := range logs {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if sizes[filepath.Ext(path)] = info.Size(); info.Size() > 1<<20 {
				t.Errorf("%s has %d bytes", path, info.Size())
			}
		}
		if sizes[".log"] == 0 || sizes[".old"] == 0 {
			t.Errorf("the logs have sizes %v", sizes)
		}
		if out, err := w.command("clean", string(w.dir)).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestInheritedFiles: what the shell had open is kept from all that lives on after the client.
func TestInheritedFiles(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		load := workload("one", w.looping())
		load.Detach = true
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = read.Close() }()
		w.files = slices.Repeat([]*os.File{write}, 8) // The first of them have numbers that the host uses itself.
		c := w.start("run", load)
		_ = write.Close()
		c.events(host.EventReady)
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %s", err, c.err)
		}
		if err := read.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := read.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the pipe that the client had is still open: %v", err)
		}
		w.files = nil
		if out, err := w.command("clean", string(w.dir)).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestSwept: the next start, and cleaning, remove what a host left that was killed while it removed its directory.
func TestSwept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, os.Geteuid())
	left := string(w.dir) + ".ended-1"
	for _, end := range []func(){
		func() { w.start("run", workload("one", "true")).events(host.EventDone) },
		func() {
			if out, err := w.command("clean", string(w.dir)).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		},
	} {
		if err := os.MkdirAll(filepath.Join(left, "logs"), 0o700); err != nil {
			t.Fatal(err)
		}
		end()
		w.nothingLeft(false)
	}
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
