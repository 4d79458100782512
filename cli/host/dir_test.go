package host

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestDirOf(t *testing.T) {
	for _, name := range []string{"", "A", "../x", "a/b", strings.Repeat("a", 64)} {
		if dir, err := DirOf(name); err == nil {
			t.Errorf("the mesh %q has the directory %s", name, dir)
		}
	}
	t.Setenv("XDG_RUNTIME_DIR", "/xdg")
	want := Dir("/xdg/lateen/shop")
	if os.Geteuid() == 0 {
		want = "/run/lateen/shop"
	}
	if dir, err := DirOf("shop"); dir != want || err != nil {
		t.Errorf("%s (%v), want %s", dir, err, want)
	}
}

func TestMake(t *testing.T) {
	base := filepath.Join(t.TempDir(), "b")
	dir := Dir(filepath.Join(base, "m"))
	for range 2 {
		if err := dir.Make(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := dir.Make(); err == nil || !strings.Contains(err.Error(), "mode 0700") {
		t.Errorf("of a directory that others may enter it says %v", err)
	}
	deep := Dir(filepath.Join(t.TempDir(), strings.Repeat("d", 100)))
	if err := deep.Make(); err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("of a path that is too long it says %v", err)
	}
}

// TestLock: one at a time, and not the lock of a directory that was removed.
func TestLock(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "b", "m"))
	if err := dir.Make(); err != nil {
		t.Fatal(err)
	}
	first, err := dir.tryLock()
	if first == nil || err != nil {
		t.Fatalf("the lock is not free: %v", err)
	}
	if second, err := dir.tryLock(); second != nil || err != nil {
		t.Errorf("the lock was taken twice (%v)", err)
	}
	if err := os.WriteFile(dir.pid(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dir.sweep(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(string(dir) + "/*"); len(left) != 1 || left[0] != dir.lock() {
		t.Errorf("after sweeping there are %v", left)
	}
	if err := dir.remove(); err != nil {
		t.Error(err)
	}
	if _, err := dir.tryLock(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a directory that was removed it says %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

// TestLockIsHandedOn: many start and end at once, and each has the directory to itself, whole.
func TestLockIsHandedOn(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "b", "m"))
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 100 {
				lock, err := takeLock(t.Context(), dir)
				if err != nil {
					t.Error(err)
					return
				}
				err = errors.Join(dir.sweep(), dir.makeFolders(), os.Mkdir(filepath.Join(dir.State(), "mine"), 0o700), dir.remove(), lock.Close())
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}

func TestCall(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := Call(t.Context(), socket, http.MethodGet, "/", nil, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("where there is nothing it says %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /json", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"a": 1}`)) })
	mux.HandleFunc("GET /refuse", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error": "no because"}`, http.StatusUnprocessableEntity)
	})
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		_ = server.Shutdown(context.WithoutCancel(t.Context()))
		<-served
	}()
	var out struct{ A int }
	if err := Call(t.Context(), socket, http.MethodGet, "/json", nil, &out); err != nil || out.A != 1 {
		t.Errorf("%v (%v)", out, err)
	}
	var raw []byte
	if err := Call(t.Context(), socket, http.MethodGet, "/json", nil, &raw); err != nil || string(raw) != `{"a": 1}` {
		t.Errorf("%s (%v)", raw, err)
	}
	err = Call(t.Context(), socket, http.MethodGet, "/refuse", nil, nil)
	if refused, ok := errors.AsType[*CallError](err); !ok || refused.Status != http.StatusUnprocessableEntity || refused.Error() != "no because" {
		t.Errorf("of a refusal it says %v", err)
	}
	err = Call(t.Context(), socket, http.MethodGet, "/nothing", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "404 Not Found") {
		t.Errorf("of a page that is not there it says %v", err)
	}
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := LastLines(path); !strings.Contains(got, "no log") {
		t.Errorf("without a log: %q", got)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("before\n", maxTail)+"one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(LastLines(path), "\n")
	if len(got) != tailLines || got[tailLines-1] != "  two" || got[tailLines-2] != "  one" {
		t.Errorf("%q", got)
	}
}
