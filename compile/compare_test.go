package compile_test

import (
	"net/netip"

	"github.com/google/go-cmp/cmp"
)

// values compares what go-cmp cannot look into.
var values = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}
