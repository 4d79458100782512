package redirect

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/lateen-mesh/lateen/redirect/netns"
	"github.com/lateen-mesh/lateen/redirect/netns/nstest"
)

// inside runs fn in a namespace and reports its error.
func inside(t *testing.T, ns *os.File, fn func() error) {
	t.Helper()
	if err := netns.Do(ns, fn); err != nil {
		t.Error(err)
	}
}

func mustRules(t *testing.T, c Config) Ruleset {
	t.Helper()
	rules, err := Rules(c)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// listing is all that the kernel has in our table: the rules of each chain.
func listing(conn *nftables.Conn) (map[string][][]expr.Any, error) {
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	if len(tables) != 1 || tables[0].Name != tableName || tables[0].Family != nftables.TableFamilyINet {
		return nil, errors.New("there is not one table, ours")
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	all := map[string][][]expr.Any{}
	for _, c := range chains {
		rules, err := conn.GetRules(tables[0], c)
		if err != nil {
			return nil, err
		}
		all[c.Name] = nil
		for _, r := range rules {
			all[c.Name] = append(all[c.Name], r.Exprs)
		}
	}
	return all, nil
}

func TestApplyIsIdempotent(t *testing.T) {
	first := mustRules(t, Config{})
	other := mustRules(t, Config{NoDNS: true, ExcludeInboundPorts: []uint16{22}})
	inside(t, nstest.New(t), func() error {
		var conn nftables.Conn
		var lists []map[string][][]expr.Any
		for _, rules := range []Ruleset{first, first, other, first} {
			if err := Apply(rules); err != nil {
				return err
			}
			list, err := listing(&conn)
			if err != nil {
				return err
			}
			lists = append(lists, list)
		}
		if diff := cmp.Diff(lists[0], lists[1]); diff != "" {
			t.Errorf("the second Apply changed (-first +second)\n%s", diff)
		}
		if cmp.Equal(lists[0], lists[2]) {
			t.Error("other rules changed nothing")
		}
		if diff := cmp.Diff(lists[0], lists[3]); diff != "" {
			t.Errorf("the first rules came back changed (-first +last)\n%s", diff)
		}
		return nil
	})
}

func TestApplyIsAtomic(t *testing.T) {
	rules := mustRules(t, Config{})
	broken := mustRules(t, Config{NoInbound: true})
	last := &broken.Chains[len(broken.Chains)-1]
	last.Rules = append(last.Rules, Rule{Action: Goto, Chain: "nowhere"})
	inside(t, nstest.New(t), func() error {
		var conn nftables.Conn
		if err := Apply(broken); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("broken rules where there are none: %v, want ENOENT", err)
		}
		if tables, err := conn.ListTables(); err != nil || len(tables) != 0 {
			t.Errorf("%d tables are left (%v)", len(tables), err)
		}
		if err := Apply(rules); err != nil {
			return err
		}
		if err := Apply(broken); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("broken rules: %v, want ENOENT", err)
		}
		return verify(&conn, ourTable(tableName), rules)
	})
}

func TestVerifyNotices(t *testing.T) {
	rules := mustRules(t, Config{})
	table := ourTable(tableName)
	chain := func(conn *nftables.Conn, name string) *nftables.Chain {
		chains, err := conn.ListChains()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range chains {
			if c.Name == name {
				return c
			}
		}
		t.Fatal("no chain ", name)
		return nil
	}
	for _, test := range []struct {
		name   string
		change func(*nftables.Conn)
		want   string
	}{
		{"a rule more", func(c *nftables.Conn) {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain(c, chainApp), Exprs: encodeRule(Rule{})})
		}, `chain "app" has 5 rules, not 4`},
		{"a chain more", func(c *nftables.Conn) {
			c.AddChain(&nftables.Chain{Name: "more", Table: table})
		}, "the table has 6 chains, not 5"},
		{"another rule", func(c *nftables.Conn) {
			rule, err := c.GetRules(table, chain(c, chainPrerouting))
			if err != nil {
				t.Fatal(err)
			}
			c.ReplaceRule(&nftables.Rule{
				Table: table, Chain: chain(c, chainPrerouting), Handle: rule[0].Handle,
				Exprs: encodeRule(Rule{Protocol: "tcp", ToPort: 15009}),
			})
		}, `chain "prerouting", rule 1 is not "tcp dport 15008 return`},
		{"another hook", func(c *nftables.Conn) {
			c.DelChain(chain(c, chainTrack))
			c.AddChain(&nftables.Chain{Name: chainTrack, Table: table})
		}, `chain "dns_zone": it hangs at`},
		{"another chain", func(c *nftables.Conn) {
			c.DelChain(chain(c, chainTrack))
			c.AddChain(&nftables.Chain{Name: "more", Table: table})
		}, `chain "dns_zone" is missing`},
	} {
		t.Run(test.name, func(t *testing.T) {
			inside(t, nstest.New(t), func() error {
				if err := Apply(rules); err != nil {
					return err
				}
				var conn nftables.Conn
				test.change(&conn)
				if err := conn.Flush(); err != nil {
					return err
				}
				if err := Verify(rules); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Verify says %v, want %q", err, test.want)
				}
				return nil
			})
		})
	}
}

// TestApplyManyRules is about the size of the transaction, and of the kernel's answer to it, which may not fit the
// socket's buffers. The rules are as many and as large as they may be.
func TestApplyManyRules(t *testing.T) {
	c := Config{NoDNS: true}
	most := mustRules(t, c)
	fill := func(list *[]netip.Prefix, first byte, count int) {
		for i := range count {
			*list = append(*list, netip.PrefixFrom(netip.AddrFrom16([16]byte{first, byte(i)}), 17))
		}
	}
	fill(&c.IncludeOutboundRanges, 0xfd, maxEntries)
	fill(&c.ExcludeOutboundRanges, 0xfd, maxEntries)
	for count, i := 0, 0; ; i++ {
		c.ExcludeOutboundPorts = append(c.ExcludeOutboundPorts, uint16(30000+i))
		rules, err := Rules(c)
		if err != nil {
			if want := "701 rules, at most 700"; count != maxRules || !strings.Contains(err.Error(), want) {
				t.Errorf("after %d rules: %v, want %q", count, err, want)
			}
			break
		}
		most, count = rules, 0
		for _, chain := range rules.Chains {
			count += len(chain.Rules)
		}
	}
	inside(t, nstest.New(t), func() error { return Apply(most) })
}

func TestRemove(t *testing.T) {
	rules := mustRules(t, Config{})
	inside(t, nstest.New(t), func() error {
		if err := Remove(); err != nil {
			t.Error("nothing to remove: ", err)
		}
		if err := Apply(rules); err != nil {
			return err
		}
		if err := Verify(rules); err != nil {
			t.Error("before: ", err)
		}
		if err := Remove(); err != nil {
			return err
		}
		if Verify(rules) == nil {
			t.Error("Verify finds rules that were removed")
		}
		var conn nftables.Conn
		tables, err := conn.ListTables()
		if len(tables) != 0 {
			t.Errorf("%d tables are left", len(tables))
		}
		return err
	})
}

func TestCheck(t *testing.T) {
	inside(t, nstest.New(t), func() error {
		if err := Check(); err != nil {
			t.Error(err)
		}
		var conn nftables.Conn
		tables, err := conn.ListTables()
		if len(tables) != 0 {
			t.Errorf("%d tables are left", len(tables))
		}
		return err
	})
}

// TestWithoutPrivilege has a thread give up its capabilities.
func TestWithoutPrivilege(t *testing.T) {
	nstest.Need(t)
	rules := mustRules(t, Config{})
	errs := map[string]error{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // For good: the thread ends with this goroutine.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			errs["capset"] = err
			return
		}
		errs["Check"], errs["Apply"], errs["Remove"] = Check(), Apply(rules), Remove()
	}()
	<-done
	for _, name := range []string{"Check", "Apply", "Remove"} {
		err := errs[name]
		if !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s says %v, want EPERM and advice, on one line", name, err)
		}
	}
	if errs["capset"] != nil {
		t.Error(errs["capset"])
	}
}

func TestAdvise(t *testing.T) {
	for _, test := range []struct {
		err  syscall.Errno
		want string
	}{
		{syscall.EPERM, "CAP_NET_ADMIN"},
		{syscall.EPROTONOSUPPORT, "modprobe nfnetlink"},
		{syscall.ENOENT, "the kernel lacks redirect: as root, modprobe nft_redir"},
		{syscall.EOPNOTSUPP, "the kernel lacks redirect: as root, modprobe nft_redir"},
		{syscall.ENOMEM, "out of memory"},
		{syscall.EBUSY, "the kernel refused"},
	} {
		if got := advise(test.err, "redirect", "nft_redir"); !strings.Contains(got, test.want) {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}
