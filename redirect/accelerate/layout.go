package accelerate

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// layout says where in the kernel's structures the fields are that the programs read. All but flagZeroCopy are offsets
// in bytes from the start of struct tcp_sock, with which struct sock begins.
type layout struct {
	cookie       int16 // sock_common.skc_cookie
	mark         int16 // sock.sk_mark
	flags        int16 // sock_common.skc_flags
	queued       int16 // sock.sk_backlog.rmem_alloc: bytes that wait to be read
	written      int16 // tcp_sock.write_seq: the sequence number of the next byte that is sent over TCP
	multipath    int16 // tcp_sock.is_mptcp, or 0 where the kernel does not know it
	flagZeroCopy int32 // the bit of skc_flags that SO_ZEROCOPY sets
}

// readLayout reads the layout from the type information of the running kernel.
func readLayout() (layout, error) {
	var l layout
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return l, fmt.Errorf("read the kernel's type information (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	for _, field := range []struct {
		to   *int16
		of   string
		path []string
	}{
		{&l.cookie, "sock_common", []string{"skc_cookie"}},
		{&l.mark, "sock", []string{"sk_mark"}},
		{&l.flags, "sock_common", []string{"skc_flags"}},
		{&l.queued, "sock", []string{"sk_backlog", "rmem_alloc"}},
		{&l.written, "tcp_sock", []string{"write_seq"}},
	} {
		if *field.to, err = offset(kernel, field.of, field.path); err != nil {
			return l, err
		}
	}
	if l.multipath, err = offset(kernel, "tcp_sock", []string{"is_mptcp"}); err != nil {
		l.multipath = 0 // A kernel without MPTCP.
	}
	var flags *btf.Enum
	if err := kernel.TypeByName("sock_flags", &flags); err != nil {
		return l, fmt.Errorf("find enum sock_flags in the kernel's type information: %w", err)
	}
	for _, v := range flags.Values {
		if v.Name == "SOCK_ZEROCOPY" {
			l.flagZeroCopy = int32(v.Value)
			return l, nil
		}
	}
	return l, fmt.Errorf("find SOCK_ZEROCOPY in the kernel's enum sock_flags")
}

// offset is where the field is that the path leads to, in bytes from the start of the named structure.
func offset(kernel *btf.Spec, name string, path []string) (int16, error) {
	var s *btf.Struct
	if err := kernel.TypeByName(name, &s); err != nil {
		return 0, fmt.Errorf("find struct %s in the kernel's type information: %w", name, err)
	}
	members, at := s.Members, uint32(0)
	for _, step := range path {
		m, below, ok := member(members, step)
		if !ok {
			return 0, fmt.Errorf("find %s.%s in the kernel's type information", name, step)
		}
		at += below
		members = membersOf(m.Type)
	}
	return int16(at), nil
}

// member finds a member by name, also in members that have none themselves.
func member(members []btf.Member, name string) (found btf.Member, at uint32, ok bool) {
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		if found, at, ok = member(membersOf(m.Type), name); ok {
			return found, at + m.Offset.Bytes(), true
		}
	}
	return btf.Member{}, 0, false
}

func membersOf(t btf.Type) []btf.Member {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return t.Members
	case *btf.Union:
		return t.Members
	default:
		return nil
	}
}
