package control

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lateen-mesh/lateen/mesh"
)

// known is what a control plane that starts now would know.
func known(t *testing.T, path string) string {
	t.Helper()
	var out []string
	list, err := readJournal(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Error(err)
	}
	for ref, w := range list {
		out = append(out, fmt.Sprintf("%s:%d", ref.Name, w.Health))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestWrittenDownFirst kills the control plane, so to say, whenever the picture is about to change.
func TestWrittenDownFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workloads.jsonl")
	var told []string
	r, err := newRegistry(path, func([]mesh.Change) { told = append(told, known(t, path)) },
		func(mesh.Ref) bool { return false }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	told = nil
	if err := r.join(instance("a")); err != nil {
		t.Fatal(err)
	}
	r.setHealth(instance("a").Ref(), mesh.Draining)
	r.leave(instance("a").Ref())
	if got, want := strings.Join(told, ", "), fmt.Sprintf("reviews-v1:%d, reviews-v1:%d, ", mesh.Healthy, mesh.Draining); got != want {
		t.Errorf("written down at the changes: %q, want %q", got, want)
	}
}

// TestJournalStaysShort changes a workload's health over and over.
func TestJournalStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workloads.jsonl")
	r, _ := newTestRegistry(t, path)
	if err := r.join(instance("a")); err != nil {
		t.Fatal(err)
	}
	for range journalSlack {
		r.setHealth(instance("a").Ref(), mesh.Unhealthy)
		r.setHealth(instance("a").Ref(), mesh.Healthy)
	}
	text, err := os.ReadFile(path)
	if lines := bytes.Count(text, []byte("\n")); err != nil || lines > journalSlack+3 {
		t.Errorf("%d lines, %v", lines, err)
	}
	if got, want := known(t, path), fmt.Sprintf("reviews-v1:%d", mesh.Healthy); got != want {
		t.Errorf("known: %q, want %q", got, want)
	}
}

// TestTornJournal starts with a journal whose last line was cut off, and with one that makes no sense.
func TestTornJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workloads.jsonl")
	r, _ := newTestRegistry(t, path)
	for _, name := range []string{"one", "two"} {
		w := instance("a")
		w.ID = name
		if err := r.join(w); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut, want := range map[string]string{
		string(text[:len(text)-10]): "one:0",
		"{}\n" + string(text):       "one:0 two:0",
		"nonsense":                  "",
	} {
		if err := os.WriteFile(path, []byte(cut), 0o600); err != nil {
			t.Fatal(err)
		}
		again, _ := newTestRegistry(t, path)
		w := instance("a")
		w.ID = "z"
		if err := again.join(w); err != nil {
			t.Fatal(err)
		}
		if got := known(t, path); got != strings.TrimSpace(want+" z:0") {
			t.Errorf("known: %q, want %q and z", got, want)
		}
	}
}

// TestJournalMends goes on where nothing can be written, and writes all down when it can.
func TestJournalMends(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(dir, "workloads.jsonl")
	r, b := newTestRegistry(t, path) // the folder is not there
	if err := r.join(instance("a")); err != nil || b.Snapshot().Object(instance("a").Ref()) == nil {
		t.Errorf("a workload cannot join: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.sweep(nil, time.Now())
	if got := known(t, path); got != "reviews-v1:0" {
		t.Errorf("known: %q", got)
	}
}
