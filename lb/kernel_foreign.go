package lb

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ForwardDrops finds other people's chains on the forward hook whose policy
// is drop, or whose last rule drops or rejects the rest, and whose table names none of the given devices anywhere. An accept
// in our tables cannot undo such a drop: every chain of the hook must let a
// packet pass (nft(8), "accept").
func (k *kernel) ForwardDrops(devices []string) ([]ForwardDrop, error) {
	chains, err := k.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", explain(err))
	}
	var out []ForwardDrop
	for _, c := range chains {
		if c.Table.Name == TableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward ||
			c.Type != nftables.ChainTypeFilter {
			continue
		}
		reject := false
		if c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			var err error
			if reject, err = k.endsInDrop(c); err != nil {
				return nil, err
			}
			if !reject {
				continue
			}
		}
		family, ok := familyNames[c.Table.Family]
		if !ok {
			continue
		}
		named, firewall := false, ""
		for _, d := range chains {
			if d.Table.Name != c.Table.Name || d.Table.Family != c.Table.Family {
				continue
			}
			for _, p := range places {
				if firewall == "" && p.table == d.Table.Name && p.chain == d.Name && foreignFamily(p.family) == d.Table.Family {
					firewall = p.firewall
				}
			}
			if n, err := k.names(d, devices); err != nil {
				return nil, err
			} else if n {
				named = true
			}
		}
		if !named {
			out = append(out, ForwardDrop{Family: family, Table: c.Table.Name, Chain: c.Name, Firewall: firewall, Reject: reject})
		}
	}
	slices.SortFunc(out, func(a, b ForwardDrop) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// endsInDrop reports whether the last rule of a chain drops or rejects all
// that came so far, which is how firewalld does it.
func (k *kernel) endsInDrop(c *nftables.Chain) (bool, error) {
	rules, err := k.conn.GetRules(c.Table, c)
	if err != nil {
		return false, fmt.Errorf("list rules of %s %s: %w", c.Table.Name, c.Name, explain(err))
	}
	if len(rules) == 0 {
		return false, nil
	}
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return true, nil
		case *expr.Verdict:
			return e.Kind == expr.VerdictDrop, nil
		default:
			return false, nil // it asks for something
		}
	}
	return false, nil
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip",
	nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyINet: "inet",
}

// names reports whether a rule of a chain compares with one of the devices'
// names, whole or by its beginning.
func (k *kernel) names(c *nftables.Chain, devices []string) (bool, error) {
	rules, err := k.conn.GetRules(c.Table, c)
	if err != nil {
		return false, fmt.Errorf("list rules of %s %s: %w", c.Table.Name, c.Name, explain(err))
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Cmp:
				if names(e.Data, devices) {
					return true, nil
				}
			case *expr.Lookup:
				set, err := k.conn.GetSetByName(c.Table, e.SetName)
				if err != nil {
					return false, fmt.Errorf("read set %s: %w", e.SetName, explain(err))
				}
				if set.KeyType.Name != nftables.TypeIFName.Name {
					continue
				}
				elems, err := k.conn.GetSetElements(set)
				if err != nil {
					return false, fmt.Errorf("read set %s: %w", e.SetName, explain(err))
				}
				if slices.ContainsFunc(elems, func(x nftables.SetElement) bool { return names(x.Key, devices) }) {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// names reports whether data is the beginning of one of the devices' names,
// as far as its first NUL.
func names(data []byte, devices []string) bool {
	data, _, _ = bytes.Cut(data, []byte{0})
	if len(data) < 2 {
		return false
	}
	return slices.ContainsFunc(devices, func(d string) bool { return strings.HasPrefix(d, string(data)) })
}
