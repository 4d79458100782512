package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// forgetText has this process map no page of its program any more, so that only those are mapped again that it goes on
// to use: much of a program runs only when it starts, or in a burst of handshakes. The pages stay in the kernel's cache,
// for this and other proxies; the next use of one costs a minor fault, which maps its neighbours too. It returns how many
// bytes of address space were forgotten.
//
// Only mappings that the kernel knows to be as the file is are touched (Anonymous: 0 in smaps): a page that was written
// to would lose what was written.
func forgetText() (n int, err error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, fmt.Errorf("forget unused pages of the program: %w", err)
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("forget unused pages of the program: %w", err)
	}
	defer func() { _ = maps.Close() }()
	list, err := untouched(maps, program)
	if err != nil {
		return 0, fmt.Errorf("forget unused pages of the program: %w", err)
	}
	for _, m := range list {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return n, fmt.Errorf("forget unused pages of the program: madvise: %w", errno)
		}
		n += int(m.end - m.start)
	}
	return n, nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// untouched lists the mappings of a file that cannot be written to and have never been, of a text as in
// /proc/PID/smaps (proc_pid_smaps(5)).
func untouched(smaps io.Reader, file string) ([]mapping, error) {
	var list []mapping
	var at mapping
	candidate := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		switch {
		case len(fields) == 0:
		case len(fields) >= 5 && bytes.IndexByte(fields[0], '-') > 0: // address perms offset device inode path
			_, path, _ := bytes.Cut(lines.Bytes(), []byte("/"))
			candidate = len(fields[1]) == 4 && fields[1][0] == 'r' && fields[1][1] == '-' && fields[1][3] == 'p' && "/"+string(path) == file
			if !candidate {
				continue
			}
			from, to, _ := bytes.Cut(fields[0], []byte("-"))
			a, err := strconv.ParseUint(string(from), 16, 64)
			b, err2 := strconv.ParseUint(string(to), 16, 64)
			if err := errors.Join(err, err2); err != nil {
				return nil, fmt.Errorf("read a line of smaps: %w", err)
			}
			at = mapping{uintptr(a), uintptr(b)}
		case candidate && len(fields) == 3 && string(fields[0]) == "Anonymous:":
			if string(fields[1]) == "0" {
				list = append(list, at)
			}
			candidate = false
		}
	}
	return list, lines.Err()
}
