package hbone

import (
	"net/netip"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1:80": "10.0.0.1:80", "[fd00::1]:8080": "[fd00::1]:8080", "[::ffff:10.0.0.1]:80": "10.0.0.1:80",
		"": "", "10.0.0.1": "", "10.0.0.1:": "", "10.0.0.1:0": "", "10.0.0.1:65536": "", "10.0.0.1:+80": "", "fd00::1:80": "", "[fe80::1%eth0]:80": "",
		"reviews.default.svc.cluster.local:80": "", "10.0.0.1:80 ": "", "user@10.0.0.1:80": "", "[10.0.0.1]:80": "", "010.0.0.1:80": "",
		"10.0.0.1:00000000000000000000000000000000000000000000000000080": "",
	} {
		got, ok := ParseAuthority([]byte(text))
		if ok != (want != "") || ok && got != netip.MustParseAddrPort(want) {
			t.Errorf("%q: %s, %t; want %q", text, got, ok, want)
		}
	}
}

func TestParseForwarded(t *testing.T) {
	for text, want := range map[string]string{
		`for="10.0.0.1:4711"`: "10.0.0.1:4711", `for="10.0.0.1:4711";host=reviews`: "10.0.0.1:4711", `host=a; For=10.0.0.1:4711`: "10.0.0.1:4711",
		`for="[fd00::1]:4711", for="10.0.0.2:1"`: "[fd00::1]:4711",
		"":                                       "", "for=_hidden": "", "for=10.0.0.1": "", `by="10.0.0.1:4711"`: "", `host=a, for="10.0.0.1:4711"`: "",
	} {
		got, ok := ParseForwarded([]byte(text))
		if ok != (want != "") || ok && got != netip.MustParseAddrPort(want) {
			t.Errorf("%q: %s, %t; want %q", text, got, ok, want)
		}
	}
}

// FuzzParseAuthority: what is taken is an address that a connection can be made to, and means the same when written again.
func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:8080", "[::ffff:10.0.0.1]:80", "[fe80::1%a]:1", "a:1", `for="10.0.0.1:4711";host=x, for=1`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, parse := range []func([]byte) (netip.AddrPort, bool){ParseAuthority, ParseForwarded} {
			a, ok := parse(p)
			if !ok {
				continue
			}
			if a.Port() == 0 || !a.Addr().IsValid() || a.Addr().Zone() != "" || a.Addr().Is4In6() {
				t.Errorf("%q is taken for %s", p, a)
			}
			if again, ok := ParseAuthority([]byte(a.String())); !ok || again != a {
				t.Errorf("%q is %s, and that is %s, %t", p, a, again, ok)
			}
		}
	})
}
