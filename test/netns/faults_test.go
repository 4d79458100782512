package netns

import (
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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// load calls a URL from a workload, from several places at once, until it is stopped.
type load struct {
	client *http.Client
	url    string
	stop   context.CancelFunc
	done   sync.WaitGroup
	count  atomic.Int64

	mu     sync.Mutex
	failed []string
}

// callers is how many call at once.
const callers = 4

func startLoad(t *testing.T, w *workload, url string) *load {
	t.Helper()
	l := &load{url: url, client: &http.Client{Timeout: wait, Transport: &http.Transport{DialContext: w.dial, MaxIdleConnsPerHost: callers}}}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	for range callers {
		l.done.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				l.once(n%10 == 0)
			}
		})
	}
	t.Cleanup(func() { cancel(); l.done.Wait(); l.client.CloseIdleConnections() })
	return l
}

// once sends one request, the last of its connection or not.
func (l *load) once(last bool) {
	req, err := http.NewRequest(http.MethodGet, l.url, nil) //nolint:noctx // The client has a timeout.
	if err != nil {
		return
	}
	req.Close = last
	text := ""
	res, err := l.client.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			text = fmt.Sprintf("%s %s", res.Status, res.Header.Get("X-Lateen-Reason"))
		}
	}
	if err != nil {
		text = err.Error()
	}
	l.count.Add(1)
	if text != "" {
		l.mu.Lock()
		l.failed = append(l.failed, time.Now().Format("15:04:05.000 ")+text)
		l.mu.Unlock()
	}
}

// more waits until so many further requests are answered.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	from := l.count.Load()
	eventually(t, "the load goes on", func() error {
		if got := l.count.Load() - from; got < n {
			return fmt.Errorf("%d of %d requests", got, n)
		}
		return nil
	})
}

// end stops the load; nothing may have failed, but with what is meant to happen.
func (l *load) end(t *testing.T, meant ...string) {
	t.Helper()
	l.stop()
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = slices.DeleteFunc(l.failed, func(f string) bool {
		return slices.ContainsFunc(meant, func(m string) bool { return strings.Contains(f, m) })
	})
	if len(l.failed) > 0 {
		t.Errorf("%d of %d requests failed:\n%s", len(l.failed), l.count.Load(), strings.Join(l.failed[:min(10, len(l.failed))], "\n"))
	}
	if l.count.Load() == 0 {
		t.Error("no request was sent")
	}
}

func TestFaults(t *testing.T) {
	w := newWorld(t, root(t))
	second := w.start("shop-v2", "--labels", "app=shop,version=v2", "--service-account", "shop", "--port", "http=8080")
	serveHTTP(t, second.listen(t, ":8080"))
	t.Run("control plane killed under load", w.controlKilled)
	t.Run("control plane hangs under load", w.controlHangs)
	t.Run("strict under load", w.strictUnderLoad)
	t.Run("subsets and routes together under load", w.togetherUnderLoad)
	t.Run("bad objects", w.badObjects)
	t.Run("bad file in the folder", w.badFile)
	t.Run("missing host and subset", w.missing)
	t.Run("conflicts", w.conflicts)
	t.Run("endpoint leaves under load", func(t *testing.T) { w.endpointLeaves(t, second) })
	t.Run("the same name twice", func(t *testing.T) {
		out, code := w.lateen("run", "--name", "caller", "--", "true")
		if want := `the name "caller" is in use in namespace "default"`; code != 1 || !strings.Contains(out, want) {
			t.Errorf("code %d: %s", code, out)
		}
	})
	t.Run("the same mesh twice", func(t *testing.T) {
		out, code := w.lateen("demo", "--headless", "--for", "1s")
		if want := "runs already; end it with `lateen demo --clean`"; code != 1 || !strings.Contains(out, want) {
			t.Errorf("code %d: %s", code, out)
		}
	})
	t.Run("somebody else's mesh", func(t *testing.T) {
		other := newRig(t, sailor(t))
		cmd := other.command("status", "--mesh", w.name)
		if text, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(text), fmt.Sprintf("no mesh named %q runs here", w.name)) {
			t.Errorf("%v: %s", err, text)
		}
	})
	t.Run("proxy killed", w.proxyKilled)
}

// synced waits until every proxy has its orders from the control plane.
func (m *rig) synced() {
	m.t.Helper()
	eventually(m.t, "every proxy has its orders", func() error {
		out, errs, code := m.lateenStreams("status", "-o", "json")
		if code != 0 {
			return errors.New(errs)
		}
		var list []struct {
			Name              string
			Connected, Synced bool
			Refused           string
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		for _, p := range list {
			if !p.Connected || !p.Synced || p.Refused != "" {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}

// controlPID is the control plane's number, once it serves and is not the old one.
func (m *rig) controlPID(old int) int {
	m.t.Helper()
	pid := 0
	eventually(m.t, "the control plane serves", func() error {
		list := m.children("lateend")
		if len(list) != 1 || list[0] == old {
			return fmt.Errorf("processes %v", list)
		}
		pid = list[0]
		return m.control(http.MethodGet, "/ready", "", nil)
	})
	return pid
}

func (w *world) controlKilled(t *testing.T) {
	l := startLoad(t, w.client, "http://shop/echo")
	l.more(t, 100)
	pid := w.controlPID(0)
	for range 2 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid = w.controlPID(pid)
		w.synced()
		l.more(t, 200)
	}
	// It still rules: what is applied now is obeyed.
	w.apply(virtualService("http: [{directResponse: {status: 418}}]"))
	w.status(t, "http://shop/echo", http.StatusTeapot, "")
	w.remove("VirtualService", "shop")
	w.status(t, "http://shop/echo", http.StatusOK, "")
	l.end(t, "418 ")
}

// controlHangs stops the control plane, so that nobody answers but no connection ends.
func (w *world) controlHangs(t *testing.T) {
	l := startLoad(t, w.client, "http://shop/echo")
	pid := w.controlPID(0)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.more(t, 300)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.synced()
	l.end(t)
}

// virtualService is a route of the shop.
func virtualService(spec string) string {
	return "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: shop}, spec: {hosts: [shop], " + spec + "}}"
}

// destinationRule names the shop's versions.
const destinationRule = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: shop}, " +
	"spec: {host: shop, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}}\n"

// status waits until a URL is answered with a status, and a reason.
func (w *world) status(t *testing.T, url string, want int, reason string) {
	t.Helper()
	eventually(t, url, func() error {
		res, err := w.client.http().Get(url)
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		if got := res.Header.Get("X-Lateen-Reason"); res.StatusCode != want || reason != "" && got != reason {
			return fmt.Errorf("%s, reason %q; want %d %q", res.Status, got, want, reason)
		}
		return nil
	})
}

func (w *world) strictUnderLoad(t *testing.T) {
	l := startLoad(t, w.client, "http://shop/echo")
	for range 3 {
		for _, mode := range []string{"STRICT", "PERMISSIVE"} {
			l.more(t, 50)
			w.apply(meshMode(mode))
		}
	}
	l.more(t, 50)
	w.removeFrom("istio-system", "PeerAuthentication", "default")
	l.more(t, 50)
	l.end(t)
}

func (w *world) togetherUnderLoad(t *testing.T) {
	l := startLoad(t, w.client, "http://shop/echo")
	for range 5 {
		l.more(t, 50)
		w.apply(destinationRule + "---\n" + virtualService("http: [{route: [{destination: {host: shop, subset: v2}}]}]"))
		l.more(t, 50)
		if out, code := w.lateen("delete", "-f", filepath.Join(w.dir, "apply.yaml")); code != 0 {
			t.Fatal(out)
		}
	}
	l.more(t, 50)
	l.end(t)
}

// endpointLeaves ends one of two endpoints, as a person ends it.
func (w *world) endpointLeaves(t *testing.T, second *workload) {
	l := startLoad(t, w.client, "http://shop/echo")
	l.more(t, 100)
	second.stop()
	l.more(t, 100)
	l.end(t)
}

// badObjects must change nothing, and say where they are bad.
func (w *world) badObjects(t *testing.T) {
	good := "{apiVersion: v1, kind: Service, metadata: {name: never}, spec: {ports: [{name: http, port: 80}]}}\n---\n"
	head := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: shop\nspec:\n"
	tests := []struct{ name, yaml, place, says string }{
		{"no yaml", good + "a: [b\nc: d\n", ":3:1: ", "this is not YAML"},
		{"unknown field", good + head + "  hosts: [shop]\n  htp:\n  - route: []\n", ":9:3: ", "htp"},
		{"unknown field below", good + head + "  hosts: [shop]\n  http:\n  - route:\n    - destination:\n        host: shop\n        subst: v1\n", ":13:9: ", "subst"},
		{"wrong type", good + head + "  hosts: shop\n", ":8:10: ", "hosts"},
		{"unknown kind", good + "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata: {name: x}\n", ":4:7: ", "VirtualServce"},
		{"no name", good + "apiVersion: v1\nkind: Service\nspec: {ports: [{port: 80}]}\n", ":3:1: ", "name"},
		{"invalid weight", good + head + "  hosts: [shop]\n  http:\n  - route:\n    - destination: {host: shop}\n      weight: -1\n", ":12:15: ", "weight"},
		{"twice the same", good + good, ":3:", "never"},
		{"nothing of ours", good + "hello: world\n", ":3:1: ", "apiVersion"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := w.write("bad.yaml", tt.yaml)
			out, errs, code := w.lateenStreams("apply", "-f", file)
			if code != 1 || out != "" {
				t.Errorf("code %d, said %q", code, out)
			}
			if !strings.HasPrefix(errs, "Error: nothing was changed, because of:\n") || !strings.Contains(errs, file+tt.place) || !strings.Contains(errs, tt.says) {
				t.Errorf("want %s%s … %s:\n%s", file, tt.place, tt.says, errs)
			}
			if _, code := w.lateen("get", "service", "never"); code == 0 {
				t.Error("a part was applied")
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		if out, code := w.lateen("apply", "-f", "none.yaml"); code != 1 || !strings.Contains(out, "none.yaml: no such file") {
			t.Errorf("code %d: %s", code, out)
		}
	})
	t.Run("usage", func(t *testing.T) {
		if out, code := w.lateen("apply"); code != 2 || !strings.Contains(out, "-f") {
			t.Errorf("code %d: %s", code, out)
		}
	})
}

// badFile writes into the folder behind the control plane's back.
func (w *world) badFile(t *testing.T) {
	file := filepath.Join(w.run, "config", "hand.yaml")
	edit := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Remove(file) })
	edit(virtualService("http: [{directResponse: {status: 418}}]"))
	w.status(t, "http://shop/echo", http.StatusTeapot, "")
	edit(virtualService("http: [{directResponse: {status: 418}, nonsense: 1}]"))
	eventually(t, "lateen status says why", func() error {
		out, code := w.lateen("status")
		if code != 0 || !strings.Contains(out, file+":1:") || !strings.Contains(out, "nonsense") {
			return fmt.Errorf("code %d:\n%s", code, out)
		}
		return nil
	})
	w.status(t, "http://shop/echo", http.StatusTeapot, "") // The last good one stays.
	t.Run("also after a restart", func(t *testing.T) {
		pid := w.controlPID(0)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.controlPID(pid)
		w.synced()
		w.status(t, "http://shop/echo", http.StatusTeapot, "")
	})
	edit(virtualService("http: [{directResponse: {status: 410}}]"))
	w.status(t, "http://shop/echo", http.StatusGone, "")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.status(t, "http://shop/echo", http.StatusOK, "")
	if out, _ := w.lateen("status"); strings.Contains(out, "hand.yaml") {
		t.Errorf("it is still complained of:\n%s", out)
	}
}

func (w *world) missing(t *testing.T) {
	tests := []struct{ name, destination, warning, reason string }{
		{"host", "{host: nobody}", "no service has the host nobody", "no_cluster"},
		{"subset", "{host: shop, subset: v9}", `has a subset "v9"`, "no_cluster"},
		{"subset without workloads", "{host: shop, subset: v7}", "", "no_healthy_endpoint"},
	}
	w.apply("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: shop}, spec: {host: shop, subsets: [{name: v7, labels: {version: v7}}]}}")
	defer w.remove("DestinationRule", "shop")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := w.apply(virtualService("http: [{route: [{destination: " + tt.destination + "}]}]"))
			defer w.remove("VirtualService", "shop")
			if !strings.Contains(out, "configured") && !strings.Contains(out, "created") || tt.warning != "" &&
				(!strings.Contains(out, "Warning: "+filepath.Join(w.dir, "apply.yaml")+":1:") || !strings.Contains(out, tt.warning)) {
				t.Errorf("it said\n%s", out)
			}
			w.status(t, "http://shop/echo", http.StatusServiceUnavailable, tt.reason)
		})
	}
	w.status(t, "http://shop/echo", http.StatusOK, "")
}

// conflicts are two objects that want different things: the older one counts, and the second is warned of.
func (w *world) conflicts(t *testing.T) {
	w.apply(virtualService("http: [{directResponse: {status: 418}}]"))
	w.status(t, "http://shop/echo", http.StatusTeapot, "")
	out := w.apply(strings.Replace(virtualService("http: [{directResponse: {status: 410}}]"), "name: shop", "name: another", 1))
	if !strings.Contains(out, "Warning: ") || !strings.Contains(out, "shop.default.svc.cluster.local is also routed by") {
		t.Errorf("it said\n%s", out)
	}
	w.remove("VirtualService", "shop")
	w.status(t, "http://shop/echo", http.StatusGone, "")
	w.remove("VirtualService", "another")
	w.status(t, "http://shop/echo", http.StatusOK, "")
}

// proxyKilled: without its proxy a workload must not go on.
func (w *world) proxyKilled(t *testing.T) {
	v := w.start("victim", "--labels", "app=victim")
	var pids []int
	for _, pid := range w.children("agent") {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(line), v.socket) {
			pids = append(pids, pid)
		}
	}
	if len(pids) != 1 {
		t.Fatalf("agents %v", pids)
	}
	init := parent(pids[0])
	proxy := 0
	for _, pid := range w.children("lateen-proxy") {
		if parent(pid) == init {
			proxy = pid
		}
	}
	if err := syscall.Kill(proxy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.ended:
	case <-time.After(wait):
		t.Fatal("the workload goes on without its proxy")
	}
	if exit, ok := errors.AsType[*exec.ExitError](v.err); !ok || exit.ExitCode() != 1 || !strings.Contains(v.said.String(), "the proxy ended with code 137, and with it the workload; its last words:") {
		t.Errorf("%v: %s", v.err, v.said)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pids[0])); err == nil {
		t.Error("the command lives on")
	}
}

func TestMissingProgram(t *testing.T) {
	m := newRig(t, root(t))
	alone := filepath.Join(m.dir, "lateen")
	for _, step := range []struct{ adds, missing string }{{"lateen", "lateend"}, {"lateend", "lateen-proxy"}} {
		if err := os.Link(filepath.Join(bin, step.adds), filepath.Join(m.dir, step.adds)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(alone, "--mesh", m.name, "run", "--name", "x", "--", "true")
		text, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 ||
			!strings.HasPrefix(string(text), "Error: ") || !strings.Contains(string(text), "find the program "+step.missing+", which must stand beside "+alone) {
			t.Errorf("without %s: %v: %s", step.missing, err, text)
		}
	}
	t.Run("command", func(t *testing.T) {
		if out, code := m.lateen("run", "--name", "x", "--", "no-such-program"); code != 2 || !strings.Contains(out, `find the command "no-such-program"`) {
			t.Errorf("code %d: %s", code, out)
		}
	})
}

func TestNoPermission(t *testing.T) {
	who := root(t)
	if who.uid != 0 {
		t.Skip("only root has rights to give up")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv is not installed")
	}
	m := newRig(t, who)
	cmd := exec.Command("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--", filepath.Join(bin, "lateen"), "--mesh", m.name, "run", "--name", "x", "--", "true")
	text, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.HasPrefix(string(text), "Error: ") || !strings.Contains(string(text), "CAP_SYS_ADMIN") {
		t.Errorf("%v: %s", err, text)
	}
}

func TestPortInUse(t *testing.T) {
	who := root(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	t.Run("lateend", func(t *testing.T) {
		dir := t.TempDir()
		cmd := exec.Command(filepath.Join(bin, "lateend"), "--dir", dir, "--state", filepath.Join(dir, "state"), "--listen", l.Addr().String(), "--api", filepath.Join(dir, "api"))
		text, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(string(text), "Error: ") || !strings.Contains(string(text), "address already in use") || !strings.Contains(string(text), "name another address with --listen") {
			t.Errorf("%v: %s", err, text)
		}
	})
	t.Run("lateen run takes the next one", func(t *testing.T) {
		m := newRig(t, who)
		cmd := m.command("run", "--name", "edge", "--gateway", "--port", fmt.Sprint(port))
		said := &buffer{}
		cmd.Stderr = said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the gateway runs", func() error {
			if text := said.String(); !strings.Contains(text, fmt.Sprintf("port %d is 127.0.0.1:", port)) || strings.Contains(text, fmt.Sprintf("is 127.0.0.1:%d\n", port)) {
				return fmt.Errorf("it said %q", text)
			}
			return nil
		})
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, said)
		}
	})
}
