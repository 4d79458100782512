package channel

import (
	"fmt"
	"syscall"
)

// mark returns what sets SO_MARK on a socket before it connects; nil for no mark.
func mark(m uint32) func(network, address string, c syscall.RawConn) error {
	if m == 0 {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, int(m))
		})
		if failed != nil {
			return fmt.Errorf("mark socket: %w (CAP_NET_ADMIN is needed)", failed)
		}
		return err
	}
}
