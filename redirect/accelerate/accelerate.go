// Package accelerate shortens the way of bytes between a workload and its proxy on the same node: what the workload
// sends on such a connection goes straight into the queue that the proxy reads, without passing through TCP.
//
// In comes a Config that says how the proxy's sockets are recognised, and the network namespaces in which to look for
// connections (Admit). Out goes nothing that anybody has to know: sockets stay sockets. Three BPF programs do it, two of
// them attached to a control group: one pairs the ends of each new local connection, one redirects what is sent, one
// keeps socket options away that the direct way has not. Nothing is pinned: the programs are detached when the
// Accelerator is closed or its process ends, and open connections go on.
//
// Only the direction towards the proxy is shortened, because the reading end can tell the difference (see
// docs/decisions/006-accelerator.md) and the proxy is the only reader that we know. Whoever reads must not take a short
// read for an empty queue.
//
// The package must not know what is sent, and imports nothing of ours. Its methods may be called
// concurrently, but Close is the last.
package accelerate

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	// maxSockets bounds the connections that are shortened at once; later ones go over TCP.
	maxSockets = 16384
	// maxWaiting bounds the connections of which one end is established; the other end comes microseconds later.
	maxWaiting = 1024
	// maxNamespaces bounds the namespaces that are admitted.
	maxNamespaces = 4096
	// maxPorts bounds the ports of a Config.
	maxPorts = 16
	// maxQueued is how many bytes may wait to be read before the rest of a connection goes over TCP, which makes its
	// sender wait: the direct way does not.
	maxQueued = 256 << 10
)

// Config says how the proxy's end of a connection is recognised: by either.
type Config struct {
	// Ports are where the proxy accepts what was captured; at least one.
	Ports []uint16
	// Mark, not 0, is the SO_MARK of the connections that the proxy opens; Mask are the bits that are compared, 0 means all.
	Mark, Mask uint32
	// Cgroup is the directory of a control group (version 2) that holds both ends of the connections. Empty: the
	// caller's own.
	Cgroup string
}

// Accelerator is what was attached to the kernel.
type Accelerator struct {
	maps  *maps
	parts []io.Closer // In the order in which they are closed.
}

// maps are what the programs share.
type maps struct {
	namespaces *ebpf.Map // Cookies of the admitted namespaces.
	waiting    *ebpf.Map // Handshake to the end that is established.
	pairs      *ebpf.Map // Cookie of a sender to its pair.
	senders    *ebpf.Map // Sockets whose sends are looked at, by cookie.
	targets    *ebpf.Map // Sockets that may be sent to directly, by cookie.
	marks      *ebpf.Map // Storage of the senders' sockets: the cookie.
	closed     *ebpf.Map // One word: not 0 when the accelerator has ended.
}

// New attaches an accelerator, and tries it on the loopback interface of the caller's network namespace. An error says
// what the kernel or the user lacks: nothing is attached then.
func New(c Config) (*Accelerator, error) {
	if len(c.Ports) == 0 || len(c.Ports) > maxPorts {
		return nil, fmt.Errorf("accelerate: %d ports, want 1 to %d", len(c.Ports), maxPorts)
	}
	if c.Mask == 0 {
		c.Mask = math.MaxUint32
	}
	if c.Mark == 0 || c.Mark&^c.Mask != 0 {
		return nil, fmt.Errorf("accelerate: no mark can be %#x under the mask %#x", c.Mark, c.Mask)
	}
	a := &Accelerator{}
	if err := a.attach(c); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// attach loads and attaches everything.
func (a *Accelerator) attach(c Config) error {
	if c.Cgroup == "" {
		var err error
		if c.Cgroup, err = ownCgroup(); err != nil {
			return err
		}
	}
	l, err := readLayout()
	if err != nil {
		return err
	}
	if err := a.makeMaps(); err != nil {
		return refusal("make maps", err)
	}
	m := a.maps
	sender, err := a.load(&ebpf.ProgramSpec{Name: "lateen_send", Type: ebpf.SkMsg, Instructions: send(m, l)})
	if err != nil {
		return err
	}
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: m.senders.FD(), Program: sender, Attach: ebpf.AttachSkMsgVerdict,
	}); err != nil {
		return refusal("attach to the sockets' map", err)
	}
	options, err := a.load(&ebpf.ProgramSpec{
		Name: "lateen_option", Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt, Instructions: option(m),
	})
	if err != nil {
		return err
	}
	if err := a.join(c.Cgroup, ebpf.AttachCGroupSetsockopt, options); err != nil {
		return err
	}
	pairing, err := a.load(&ebpf.ProgramSpec{
		Name: "lateen_pair", Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, Instructions: pair(c, m, l),
	})
	if err != nil {
		return err
	}
	if err := a.join(c.Cgroup, ebpf.AttachCGroupSockOps, pairing); err != nil {
		return err
	}
	return a.try(c.Mark)
}

// load loads a program.
func (a *Accelerator) load(spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	spec.License = "Dual BSD/GPL"
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, refusal("load the program "+spec.Name, err)
	}
	a.parts = append(a.parts, p)
	return p, nil
}

// join attaches a program to a control group.
func (a *Accelerator) join(cgroup string, where ebpf.AttachType, p *ebpf.Program) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: where, Program: p})
	if err != nil {
		return refusal("attach to the control group "+cgroup, err)
	}
	a.parts = append(a.parts, l)
	return nil
}

// makeMaps makes the maps.
func (a *Accelerator) makeMaps() error {
	m := &maps{}
	word := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	long := &btf.Int{Name: "long", Size: 8}
	for _, spec := range []struct {
		to **ebpf.Map
		ebpf.MapSpec
	}{
		{&m.namespaces, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: maxNamespaces, Flags: unix.BPF_F_NO_PREALLOC}},
		{&m.waiting, ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 24, ValueSize: 24, MaxEntries: maxWaiting}},
		{&m.pairs, ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 8, ValueSize: 24, MaxEntries: maxSockets}},
		{&m.senders, ebpf.MapSpec{Type: ebpf.SockHash, KeySize: 8, ValueSize: 8, MaxEntries: maxSockets}},
		{&m.targets, ebpf.MapSpec{Type: ebpf.SockHash, KeySize: 8, ValueSize: 8, MaxEntries: maxSockets}},
		{&m.marks, ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC, Key: word, Value: long}},
		{&m.closed, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}},
	} {
		made, err := ebpf.NewMap(&spec.MapSpec)
		if err != nil {
			return err
		}
		*spec.to = made
		a.parts = append(a.parts, made)
	}
	a.maps = m
	return nil
}

// Admit has the connections inside a network namespace shortened, from now on; those that are open stay as they are.
// The namespace is named by its cookie (see Namespace).
func (a *Accelerator) Admit(cookie uint64) error {
	if err := a.maps.namespaces.Put(cookie, uint32(1)); err != nil {
		return fmt.Errorf("admit the network namespace %d to the accelerator: %w", cookie, err)
	}
	return nil
}

// Dismiss undoes Admit; connections that are shortened stay so.
func (a *Accelerator) Dismiss(cookie uint64) error {
	err := a.maps.namespaces.Delete(cookie)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("dismiss the network namespace %d from the accelerator: %w", cookie, err)
	}
	return nil
}

// Close detaches everything. Open connections go on over TCP, without the loss of a byte.
func (a *Accelerator) Close() error {
	var errs []error
	if a.maps != nil {
		errs = append(errs, a.maps.closed.Put(uint32(0), uint32(1)))
	}
	for _, v := range slices.Backward(a.parts) {
		errs = append(errs, v.Close())
	}
	a.parts, a.maps = nil, nil
	return errors.Join(errs...)
}

// Namespace returns the cookie of the calling thread's network namespace (SO_NETNS_COOKIE).
func Namespace() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the cookie of the network namespace (Linux 5.14): %w", os.NewSyscallError("getsockopt", err))
	}
	return cookie, nil
}
