package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bin is the folder of the binaries under test.
var bin string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run builds the binaries, with the examples beside them as in a checkout, and runs the tests.
func run(m *testing.M) (int, error) {
	root, err := os.MkdirTemp("", "lateen-netns-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(root)
	if err := os.Chmod(root, 0o755); err != nil { // An ordinary user runs them, too.
		return 0, err
	}
	bin = filepath.Join(root, "bin")
	build := exec.Command("go", "build", "-o", bin+"/", "./cmd/...", "./examples/bookinfo", "./test/netns/agent")
	build.Dir, build.Stderr = "../..", os.Stderr
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build the binaries: %w", err)
	}
	if err := os.CopyFS(filepath.Join(root, "examples"), os.DirFS("../../examples")); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
