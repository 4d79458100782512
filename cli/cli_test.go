package cli

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/cli/host"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

// bench is a command line with files instead of a terminal, and doubles of all that it calls.
type bench struct {
	t   *testing.T
	app *app
	api *http.ServeMux // The control plane's.
	two *http.ServeMux // The admin page of the proxy "two".
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Setenv("KUBECONFIG", "") // nothing is asked of a cluster
	t.Setenv("HOME", t.TempDir())
	base, err := os.MkdirTemp("", "lc") //nolint:usetesting // Shorter than TempDir: paths of sockets are bounded.
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, app: &app{dir: host.Dir(filepath.Join(base, "b", "m"))}, api: http.NewServeMux(), two: http.NewServeMux()}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.MkdirAll(filepath.Dir(b.app.dir.Admin("default", "two")), 0o700); err != nil {
		t.Fatal(err)
	}
	return b
}

// serve starts the doubles. The host runs the workloads "one", whose proxy does not answer, and "two".
func (b *bench) serve() {
	b.t.Helper()
	admin := b.app.dir.Admin("default", "two")
	for path, mux := range map[string]*http.ServeMux{b.app.dir.API(): b.api, admin: b.two} {
		server := &http.Server{Handler: mux}
		l := b.listen(path)
		go func() { _ = server.Serve(l) }()
		b.t.Cleanup(func() { _ = server.Close() })
	}
	l := b.listen(b.app.dir.Socket())
	b.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			size := make([]byte, 4)
			_, _ = io.ReadFull(conn, size)
			_, _ = io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(size)))
			_ = json.NewEncoder(conn).Encode(host.Event{Kind: host.EventList, Workloads: []host.Status{
				{Name: "two", Namespace: "default", Role: "sidecar", AdminSocket: admin},
				{Name: "one", Namespace: "default", Role: "gateway", AdminSocket: admin + ".not"},
			}})
			_ = conn.Close()
		}
	}()
}

func (b *bench) listen(path string) net.Listener {
	b.t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

// run runs a command line and returns its exit code and what it wrote.
func (b *bench) run(stdin string, args ...string) (code int, out, errs string) {
	b.t.Helper()
	var files [3]*os.File
	for i := range files {
		f, err := os.CreateTemp(b.t.TempDir(), "")
		if err != nil {
			b.t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		files[i] = f
	}
	if _, err := files[0].WriteString(stdin); err != nil {
		b.t.Fatal(err)
	}
	_, _ = files[0].Seek(0, io.SeekStart)
	b.app.in, b.app.out, b.app.err = files[0], files[1], files[2]
	code = b.app.execute(b.t.Context(), args)
	var texts [2]string
	for i, f := range files[1:] {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			b.t.Fatal(err)
		}
		texts[i] = string(text)
	}
	return code, texts[0], texts[1]
}

// TestMistakes: what is not understood has the exit code 2, what fails 1; each says what to do next.
func TestMistakes(t *testing.T) {
	b := newBench(t) // Nothing is served.
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"fly"}, 2, `unknown command "fly" for "lateen"; see ` + "`lateen --help`"},
		{[]string{"get", "--fly"}, 2, "unknown flag: --fly; see `lateen get --help`"},
		{[]string{"get", "boat"}, 2, `the kind "boat" is unknown; choose AuthorizationPolicy,`},
		{[]string{"get", "-o", "xml"}, 2, `--output "xml": choose`},
		{[]string{"get", "vs"}, 1, "start one with `lateen demo` or `lateen run`"},
		{[]string{"status"}, 1, "start one with `lateen demo` or `lateen run`"},
		{[]string{"status", "x"}, 2, "see `lateen status --help`"},
		{[]string{"apply"}, 2, "use -f"},
		{[]string{"apply", "-f", "/no/such/file"}, 1, "no such file"},
		{[]string{"apply", "-f", "testdata/empty"}, 1, "testdata/empty"},
		{[]string{"delete", "vs"}, 2, "either -f FILE, or KIND NAME"},
		{[]string{"proxy-config"}, 2, "accepts between 1 and 2 arg(s)"},
		{[]string{"proxy-config", "x", "sails"}, 2, `the section "sails" is unknown`},
		{[]string{"run", "--", "true"}, 2, `the name "" is not a label`},
		{[]string{"run", "--name", "x"}, 2, "name it after `--`"},
		{[]string{"run", "--name", "x", "--", "no-such-program"}, 2, `find the command "no-such-program"`},
		{[]string{"run", "--name", "x", "--port", "high", "--probe", "health", "--", "true"}, 2, `--probe "health": write a URL`},
		{[]string{"stop"}, 2, "requires at least 1 arg(s)"},
		{[]string{"stop", "x"}, 1, "no mesh named"},
		{[]string{"demo", "--apply-at", "5s"}, 2, "each time needs a file"},
		{[]string{"demo", "--apply-at", "soon", "x.yaml"}, 2, `--apply-at "soon"`},
		{[]string{"demo", "--header", "jason"}, 2, "write it as 'name: value'"},
		{[]string{"demo", "--path", "x", "--rate", "0"}, 2, "--rate 0"},
	} {
		code, out, errs := b.run("", test.args...)
		if code != test.code || !strings.HasPrefix(errs, "Error: ") || !strings.Contains(errs, test.want) || out != "" {
			t.Errorf("%v: code %d, want %d with %q:\n%s%s", test.args, code, test.code, test.want, out, errs)
		}
	}
}

func TestHelp(t *testing.T) {
	code, out, errs := newBench(t).run("", "--help")
	if code != 0 || errs != "" {
		t.Errorf("code %d: %s", code, errs)
	}
	golden(t, "help", out)
}

// TestKinds: every kind of package api may be asked for, by its name and its plural.
func TestKinds(t *testing.T) {
	all := []string{
		api.KindService, api.KindSecret, api.KindConfigMap, api.KindNamespace, api.KindServiceAccount, api.KindVirtualService,
		api.KindDestinationRule, api.KindGateway, api.KindServiceEntry, api.KindWorkloadEntry, api.KindWorkloadGroup,
		api.KindPeerAuthentication, api.KindAuthorizationPolicy, api.KindTelemetry,
		api.KindGatewayClass, api.KindListenedGateway, api.KindHTTPRoute, api.KindGRPCRoute, api.KindReferenceGrant,
	}
	slices.Sort(all)
	var got []string
	for kind := range kinds() {
		got = append(got, kind)
	}
	slices.Sort(got)
	if diff := cmp.Diff(all, got); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]string{
		"vs": "VirtualService", "GATEWAYS": "Gateway", "serviceentries": "ServiceEntry", "PeerAuthentication": "PeerAuthentication",
		"authorizationpolicies.security.istio.io": "AuthorizationPolicy", "gateways.networking.istio.io": "Gateway",
		"gateways.gateway.networking.k8s.io": api.KindListenedGateway, "httproutes.gateway.networking.k8s.io": "HTTPRoute",
	} {
		if got, err := kindOf(text); got != want || err != nil {
			t.Errorf("%s is %q (%v), want %s", text, got, err, want)
		}
	}
}

// TestApply: files are sent together, and faults are told with the file and line that the user knows.
func TestApply(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"a.yaml": "one: 1\ntwo: 2", "sub/b.yml": "three: 3\n", "c.txt": "no"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var query, body string
	answer := `{"results": [{"kind": "Gateway", "namespace": "default", "name": "g", "action": "created"}],
		"warnings": [{"file": "input", "line": 4, "column": 2, "code": "IST0101", "message": "odd"}]}`
	status := http.StatusOK
	b.api.HandleFunc("POST /apply", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		query, body = r.URL.RawQuery, string(text)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	})
	b.serve()
	code, out, errs := b.run("four: 4\n", "apply", "--dry-run", "-f", dir, "-f", "-")
	if want := "one: 1\ntwo: 2\n---\nthree: 3\n---\nfour: 4\n"; body != want || query != "dryRun=true&name=input" {
		t.Errorf("sent %q with %q", body, query)
	}
	if want := "Warning: " + filepath.Join(dir, "sub/b.yml") + ":1:2: odd [IST0101]\n"; code != 0 || out != "Gateway default/g created (dry run)\n" || errs != want {
		t.Errorf("code %d:\n%s%s", code, out, errs)
	}
	status = http.StatusUnprocessableEntity
	answer = `{"faults": [{"file": "input", "line": 2, "column": 1, "message": "bad"}, {"file": "input", "line": 6, "message": "worse"}]}`
	code, out, errs = b.run("four: 4\n", "apply", "-f", dir, "-f", "-")
	want := "Error: nothing was changed, because of:\n  " + filepath.Join(dir, "a.yaml") + ":2:1: bad\n  -:1: worse\n"
	if code != 1 || out != "" || errs != want {
		t.Errorf("code %d:\n%s%s", code, out, errs)
	}
}

func TestDelete(t *testing.T) {
	b := newBench(t)
	var body string
	b.api.HandleFunc("POST /delete", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		body = string(text)
		_, _ = io.WriteString(w, `{"results": [{"kind": "VirtualService", "namespace": "shop", "name": "r", "action": "deleted"}]}`)
	})
	b.serve()
	code, out, errs := b.run("", "delete", "vs", "r", "-n", "shop")
	if code != 0 || out != "VirtualService shop/r deleted\n" || body != `[{"kind":"VirtualService","name":"r","namespace":"shop"}]` {
		t.Errorf("code %d, sent %s:\n%s%s", code, body, out, errs)
	}
	if code, out, errs := b.run("kind: x\n", "delete", "-f", "-"); code != 0 || body != "kind: x\n" {
		t.Errorf("code %d, sent %s:\n%s%s", code, body, out, errs)
	}
}

func TestGet(t *testing.T) {
	b := newBench(t)
	var query string
	list := []object{
		{"VirtualService", "default", "reviews", "kind: VirtualService\nmetadata:\n  name: reviews\n", "/c/reviews.yaml", 12},
		{"Gateway", "shop", "edge", "kind: Gateway\n", "/c/edge.yaml", 1},
		{"WorkloadEntry", "default", "reviews-v1", "kind: WorkloadEntry\n", "", 0},
	}
	b.api.HandleFunc("GET /objects", func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.RawQuery
		_ = json.NewEncoder(w).Encode(list)
	})
	b.serve()
	var all strings.Builder
	for _, args := range [][]string{{}, {"-A"}, {"vs", "-o", "wide"}, {"vs", "reviews", "-n", "shop", "-o", "yaml"}, {"-o", "json"}} {
		code, out, errs := b.run("", append([]string{"get"}, args...)...)
		if code != 0 || errs != "" {
			t.Errorf("%v: code %d: %s", args, code, errs)
		}
		all.WriteString("$ lateen get " + strings.Join(args, " ") + "\n# asked for " + query + "\n" + out + "\n")
	}
	golden(t, "get", all.String())
	list = []object{}
	if code, _, errs := b.run("", "get", "vs", "nope"); code != 1 || !strings.Contains(errs, `no VirtualService "nope" is in namespace "default"`) {
		t.Errorf("code %d: %s", code, errs)
	}
}

func TestToken(t *testing.T) {
	b := newBench(t)
	b.api.HandleFunc("POST /tokens", func(w http.ResponseWriter, r *http.Request) {
		var ask map[string]string
		_ = json.NewDecoder(r.Body).Decode(&ask)
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "for " + ask["namespace"] + "/" + ask["serviceAccount"] + " " + ask["ttl"]})
	})
	b.serve()
	if code, out, _ := b.run("", "token", "create", "-n", "shop", "--service-account", "cart"); code != 0 || out != "for shop/cart 10m\n" {
		t.Errorf("code %d: %q", code, out)
	}
	if code, out, _ := b.run("", "token", "create", "-o", "json"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("code %d: %q", code, out)
	}
}
