package proxy

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUntouched(t *testing.T) {
	const smaps = `00400000-00b2c000 r-xp 00000000 fe:00 1 /opt/lateen proxy
Rss:                4096 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00b2c000-00c00000 r--p 0072c000 fe:00 1 /opt/lateen proxy
Anonymous:             4 kB
00c00000-00d00000 rw-p 00800000 fe:00 1 /opt/lateen proxy
Anonymous:             0 kB
00d00000-00e00000 r--p 00900000 fe:00 1 /opt/lateen proxy
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 2 /lib/other
Anonymous:             0 kB
7f0000002000-7f0000003000 r--s 00000000 fe:00 1 /opt/lateen proxy
Anonymous:             0 kB
7f0000004000-7f0000005000 r--p 00000000 00:00 0 [vvar]
Anonymous:             0 kB
`
	got, err := untouched(strings.NewReader(smaps), "/opt/lateen proxy")
	want := []mapping{{0x400000, 0xb2c000}, {0xd00000, 0xe00000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); err != nil || diff != "" {
		t.Errorf("%v; mappings (-want +got):\n%s", err, diff)
	}
	if _, err := untouched(strings.NewReader("zz-00b2c000 r-xp 00000000 fe:00 1 /a\n"), "/a"); err == nil {
		t.Error("an address that is none was read")
	}
}

// TestForgetText: a program goes on without the pages that it has touched, and holds fewer of them.
func TestForgetText(t *testing.T) {
	if os.Getenv("LATEEN_FORGET") == "" {
		self := exec.Command(os.Args[0], "-test.run", "^TestForgetText$", "-test.v") // by itself, so that nothing else touches pages
		self.Env = append(os.Environ(), "LATEEN_FORGET=1")
		if out, err := self.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	before := mapped(t)
	n, err := forgetText()
	if err != nil || n == 0 {
		t.Fatalf("forgot %d bytes, %v", n, err)
	}
	if after := mapped(t); after >= before {
		t.Errorf("%d kB of files are mapped, before %d", after, before)
	}
}

// mapped is how many kB of files this process maps.
func mapped(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "RssFile:")
	if !ok {
		t.Skip("this kernel does not tell RssFile")
	}
	return atoi([]byte(strings.Fields(rest)[0]))
}
