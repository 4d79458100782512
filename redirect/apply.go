package redirect

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// sendBufferBytes makes room for maxRules in one message, which take up to 350 KiB: the kernel doubles it, and every
// user may ask for that much (default of net.core.wmem_max).
const sendBufferBytes = 208 << 10

// gateTable is there while the first rules are set. See shut.
const gateTable = "lateen_gate"

func ourTable(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

// Apply makes r the capture rules of the current network namespace, whatever was in the table "inet lateen" before,
// in one transaction: no packet meets half of the rules, and on error those that were there stay. Then it lists the
// rules back and compares. Where there were none nothing comes in meanwhile (see shut). It needs CAP_NET_ADMIN; Check
// tells what else.
func Apply(r Ruleset) error {
	conn, err := nftables.New(nftables.WithSockOptions(largeMessages))
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	table, gate := ourTable(tableName), ourTable(gateTable)
	err = shut(conn, table, gate)
	if err == nil {
		replace(conn, table)
		write(conn, table, r)
		remove(conn, gate)
		err = conn.Flush()
	}
	if err != nil && !errors.Is(err, syscall.ENOBUFS) {
		remove(conn, gate)
		_ = conn.Flush() // what was not captured before is not to be cut off
		// ENOBUFS: the kernel did as it was told or not at all, but its answer got lost. What follows tells.
		if missing := Check(); missing != nil {
			err = missing
		}
		return fmt.Errorf("apply capture rules: %w", err)
	}
	if err := verify(conn, table, r); err != nil {
		return fmt.Errorf("verify the capture rules that were applied (does another program change the table %q?): %w",
			"inet "+tableName, err)
	}
	return nil
}

// shut drops what comes in, until the gate is removed, if there are no rules yet. The kernel leads packets into a new
// chain before its rules are in force: one that came at that moment would pass, and connection tracking would let all
// others of its connection pass, too. Where there are older rules they decide until the new ones do.
func shut(conn *nftables.Conn, table, gate *nftables.Table) error {
	tables, err := conn.ListTablesOfFamily(table.Family)
	if err != nil || slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name }) {
		return err
	}
	drop := nftables.ChainPolicyDrop
	conn.AddTable(gate)
	conn.AddChain(&nftables.Chain{
		Name: chainPrerouting, Table: gate, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRaw, Policy: &drop, // before connection tracking
	})
	return conn.Flush()
}

// Verify returns an error unless r are the capture rules of the current network namespace, exactly. It needs
// CAP_NET_ADMIN.
func Verify(r Ruleset) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("verify capture rules: %w", err)
	}
	if err := verify(conn, ourTable(tableName), r); err != nil {
		return fmt.Errorf("verify capture rules: %w", err)
	}
	return nil
}

// largeMessages is for connections that carry a whole rule set.
func largeMessages(socket *netlink.Conn) error { return socket.SetWriteBuffer(sendBufferBytes) }

// Remove takes the capture rules out of the current network namespace. It is not an error if there are none.
// Captured connections that are open may break.
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	remove(conn, ourTable(tableName))
	remove(conn, ourTable(gateTable)) // of an Apply that was killed
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove capture rules: %s: %w", advise(err, "nf_tables", "nf_tables"), err)
	}
	return nil
}

// replace puts commands into the transaction that leave the table empty, whether it exists or not.
func replace(conn *nftables.Conn, table *nftables.Table) {
	remove(conn, table)
	conn.AddTable(table)
}

// remove puts commands into the transaction that take the table away, whether it exists or not.
func remove(conn *nftables.Conn, table *nftables.Table) {
	conn.AddTable(table)
	conn.DelTable(table)
}

// write puts the rules into the transaction: first all chains, as rules name chains that come later.
func write(conn *nftables.Conn, table *nftables.Table, r Ruleset) {
	chains := make([]*nftables.Chain, len(r.Chains))
	for i, c := range r.Chains {
		chains[i] = conn.AddChain(encodeChain(table, c))
	}
	for i, c := range r.Chains {
		for _, rule := range c.Rules {
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: chains[i], Exprs: encodeRule(rule),
				UserData: encodeWhy(rule),
			})
		}
	}
}

// verify compares what the kernel has with what it was given.
func verify(conn *nftables.Conn, table *nftables.Table, r Ruleset) error {
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	found := map[string]*nftables.Chain{}
	for _, c := range chains {
		if c.Table.Name == table.Name {
			found[c.Name] = c
		}
	}
	if len(found) != len(r.Chains) {
		return fmt.Errorf("the table has %d chains, not %d", len(found), len(r.Chains))
	}
	for _, want := range r.Chains {
		have := found[want.Name]
		if have == nil {
			return fmt.Errorf("chain %q is missing", want.Name)
		}
		if err := sameHook(encodeChain(table, want), have); err != nil {
			return fmt.Errorf("chain %q: %w", want.Name, err)
		}
		rules, err := conn.GetRules(table, have)
		if err != nil {
			return fmt.Errorf("list the rules of chain %q: %w", want.Name, err)
		}
		if len(rules) != len(want.Rules) {
			return fmt.Errorf("chain %q has %d rules, not %d", want.Name, len(rules), len(want.Rules))
		}
		for i, rule := range want.Rules {
			if !reflect.DeepEqual(rules[i].Exprs, asListed(encodeRule(rule))) {
				return fmt.Errorf("chain %q, rule %d is not %q", want.Name, i+1, rule)
			}
		}
	}
	return nil
}

func sameHook(want, have *nftables.Chain) error {
	type hook struct {
		kind     nftables.ChainType
		number   nftables.ChainHook
		priority nftables.ChainPriority
	}
	of := func(c *nftables.Chain) (h hook) {
		if c.Hooknum != nil && c.Priority != nil {
			h = hook{c.Type, *c.Hooknum, *c.Priority}
		}
		return h
	}
	if of(want) != of(have) {
		return fmt.Errorf("it hangs at %+v, not at %+v", of(have), of(want))
	}
	return nil
}

// asListed leaves out what the library does not decode: the register from which a conntrack zone is set.
func asListed(rule []expr.Any) []expr.Any {
	for _, e := range rule {
		if ct, ok := e.(*expr.Ct); ok {
			ct.Register, ct.SourceRegister = 0, false
		}
	}
	return rule
}
