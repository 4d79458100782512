package accelerate

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// trialBytes is what a trial sends at least: past maxQueued.
	trialBytes = 2 * maxQueued
	// trialSeconds bounds the wait for a byte of it.
	trialSeconds = 2
)

// try sends bytes over a connection of its own on the loopback interface of the caller's namespace, which has to be up,
// to see whether this kernel does what everything rests on: what is sent goes the direct way, the kernel counts what
// waits there, beyond maxQueued the rest goes over TCP, and all arrives in order.
func (a *Accelerator) try(mark uint32) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("try the accelerator on this kernel: %w", err)
		}
	}()
	cookie, err := Namespace()
	if err != nil {
		return err
	}
	if err := a.Admit(cookie); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Dismiss(cookie)) }()
	workload, proxy, err := trialPair(mark)
	if err != nil {
		return fmt.Errorf("connect over lo: %w", err)
	}
	defer func() { _, _ = unix.Close(workload), unix.Close(proxy) }()
	piece := make([]byte, 8<<10)
	sent := 0
	for sent < trialBytes {
		for i := range piece {
			piece[i] = byte((sent + i) >> 3)
		}
		n, err := unix.Write(workload, piece)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		if sent += n; sent == n && segments(workload) != 0 {
			return errors.New("what is sent goes over TCP all the same")
		}
	}
	if segments(workload) == 0 {
		return fmt.Errorf("%d bytes wait to be read and nothing holds their sender back; Linux 6.18 is known to be right", sent)
	}
	for at := 0; at < sent; {
		got := make([]byte, len(piece))
		n, err := unix.Read(proxy, got)
		if err != nil || n == 0 {
			return fmt.Errorf("of %d bytes %d arrived: %w", sent, at, os.NewSyscallError("read", err))
		}
		for i := range n {
			piece[i] = byte((at + i) >> 3)
		}
		if !bytes.Equal(got[:n], piece[:n]) {
			return errors.New("bytes arrived in another order")
		}
		at += n
	}
	return nil
}

// trialPair connects a socket with the mark, the proxy's, with one that does not block, the workload's.
func trialPair(mark uint32) (workload, proxy int, err error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(l) }()
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 1)); err != nil {
		return 0, 0, err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return 0, 0, os.NewSyscallError("getsockname", err)
	}
	proxy, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(proxy, unix.SOL_SOCKET, unix.SO_MARK, int(mark)),
		unix.SetsockoptTimeval(proxy, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: trialSeconds}),
		unix.SetsockoptTimeval(proxy, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: trialSeconds}), // Of connect.
	)
	if err == nil {
		err = unix.Connect(proxy, to)
	}
	if err == nil {
		workload, _, err = unix.Accept4(l, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	}
	if err != nil {
		_ = unix.Close(proxy)
		return 0, 0, err
	}
	return workload, proxy, nil
}

// segments is how many segments with data the socket has sent over TCP.
func segments(fd int) uint32 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return info.Data_segs_out
}
