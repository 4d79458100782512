package host

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pair returns two connected sockets.
func pair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	ours, file, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = ours.Close(), conn.Close(), file.Close() })
	return ours, conn.(*net.UnixConn)
}

// TestRequest sends a request that is larger than a socket's buffer, with descriptors.
func TestRequest(t *testing.T) {
	ours, theirs := pair(t)
	want := request{Op: opRun, Workload: Workload{Name: "x", Env: []string{strings.Repeat("e", 1<<20)}, Sockets: []string{"a", "b"}}}
	var files []*os.File
	for _, text := range []string{"one", "two"} {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	sent := make(chan error, 1)
	go func() { sent <- writeRequest(ours, want, files) }()
	got, handed, err := readRequest(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(handed)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	closeAll(files)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var texts []string
	for _, f := range handed {
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	if diff := cmp.Diff([]string{"one", "two"}, texts); diff != "" {
		t.Error(diff)
	}
}

func TestRequestRefuses(t *testing.T) {
	ours, theirs := pair(t)
	if err := writeRequest(ours, request{Op: opRun, Workload: Workload{Env: []string{strings.Repeat("e", maxRequest)}}}, nil); err == nil ||
		!strings.Contains(err.Error(), "is the environment that large") {
		t.Errorf("of too large a request it says %v", err)
	}
	if err := writeRequest(ours, request{}, make([]*os.File, maxFiles+1)); err == nil || !strings.Contains(err.Error(), "use fewer ports") {
		t.Errorf("of too many files it says %v", err)
	}
	if _, err := ours.Write(binary.BigEndian.AppendUint32(nil, maxRequest+1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readRequest(theirs); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("of a request that announces too much it says %v", err)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readRequest(theirs); err == nil {
		t.Error("a connection that was closed brought a request")
	}
}

// FuzzRequest: whatever comes after the head, nothing panics, and what is understood is understood again.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"), 4)
	f.Add([]byte("\x00\x00\x00\x0e{\"Op\":\"list\"} "), 1)
	f.Add([]byte("\xff\xff\xff\xff"), 4)
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		n = min(max(n, 0), 4, len(text))
		head := make([]byte, 4)
		copy(head, text[:n])
		req, err := readBody(bytes.NewReader(text[n:]), head, n)
		if err == nil && len(req.Op) > len(text) {
			t.Errorf("of %d bytes an operation of %d", len(text), len(req.Op))
		}
	})
}

func TestValidate(t *testing.T) {
	good := Workload{Name: "a", Namespace: "b", ServiceAccount: "c", Role: RoleSidecar, Command: []string{"/bin/true"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	gateway := Workload{Name: "a", Namespace: "b", ServiceAccount: "c", Role: RoleGateway}
	if err := gateway.Validate(); err != nil {
		t.Error(err)
	}
	bad := Workload{Name: "A_", Namespace: "../x", ServiceAccount: "", Role: RoleSidecar, Ports: map[string]uint16{"p": 15006}}
	err := bad.Validate()
	if err == nil {
		t.Fatal("it is valid")
	}
	for _, want := range []string{`name "A_"`, `namespace "../x"`, `service account ""`, "no command", "p=15006"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	gateway.Role = "waypoint"
	if err := gateway.Validate(); err == nil || !strings.Contains(err.Error(), `"waypoint"`) {
		t.Errorf("of a foreign role it says %v", err)
	}
}
