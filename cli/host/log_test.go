package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogBound: however much is said, two files of a bounded size hold the end of it, whole.
func TestLogBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path+oldSuffix, []byte("of an earlier process"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := newLogPipe(path)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path + oldSuffix); err == nil {
		t.Errorf("at the beginning there is %q", text)
	}
	var said bytes.Buffer
	for i := range 5 * maxLog / 1000 {
		line := fmt.Sprintf("%0999d\n", i)
		said.WriteString(line)
		if _, err := p.out.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := p.lastWords(), "000005241"; !strings.HasSuffix(got, want) || strings.Count(got, "\n") != tailLines-1 {
		t.Errorf("the last words are %q", got)
	}
	p.close()
	before, err := os.ReadFile(path + oldSuffix)
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) > maxLog || len(now) > maxLog || len(before) < maxLog/2 {
		t.Errorf("the files have %d and %d bytes", len(before), len(now))
	}
	if !bytes.HasSuffix(said.Bytes(), append(before, now...)) {
		t.Error("the files do not have the end of what was said")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 2 {
		t.Errorf("there are %v", entries)
	}
}

// TestLogRenewed: who writes past the log is given each new file.
func TestLogRenewed(t *testing.T) {
	l, err := newLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var last *os.File
	l.renewed = func(f *os.File) { last = f }
	for range 2 {
		if _, err := l.Write(make([]byte, maxLog)); err != nil {
			t.Fatal(err)
		}
	}
	if last == nil || last != l.file {
		t.Error("the new file is not told of")
	}
}

// TestSweepEnded: what a host that was killed while it removed its directory has left goes with the next one, and
// only that.
func TestSweepEnded(t *testing.T) {
	base := t.TempDir()
	for _, name := range []string{"shop.ended-1/logs", "shop.ended-22", "shop2", "shop", "other.ended-1"} {
		if err := os.MkdirAll(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dir := Dir(filepath.Join(base, "shop"))
	for _, want := range []bool{true, false} {
		if found, err := dir.sweepEnded(); found != want || err != nil {
			t.Errorf("found: %v (%v), want %v", found, err, want)
		}
	}
	var left []string
	entries, err := os.ReadDir(base)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != "other.ended-1 shop shop2" || err != nil {
		t.Errorf("there are %s (%v)", got, err)
	}
}
