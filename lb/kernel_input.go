package lb

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// InputDrop is a base chain of somebody else's for packets to this host that
// drops what it does not know, with the ports that its table never names.
type InputDrop struct {
	Family, Table, Chain string
	Ports                []Port
}

// Port is a port with its protocol.
type Port struct {
	Proto  string // "tcp" or "udp"
	Number uint16
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Proto) }

// InputDrops looks in other people's rules for a drop of packets to the given
// ports of this host. A table that names a port anywhere, alone, in a set or
// within a range, is believed to let it pass; whether a rule without a port
// does is not known. It opens a netlink socket of its own in the calling
// thread's network namespace.
func InputDrops(ports []Port) ([]InputDrop, error) {
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return k.inputDrops(ports)
}

func (k *kernel) inputDrops(ports []Port) ([]InputDrop, error) {
	chains, err := k.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", explain(err))
	}
	var out []InputDrop
	for _, c := range chains {
		family, ok := familyNames[c.Table.Family]
		if !ok || c.Table.Name == TableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookInput || c.Type != nftables.ChainTypeFilter {
			continue
		}
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if !drops {
			if drops, err = k.endsInDrop(c); err != nil {
				return nil, err
			}
		}
		if !drops {
			continue
		}
		left := slices.Clone(ports)
		for _, d := range chains {
			if d.Table.Name != c.Table.Name || d.Table.Family != c.Table.Family {
				continue
			}
			rules, err := k.conn.GetRules(d.Table, d)
			if err != nil {
				return nil, fmt.Errorf("list rules of %s %s: %w", d.Table.Name, d.Name, explain(err))
			}
			for _, r := range rules {
				named, err := k.portsOf(d.Table, r.Exprs)
				if err != nil {
					return nil, err
				}
				left = slices.DeleteFunc(left, func(p Port) bool {
					return slices.ContainsFunc(named, func(s [2]uint16) bool { return s[0] <= p.Number && p.Number <= s[1] })
				})
			}
		}
		if len(left) > 0 {
			out = append(out, InputDrop{family, c.Table.Name, c.Name, left})
		}
	}
	slices.SortFunc(out, func(a, b InputDrop) int {
		return strings.Compare(a.Family+a.Table+a.Chain, b.Family+b.Table+b.Chain)
	})
	return out, nil
}

// portsOf collects the ranges of ports that a rule compares with: two bytes in
// network order in nftables' own expressions, in host order in the matches of
// iptables.
func (k *kernel) portsOf(t *nftables.Table, exprs []expr.Any) ([][2]uint16, error) {
	var out [][2]uint16
	one := func(b []byte) {
		if len(b) == 2 {
			p := binary.BigEndian.Uint16(b)
			out = append(out, [2]uint16{p, p})
		}
	}
	var low uint16
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Cmp:
			switch {
			case len(e.Data) != 2:
			case e.Op == expr.CmpOpGte:
				low = binary.BigEndian.Uint16(e.Data)
			case e.Op == expr.CmpOpLte:
				out = append(out, [2]uint16{low, binary.BigEndian.Uint16(e.Data)})
			default:
				one(e.Data)
			}
		case *expr.Range:
			if len(e.FromData) == 2 && len(e.ToData) == 2 {
				out = append(out, [2]uint16{binary.BigEndian.Uint16(e.FromData), binary.BigEndian.Uint16(e.ToData)})
			}
		case *expr.Lookup:
			set, err := k.conn.GetSetByName(t, e.SetName)
			if err != nil {
				return nil, fmt.Errorf("read set %s: %w", e.SetName, explain(err))
			}
			if set.KeyType.Name != nftables.TypeInetService.Name {
				continue
			}
			elems, err := k.conn.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("read set %s: %w", e.SetName, explain(err))
			}
			out = append(out, portRanges(elems, set.Interval)...)
		case *expr.Match:
			info, ok := e.Info.(*xt.Unknown)
			if !ok {
				continue
			}
			b := []byte(*info)
			switch {
			case (e.Name == "tcp" || e.Name == "udp") && len(b) >= 8: // struct xt_tcp, xt_udp: source range, destination range
				out = append(out, [2]uint16{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])})
			case e.Name == "multiport" && len(b) >= 32: // struct xt_multiport_v1: flags, count, ports
				for i := range min(int(b[1]), 15) {
					p := binary.NativeEndian.Uint16(b[2+2*i:])
					out = append(out, [2]uint16{p, p})
				}
			}
		}
	}
	return out, nil
}

// portRanges reads the elements of a set of ports; an interval is two elements,
// its first port and the one after its last, which is marked as an end.
func portRanges(elems []nftables.SetElement, interval bool) [][2]uint16 {
	slices.SortFunc(elems, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	var out [][2]uint16
	for _, e := range elems {
		if len(e.Key) != 2 {
			continue
		}
		p := binary.BigEndian.Uint16(e.Key)
		if e.IntervalEnd {
			if n := len(out); n > 0 {
				out[n-1][1] = p - 1
			}
			continue
		}
		last := p
		if interval {
			last = 65535 // until its end comes
		}
		out = append(out, [2]uint16{p, last})
	}
	return out
}
