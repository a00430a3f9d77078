package lb

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

func foreignFamily(name string) nftables.TableFamily {
	switch name {
	case "ip":
		return nftables.TableFamilyIPv4
	case "ip6":
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyINet
}

func (k *kernel) Places() ([]placed, error) {
	tables, err := k.conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", explain(err))
	}
	chains, err := k.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", explain(err))
	}
	out := make([]placed, 0, len(places))
	for _, p := range places {
		at := placed{passPoint: p}
		f := foreignFamily(p.family)
		for _, t := range tables {
			if t.Family == f && t.Name == p.table {
				at.owned = t.Flags&nftables.TableFlagOwner != 0
			}
		}
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool {
			return c.Table.Family == f && c.Table.Name == p.table && c.Name == p.chain
		})
		if i >= 0 {
			at.there = true
			rules, err := k.conn.GetRules(chains[i].Table, chains[i])
			if err != nil {
				return nil, fmt.Errorf("list rules of %s: %w", p, explain(err))
			}
			for _, r := range rules {
				if tag, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && tag == firewallTag {
					at.rules = append(at.rules, taggedRule{parsePass(r.Exprs), r.Handle})
				}
			}
		}
		out = append(out, at)
	}
	return out, nil
}

// parsePass reads a rule of ours back. One that somebody edited comes out as
// another rule, and is replaced.
func parsePass(exprs []expr.Any) passRule {
	var r passRule
	accept := false
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			r.out = e.Key == expr.MetaKeyOIFNAME
		case *expr.Cmp:
			name, _, whole := strings.Cut(string(e.Data), "\x00")
			if !whole { // compared as far as it goes
				name += "*"
			}
			r.device = name
		case *expr.Verdict:
			accept = e.Kind == expr.VerdictAccept
		}
	}
	if !accept {
		r.device = ""
	}
	return r
}

// compilePass makes the rule as iptables-nft writes it, so that `iptables -S`
// shows it too.
func compilePass(r passRule) []expr.Any {
	key := expr.MetaKeyIIFNAME
	if r.out {
		key = expr.MetaKeyOIFNAME
	}
	name, prefix := strings.CutSuffix(r.device, "*")
	data := []byte(name)
	if !prefix {
		data = append(data, make([]byte, 16-len(data))...)
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

func (k *kernel) Pass(ops []firewallOp) error {
	if len(ops) == 0 {
		return nil
	}
	for _, o := range ops {
		t := &nftables.Table{Name: o.table, Family: foreignFamily(o.family)}
		r := &nftables.Rule{Table: t, Chain: &nftables.Chain{Name: o.chain, Table: t}}
		if !o.insert {
			r.Handle = o.rule.handle
			if err := k.conn.DelRule(r); err != nil {
				return fmt.Errorf("delete rule of %s: %w", o.passPoint, err)
			}
			continue
		}
		r.Exprs = compilePass(o.rule.passRule)
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, firewallTag)
		k.conn.InsertRule(r)
	}
	if err := k.conn.Flush(); err != nil {
		return fmt.Errorf("change rules of %s: %w", ops[0].passPoint, explain(err))
	}
	return nil
}

func (k *kernel) Legacy() bool { return legacyRules("/proc/thread-self/net/ip_tables_names") }

// legacyRules reads which tables of iptables-legacy a network namespace has.
// The kernel makes one when somebody looks at it first.
func legacyRules(file string) bool {
	b, err := os.ReadFile(file)
	return err == nil && slices.Contains(strings.Fields(string(b)), "filter")
}

// LegacyRules reports whether the calling thread's network namespace has
// filter rules of iptables-legacy. They drop packets like others and are not
// to be seen by nftables.
func LegacyRules() bool { return new(kernel).Legacy() }
