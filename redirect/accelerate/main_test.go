package accelerate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
)

const (
	// roleVariable tells a copy of the test binary what it is for.
	roleVariable = "LATEEN_TEST_ROLE"
	roleTests    = "tests"    // Run the tests, in a network namespace of their own.
	roleAttacher = "attacher" // Attach an accelerator and wait to be killed.

	testPort = 15001
	testMark = 0x539
	// patience bounds what must not stall.
	patience = 10 * time.Second
)

// TestMain runs the tests as root in a network namespace of their own, so that nothing else on the machine is touched.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleTests:
		if err := netns.Loopback(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case roleAttacher:
		os.Exit(attacher())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := netns.Command(context.Background(), netns.Isolation{}, os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleTests)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func testConfig() Config { return Config{Ports: []uint16{testPort}, Mark: testMark, Mask: 0xfff} }

// attach attaches an accelerator for the tests' own namespace.
func attach(t testing.TB) *Accelerator {
	t.Helper()
	if os.Getenv(roleVariable) != roleTests {
		t.Skip("needs root: BPF programs are attached to a control group")
	}
	a, err := New(testConfig())
	if err != nil && (errors.Is(err, unix.EPERM) || !rightKernel(t)) {
		t.Skip("this kernel has no room for an accelerator: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	admit(t, a)
	return a
}

// rightKernel reports whether this is a Linux on which an accelerator is known to work, 6.18 or newer.
func rightKernel(t testing.TB) bool {
	t.Helper()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uname.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 18
}

func admit(t testing.TB, a *Accelerator) {
	t.Helper()
	cookie, err := Namespace()
	if err == nil {
		err = a.Admit(cookie)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// attacher attaches an accelerator, says so and waits.
func attacher() int {
	a, err := New(testConfig())
	if err == nil {
		var cookie uint64
		if cookie, err = Namespace(); err == nil {
			err = a.Admit(cookie)
		}
	}
	_, _ = fmt.Fprintln(os.Stdout, err)
	_, _ = os.Stdin.Read(make([]byte, 1))
	return 0
}

// startAttacher starts an attacher and returns the function that kills it.
func startAttacher(t *testing.T) (kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+roleAttacher)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("the attacher says %q, %v", line, err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = in.Close()
	}
}

// shape is a way in which a workload and its proxy come to be connected.
type shape struct {
	name string
	// listen is the address of the end that is called; mark is that of the end that calls.
	listen string
	mark   int
	calls  bool // The workload calls, else the proxy.
}

func shapes() []shape {
	return []shape{
		{name: "workload calls", listen: "127.0.0.1:" + strconv.Itoa(testPort), calls: true},
		{name: "proxy calls", listen: "127.0.0.1:0", mark: testMark},
		{name: "proxy calls over IPv6", listen: "[::1]:0", mark: testMark},
	}
}

// each runs a test for every shape, with an accelerator.
func each(t *testing.T, test func(t *testing.T, a *Accelerator, s shape)) {
	for _, s := range shapes() {
		t.Run(s.name, func(t *testing.T) { test(t, attach(t), s) })
	}
}

// listener listens for connections of a shape.
func (s shape) listener(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", s.listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// dial calls a listener.
func (s shape) dial(address string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if s.mark == 0 {
			return nil
		}
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, s.mark) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// connect makes a connection and returns the workload's end and the proxy's.
func (s shape) connect(t testing.TB) (workload, proxy *net.TCPConn) {
	t.Helper()
	l := s.listener(t)
	caller, err := s.dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	called, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.TCPConn{caller, called} {
		_ = c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { _ = c.Close() })
	}
	_ = l.Close()
	if s.calls {
		return caller, called
	}
	return called, caller
}

// overTCP is how many segments with data the socket has sent.
func overTCP(t testing.TB, c *net.TCPConn) (segments uint32) {
	t.Helper()
	control(t, c, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			segments = info.Data_segs_out
		}
		return err
	})
	return segments
}

// control does something to the socket.
func control(t testing.TB, c *net.TCPConn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) })
	if cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}
