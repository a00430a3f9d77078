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
// is drop and whose table names none of the given devices anywhere. An accept
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
			c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop || c.Type != nftables.ChainTypeFilter {
			continue
		}
		family, ok := familyNames[c.Table.Family]
		if !ok {
			continue
		}
		named, docker := false, false
		for _, d := range chains {
			if d.Table.Name != c.Table.Name || d.Table.Family != c.Table.Family {
				continue
			}
			docker = docker || d.Name == "DOCKER-USER"
			if n, err := k.names(d, devices); err != nil {
				return nil, err
			} else if n {
				named = true
			}
		}
		if !named {
			out = append(out, ForwardDrop{Family: family, Table: c.Table.Name, Chain: c.Name, Docker: docker})
		}
	}
	slices.SortFunc(out, func(a, b ForwardDrop) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip",
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
