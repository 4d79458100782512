package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// workload is a `lateen run` whose command is the agent.
type workload struct {
	m      *rig
	name   string
	socket string
	cmd    *exec.Cmd
	said   *buffer
	ended  chan struct{}
	err    error // Of the command, after ended.
}

// buffer may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// start starts a workload and returns when it is in the mesh.
func (m *rig) start(name string, flags ...string) *workload {
	m.t.Helper()
	m.agents++
	w := &workload{m: m, name: name, socket: filepath.Join(m.dir, fmt.Sprintf("%s-%d.sock", name, m.agents)), said: &buffer{}, ended: make(chan struct{})}
	args := append([]string{"run", "--name", name}, flags...)
	w.cmd = m.command(append(args, "--", filepath.Join(bin, "agent"), w.socket)...)
	w.cmd.Stdout, w.cmd.Stderr = w.said, w.said
	if err := w.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		w.err = w.cmd.Wait()
		close(w.ended)
	}()
	m.t.Cleanup(w.stop)
	eventually(m.t, name+" runs", func() error {
		select {
		case <-w.ended:
			m.t.Fatalf("%s ended: %v: %s", name, w.err, w.said)
		default:
		}
		if _, err := os.Stat(w.socket); err != nil {
			return fmt.Errorf("%w; it said %q", err, w.said)
		}
		if !strings.Contains(w.said.String(), "is in the mesh") {
			return fmt.Errorf("it said %q", w.said)
		}
		return nil
	})
	return w
}

// stop ends the workload as a person would.
func (w *workload) stop() {
	_ = w.cmd.Process.Signal(os.Interrupt)
	select {
	case <-w.ended:
	case <-time.After(wait):
		w.m.t.Errorf("%s did not end: %s", w.name, w.said)
		_ = w.cmd.Process.Kill()
		<-w.ended
	}
}

// request and answer are the agent's (see its package).
type request struct {
	Dial   []string `json:"dial,omitempty"`
	Listen []string `json:"listen,omitempty"`
	Exec   []string `json:"exec,omitempty"`
}

type answer struct {
	Error string `json:"error"`
	Code  int    `json:"code"`
}

// ask asks the agent, until ctx ends.
func (w *workload) ask(ctx context.Context, r request, files ...*os.File) (answer, *os.File, error) {
	var a answer
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: w.socket, Net: "unix"})
	if err != nil {
		return a, nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	text, err := json.Marshal(r)
	if err != nil {
		return a, nil, err
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = syscall.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(text, rights, nil); err != nil {
		return a, nil, err
	}
	line, oob := make([]byte, 64<<10), make([]byte, syscall.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(line, oob)
	if err != nil {
		return a, nil, errors.Join(err, ctx.Err())
	}
	if err := json.Unmarshal(line[:n], &a); err != nil {
		return a, nil, fmt.Errorf("%w: %q", err, line[:n])
	}
	if a.Error != "" {
		return a, nil, errors.New(a.Error)
	}
	if oobn == 0 {
		return a, nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return a, nil, err
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return a, nil, err
	}
	return a, os.NewFile(uintptr(fds[0]), "socket"), nil
}

// dial opens a connection from inside the workload.
func (w *workload) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, f, err := w.ask(ctx, request{Dial: []string{network, address}})
	if err != nil {
		return nil, fmt.Errorf("dial %s in %s: %w", address, w.name, err)
	}
	defer f.Close()
	return net.FileConn(f)
}

// mustDial is dial to a TCP address, for connections that live as long as the test.
func (w *workload) mustDial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := w.dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// listen opens a TCP port inside the workload.
func (w *workload) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	_, f, err := w.ask(t.Context(), request{Listen: []string{"tcp", address}})
	if err != nil {
		t.Fatalf("listen on %s in %s: %v", address, w.name, err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// http is an HTTP client inside the workload, without connections that are kept.
func (w *workload) http() *http.Client {
	return &http.Client{
		Timeout: wait,
		Transport: &http.Transport{
			DisableKeepAlives: true, DisableCompression: true,
			DialContext: w.dial,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// result is what a program did.
type result struct {
	out, err string
	code     int
}

// exec runs a program inside the workload; it is skipped if there is no such program.
func (w *workload) exec(t *testing.T, stdin string, argv ...string) result {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("%s is not installed; tools/setup does it", argv[0])
	}
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"in", "out", "err"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if _, err := files[0].WriteString(stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := files[0].Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a, _, err := w.ask(ctx, request{Exec: argv}, files...)
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	out, _ := os.ReadFile(filepath.Join(dir, "out"))
	errs, _ := os.ReadFile(filepath.Join(dir, "err"))
	return result{string(out), string(errs), a.Code}
}

// address is the workload's first address of the family.
func (w *workload) address(t *testing.T, network string) string {
	t.Helper()
	c, err := w.dial(t.Context(), "udp"+strings.TrimPrefix(network, "tcp"), map[string]string{"tcp4": "10.77.0.1:9", "tcp6": "[fd77::1]:9"}[network])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).IP.String()
}

// admin asks the proxy's admin page.
func (w *workload) admin(path string) (string, error) {
	status, text, err := w.m.unix(filepath.Join(w.m.run, "proxies", "default."+w.name+".sock"), http.MethodGet, path, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", path, status, text)
	}
	return string(text), err
}

// memory is the proxy's resident memory in MiB.
func (w *workload) memory(t *testing.T) float64 {
	t.Helper()
	text, err := w.admin("/status")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		RSS float64 `json:"rss_mib"`
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s.RSS
}
