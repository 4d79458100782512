package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/api"
	"github.com/lateen-mesh/lateen/mesh"
	"github.com/lateen-mesh/lateen/source"
)

// patient is how long a test waits for what must happen.
const patient = 20 * time.Second

func service(name string) string {
	return "apiVersion: v1\nkind: Service\nmetadata:\n  name: " + name + "\nspec:\n  ports:\n  - name: http\n    port: 80\n"
}

// bench is a store over a folder of its own and what it told.
type bench struct {
	*Store
	dir     string
	changes chan []mesh.Change
	reports chan []api.Fault
}

func open(t *testing.T, dir, state string) *bench {
	t.Helper()
	b := &bench{dir: dir, changes: make(chan []mesh.Change, 1000), reports: make(chan []api.Fault, 1000)}
	var err error
	b.Store, err = Open(Config{
		Dir: dir, StateFile: state, Quiet: 10 * time.Millisecond,
		Apply:  func(c []mesh.Change, _ []source.Finding) { b.changes <- c },
		Report: func(f []api.Fault) { b.reports <- f },
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// watching also runs the store.
func watching(t *testing.T, dir string) *bench {
	b := open(t, dir, "")
	b.next(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func receive[T any](t *testing.T, from chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patient):
		t.Fatalf("no %s within %s", what, patient)
		panic("unreachable")
	}
}

func (b *bench) next(t *testing.T) string {
	t.Helper()
	var names []string
	for _, c := range receive(t, b.changes, "change") {
		sign := "+"
		if c.Object == nil {
			sign = "-"
		}
		short, _, _ := strings.Cut(c.Ref.Name, ".")
		names = append(names, sign+short)
	}
	return strings.Join(names, " ")
}

// until waits for changes that bring the wanted services in force.
func (b *bench) until(t *testing.T, want string) {
	t.Helper()
	for {
		var names []string
		for _, o := range b.List(api.KindService, "", "") {
			names = append(names, o.Name)
		}
		if strings.Join(names, " ") == want {
			return
		}
		b.next(t)
	}
}

func put(t *testing.T, text string, path ...string) {
	t.Helper()
	name := filepath.Join(path...)
	err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644))
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenTellsTheFirstSet(t *testing.T) {
	dir := t.TempDir()
	if got := open(t, t.TempDir(), "").next(t); got != "" {
		t.Errorf("an empty folder changes %q", got)
	}
	put(t, service("a"), dir, "a.yaml")
	put(t, service("b"), dir, "sub", "b.yml")
	put(t, "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"x\"}}", dir, "c.json")
	put(t, "not: yaml: at all", dir, ".hidden.yaml")
	put(t, "not: yaml: at all", dir, "#a.yaml#")
	put(t, "not: yaml: at all", dir, "a.yaml~")
	b := open(t, dir, "")
	if got := b.next(t); got != "+a +b" {
		t.Errorf("changes %q", got)
	}
	if s := b.Status(); s.Objects != 3 || len(s.Faults) > 0 || s.Since.IsZero() {
		t.Errorf("status %+v", s)
	}
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	b := watching(t, dir)
	put(t, service("a"), dir, "a.yaml")
	b.until(t, "a")
	put(t, service("b"), dir, "deep", "er", "b.yaml")
	b.until(t, "a b")
	put(t, service("c"), dir, "deep", "er", "c.yaml") // in a folder that was not there at the start
	b.until(t, "a b c")
	if err := os.Rename(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "a.yaml.off")); err != nil {
		t.Fatal(err)
	}
	b.until(t, "b c")
	if err := os.RemoveAll(filepath.Join(dir, "deep")); err != nil {
		t.Fatal(err)
	}
	b.until(t, "")
}

// TestSwap changes files as a mounted ConfigMap does: links into a folder to which a hidden link leads, exchanged at once.
func TestSwap(t *testing.T) {
	dir := t.TempDir()
	put(t, service("a"), dir, "..1", "x.yaml")
	put(t, service("b"), dir, "..2", "x.yaml")
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/x.yaml", "x.yaml")
	b := watching(t, dir)
	b.until(t, "a")
	link("..2", "..data_tmp")
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	b.until(t, "b")
}

// TestRefusedAsAWhole writes half a file: nothing changes until the other half is there.
func TestRefusedAsAWhole(t *testing.T) {
	dir := t.TempDir()
	put(t, service("a"), dir, "a.yaml")
	b := watching(t, dir)
	put(t, service("b"), dir, "b.yaml")
	b.until(t, "a b")
	half := service("c") + "  selector: {app: "
	put(t, half, dir, "c.yaml")
	faults := receive(t, b.reports, "report")
	if len(faults) != 1 || faults[0].File != filepath.Join(dir, "c.yaml") || faults[0].Line == 0 {
		t.Errorf("faults %v", faults)
	}
	if len(b.Status().Faults) != 1 || b.Status().Objects != 2 {
		t.Errorf("status %+v", b.Status())
	}
	put(t, half+"c}\n", dir, "c.yaml")
	b.until(t, "a b c")
	if faults := receive(t, b.reports, "report"); len(faults) > 0 {
		t.Errorf("still refused: %v", faults)
	}
}

func TestSameNameInTwoFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, service("a"), dir, "a.yaml")
	put(t, service("a"), dir, "b.yaml")
	b := open(t, dir, "")
	faults := receive(t, b.reports, "report")
	if len(faults) != 1 || !strings.Contains(faults[0].Message, "is also in "+filepath.Join(dir, "a.yaml")+":1") {
		t.Errorf("faults %v", faults)
	}
}

// TestLastGoodCopy starts with a folder that is refused: the last good copy is in force, with the same addresses.
func TestLastGoodCopy(t *testing.T) {
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state.json")
	put(t, service("a"), dir, "a.yaml")
	b := open(t, dir, state)
	before := receive(t, b.changes, "change")[0].Object.(*mesh.Service).Addresses
	put(t, "kind: [", dir, "b.yaml")
	b = open(t, dir, state)
	after := receive(t, b.changes, "change")[0].Object.(*mesh.Service).Addresses
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("addresses changed from %v to %v", before, after)
	}
	if s := b.Status(); !s.Restored || len(s.Faults) == 0 || s.Objects != 1 {
		t.Errorf("status %+v", s)
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	b.Reload()
	if s := b.Status(); s.Restored || len(s.Faults) > 0 {
		t.Errorf("status %+v", s)
	}
}

func TestUnreadableState(t *testing.T) {
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state.json")
	put(t, "{", state)
	put(t, service("a"), dir, "a.yaml")
	if got := open(t, dir, state).next(t); got != "+a" {
		t.Errorf("changes %q", got)
	}
}

// TestFolderGone takes the folder away, and then puts another, empty one there, as is below a disk that is not mounted
// any more: what was in force stays, also across a restart, until there is a file.
func TestFolderGone(t *testing.T) {
	base := t.TempDir()
	dir, state := filepath.Join(base, "conf"), filepath.Join(base, "state.json")
	put(t, service("a"), dir, "a.yaml")
	b := open(t, dir, state)
	check := func(what string, restored bool, message string) {
		t.Helper()
		s := b.Status()
		if len(s.Faults) != 1 || !strings.Contains(s.Faults[0].Message, message) || s.Objects != 1 || s.Restored != restored {
			t.Errorf("%s: status %+v", what, s)
		}
	}
	if err := os.Rename(dir, filepath.Join(base, "away")); err != nil {
		t.Fatal(err)
	}
	b.Reload()
	check("gone", false, "no such file")
	b = open(t, dir, state)
	check("gone at the start", true, "no such file")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.Reload()
	check("empty", true, "if its disk is not mounted, mount it")
	b = open(t, dir, state)
	check("empty at the start", true, "if its disk is not mounted, mount it")
	if _, faults, _ := b.Apply([]byte(service("b")), "stdin", false); len(faults) != 1 {
		t.Errorf("applied to a folder that is refused: %v", faults)
	}
	put(t, "", dir, "none.yaml")
	b.Reload()
	if s := b.Status(); len(s.Faults) > 0 || s.Objects != 0 {
		t.Errorf("meant to be empty: status %+v", s)
	}
}

// TestFolderEmptied removes all files of a folder, which stays the same: that is meant.
func TestFolderEmptied(t *testing.T) {
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state.json")
	put(t, service("a"), dir, "a.yaml")
	open(t, dir, state)
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if s := open(t, dir, state).Status(); len(s.Faults) > 0 || s.Objects != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestCrashBeforeRename finds what a crash has left: it is not read, and removed.
func TestCrashBeforeRename(t *testing.T) {
	dir := t.TempDir()
	put(t, service("a"), dir, "default", "service-a.yaml")
	left := filepath.Join(dir, "default", temporary+"123.tmp")
	put(t, service("b")[:20], left)
	b := open(t, dir, "")
	if got := b.next(t); got != "+a" {
		t.Errorf("changes %q", got)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("the temporary file is still there: %v", err)
	}
}

func outcomes(results []Result) string {
	var out []string
	for _, r := range results {
		out = append(out, r.Ref.Name+" "+string(r.Outcome))
	}
	return strings.Join(out, ", ")
}

func (b *bench) apply(t *testing.T, docs string, dryRun bool) string {
	t.Helper()
	results, faults, _ := b.Apply([]byte(docs), "stdin", dryRun)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return outcomes(results)
}

func TestApply(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, "")
	b.next(t)
	both := service("a") + "---\n" + service("b")
	if got := b.apply(t, both, true); got != "a created, b created" || b.Status().Objects != 0 {
		t.Errorf("dry run: %s", got)
	}
	if got := b.apply(t, both, false); got != "a created, b created" {
		t.Errorf("apply: %s", got)
	}
	if got := b.next(t); got != "+a +b" { // in force when Apply returns, as one set
		t.Errorf("changes %q", got)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "default", "service-a.yaml")); err != nil || string(text) != service("a") {
		t.Errorf("%v\n%s", err, text)
	}
	more := strings.Replace(both, "80", "81", 1)
	if got := b.apply(t, more, false); got != "a configured, b unchanged" {
		t.Errorf("apply again: %s", got)
	}
	results, faults, _ := b.Delete([]api.Ref{{Kind: "Service", Namespace: "default", Name: "a"}, {Kind: "Service", Namespace: "default", Name: "z"}}, false)
	if got := outcomes(results); got != "a deleted, z not found" || len(faults) > 0 {
		t.Errorf("delete: %s %v", got, faults)
	}
	if _, err := os.Stat(filepath.Join(dir, "default", "service-a.yaml")); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if list := b.List("service", "default", ""); len(list) != 1 || list[0].Line != 1 || list[0].File == "" {
		t.Errorf("list %v", list)
	}
	if results, _, _ := b.DeleteDocs([]byte(both), "stdin", false); outcomes(results) != "a not found, b deleted" {
		t.Errorf("delete by documents: %s", outcomes(results))
	}
}

func TestApplyRefuses(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, "")
	_, faults, _ := b.Apply([]byte(service("a")+"  prots: []\n"), "stdin", false)
	if len(faults) != 1 || faults[0].String() != "stdin:9:3: Service default/a: spec.prots: there is no such field; did you mean ports?" {
		t.Errorf("faults %v", faults)
	}
	put(t, "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: l}, spec: {ports: [{port: 1}]}}\n", dir, "list.yaml")
	if _, faults, _ = b.Apply([]byte(service("l")), "stdin", false); len(faults) != 1 || !strings.Contains(faults[0].Message, "is an item of the List") {
		t.Errorf("faults %v", faults)
	}
	put(t, "kind: [", dir, "bad.yaml")
	if _, faults, _ = b.Apply([]byte(service("n")), "stdin", false); len(faults) != 1 || faults[0].File != filepath.Join(dir, "bad.yaml") {
		t.Errorf("faults %v", faults)
	}
}

// TestInPlace changes and deletes documents of a user's own file; the rest of it stays as it is, letter by letter.
func TestInPlace(t *testing.T) {
	dir := t.TempDir()
	head := "# ours\n" + service("a") + "# the end of a\n---\n"
	tail := "---\n# about c\n" + service("c") + "# fin"
	put(t, head+service("b")+tail, dir, "all.yaml")
	b := open(t, dir, "")
	changed := strings.Replace(service("b"), "80", "8080", 1)
	if got := b.apply(t, changed, false); got != "b configured" {
		t.Errorf("apply: %s", got)
	}
	check := func(want string) {
		t.Helper()
		if text, err := os.ReadFile(filepath.Join(dir, "all.yaml")); err != nil || string(text) != want {
			t.Errorf("%v:\n%s\nwant:\n%s", err, text, want)
		}
	}
	check(head + changed + tail)
	if _, faults, _ := b.Delete([]api.Ref{{Kind: "Service", Namespace: "default", Name: "b"}}, false); len(faults) > 0 {
		t.Error(faults)
	}
	check(strings.TrimSuffix(head, "---\n") + tail)
	if _, faults, _ := b.Delete([]api.Ref{{Kind: "Service", Namespace: "default", Name: "a"}}, false); len(faults) > 0 {
		t.Error(faults)
	}
	check(strings.TrimPrefix(tail, "---\n"))
}

// TestSecretsAreKeptFromOthers puts a Secret into a new file and into one that others may read.
func TestSecretsAreKeptFromOthers(t *testing.T) {
	dir := t.TempDir()
	secret := func(name string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: " + name + "}\nstringData: {other: x}\n"
	}
	put(t, service("a"), dir, "default", "secret-old.yaml")
	put(t, service("b"), dir, "b.yaml")
	b := open(t, dir, "")
	b.apply(t, secret("new")+"---\n"+secret("old")+"---\n"+strings.Replace(service("b"), "80", "81", 1), false)
	for name, want := range map[string]os.FileMode{"default/secret-new.yaml": 0o600, "default/secret-old.yaml": 0o600, "b.yaml": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, info, err, want)
		}
	}
}

func TestConcurrentApply(t *testing.T) {
	dir := t.TempDir()
	b := watching(t, dir)
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, faults, _ := b.Apply([]byte(service(fmt.Sprintf("s%d-%d", w, i))), "stdin", false); len(faults) > 0 {
					t.Error(faults)
				}
			}
		})
	}
	wg.Wait()
	if got := len(b.List("Service", "", "")); got != writers*each {
		t.Errorf("%d services, want %d", got, writers*each)
	}
	if s := b.Status(); len(s.Faults) > 0 {
		t.Error(s.Faults)
	}
}

func TestNoFolder(t *testing.T) {
	if _, err := Open(Config{}); err == nil {
		t.Error("a store without a folder opens")
	}
	missing := filepath.Join(t.TempDir(), "conf")
	if _, err := Open(Config{Dir: missing}); err == nil || !strings.Contains(err.Error(), "make it or name another") {
		t.Errorf("a store whose folder is not there opens: %v", err)
	}
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("the folder was made: %v", err)
	}
}

// TestRefusedAtTheStart: of a folder that is refused and has no last good copy nothing is in force but that all is denied.
func TestRefusedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	put(t, service("a"), dir, "a.yaml")
	put(t, "kind: Nonsense\n", dir, "b.yaml")
	b := open(t, dir, "")
	changes := receive(t, b.changes, "change")
	p, _ := changes[0].Object.(*mesh.Authz)
	if len(changes) != 1 || p == nil || p.Action != "DENY" || len(p.Rules) != 1 || p.Selector != nil || p.Namespace != api.RootNamespace || !strings.HasSuffix(p.File, "b.yaml") {
		t.Errorf("in force is %+v", changes)
	}
	if list := b.List("", "", ""); len(list) > 0 || len(b.Status().Faults) == 0 {
		t.Errorf("objects %v, status %+v", list, b.Status())
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	b.Reload()
	if got := b.next(t); got != "+a -configuration-refused" {
		t.Errorf("once it is good it changes %q", got)
	}
}
