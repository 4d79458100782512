// Package nstest lets tests work on real networks: it runs a test binary again inside a user, a network and a mount
// namespace of its own, the same way for root and for an ordinary user, and makes further namespaces for tests.
//
// A package calls Main from its TestMain, and its tests call Need, New or Start. The machine's own network is never
// touched. The package must not know what is tested. New and Start may be called concurrently.
package nstest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	insideVariable = "LATEEN_NSTEST_INSIDE" // Set in the copy of the test binary that runs inside.
	roleVariable   = "LATEEN_NSTEST_ROLE"   // Set in processes that Start starts.
	deniedVariable = "LATEEN_NSTEST_DENIED" // Why this machine gives no namespaces, where it does not.
)

// Main runs the tests of m inside fresh namespaces and does not return. Where the machine gives no namespaces it runs
// them outside, and those that call Need are skipped; another fault fails all of them. A process that Start started runs its role instead.
func Main(m *testing.M, roles map[string]func() error) {
	if name := os.Getenv(roleVariable); name != "" {
		os.Exit(play(name, roles[name]))
	}
	if os.Getenv(insideVariable) != "" {
		if err := netns.Loopback(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the namespace of the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	err := netns.Check(netns.Isolation{User: true})
	if err == nil {
		os.Exit(enter())
	}
	if !netns.Denied(err) {
		fmt.Fprintln(os.Stderr, "run the tests inside namespaces:", err)
		os.Exit(1)
	}
	if err := os.Setenv(deniedVariable, err.Error()); err != nil {
		fmt.Fprintln(os.Stderr, "run the tests outside namespaces:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// play runs a role and returns the exit code.
func play(name string, role func() error) int {
	err := errors.New("no such role")
	if role != nil {
		err = role()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "role %s: %v\n", name, err)
		return 1
	}
	return 0
}

// enter runs this test binary again inside and returns its exit code.
func enter() int {
	cmd := netns.Command(context.Background(), netns.Isolation{User: true}, os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok && failed.Exited() {
		return failed.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests inside namespaces:", err)
		return 1
	}
	return 0
}

// Need skips the test, with the reason, where no namespaces can be made.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		t.Skip("needs network namespaces: ", os.Getenv(deniedVariable))
	}
}

// New makes an empty network namespace that lives until the test ends. Its loopback interface is down.
func New(t testing.TB) *os.File {
	t.Helper()
	Need(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Process is a running copy of the test binary that plays a role in namespaces of its own.
type Process struct {
	*exec.Cmd
	In  io.WriteCloser // Its standard input.
	Out *bufio.Reader  // Its standard output. Standard error is the test's own.
}

// Start starts a role that was given to Main, in a network and a mount namespace of its own. The process is killed
// when the test ends, if it has not ended before.
func Start(t testing.TB, role string, isolation netns.Isolation) *Process {
	t.Helper()
	Need(t)
	p, err := Spawn(context.Background(), role, isolation)
	if err != nil {
		t.Fatal("start a process: ", err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	return p
}

// Spawn is Start for a role that starts further processes: it has no test to report to.
func Spawn(ctx context.Context, role string, isolation netns.Isolation) (*Process, error) {
	p := &Process{Cmd: netns.Command(ctx, isolation, os.Args[0])}
	p.Env = append(os.Environ(), roleVariable+"="+role)
	p.Stderr = os.Stderr
	in, err := p.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.In, p.Out = in, bufio.NewReader(out)
	return p, p.Cmd.Start()
}
