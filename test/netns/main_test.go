package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	isolation "github.com/lateen-mesh/lateen/redirect/netns"
)

// insideVariable is set in the copy of this test binary that runs in a network of its own.
const insideVariable = "LATEEN_TEST_INSIDE"

// inside says whether the tests run in a network of their own, in which they may do what they like.
func inside() bool { return os.Getenv(insideVariable) != "" }

// bin is the folder of the binaries under test.
var bin string

func TestMain(m *testing.M) {
	code, err := enter(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// enter runs the tests again in a network of their own, where that can be made: what a mesh may reach is no real
// network then.
func enter(m *testing.M) (int, error) {
	if inside() || os.Geteuid() != 0 || isolation.Check(isolation.Isolation{}) != nil {
		return run(m)
	}
	cmd := isolation.Command(context.Background(), isolation.Isolation{}, os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok && failed.Exited() {
		return failed.ExitCode(), nil
	}
	return 0, err
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
	if inside() {
		if err := furnish(root); err != nil {
			return 0, err
		}
	}
	bin = filepath.Join(root, "bin")
	build := exec.Command("go", "build", "-trimpath", "-o", bin+"/", "./cmd/...", "./examples/bookinfo", "./test/netns/agent")
	build.Dir, build.Stderr, build.Env = "../..", os.Stderr, append(os.Environ(), "CGO_ENABLED=0") // as images are built
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("build the binaries: %w", err)
	}
	if err := os.CopyFS(filepath.Join(root, "examples"), os.DirFS("../../examples")); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// furnish prepares the network of the tests: a loopback, and a name server that only some tests have.
func furnish(root string) error {
	if err := isolation.Loopback(); err != nil {
		return err
	}
	names := filepath.Join(root, "resolv.conf")
	if err := os.WriteFile(names, []byte("nameserver "+farAddress+"\n"), 0o644); err != nil {
		return err
	}
	if err := syscall.Mount(names, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("give the tests their own name server: %w", err)
	}
	return nil
}
