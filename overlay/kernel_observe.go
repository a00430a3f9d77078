package overlay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a dump is taken again that changed under our
// hands (NLM_F_DUMP_INTR).
const dumpTries = 5

func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumpTries {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// Observe reads everything in one go. Its cost grows with the links, routes
// and entries of the host, not with the endpoints of the cluster.
func (k *netlinkKernel) Observe(p *Plan) (Observed, error) {
	var obs Observed
	err := k.thread.do(func() (err error) {
		obs, err = k.observe(p)
		return err
	})
	return obs, err
}

func (k *netlinkKernel) observe(p *Plan) (Observed, error) {
	obs := Observed{Links: map[string]Link{}, Sysctls: map[string]string{}}
	links, err := dump(k.h.LinkList)
	if err != nil {
		return obs, fmt.Errorf("list links: %w", err)
	}
	ports, err := bridgePorts()
	if err != nil {
		return obs, fmt.Errorf("list bridge ports: %w", err)
	}
	named := plannedNames(p)
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Name == "lo" {
			obs.LoDown = a.Flags&net.FlagUp == 0
		}
		if !strings.HasPrefix(a.Alias, AliasPrefix) && !named[a.Name] {
			continue
		}
		o := linkOf(l)
		o.Master, o.Hairpin = byIndex[a.MasterIndex], ports[a.Index].hairpin
		obs.Links[a.Name] = o
	}
	if err := k.observeAddrs(p, &obs, byIndex); err != nil {
		return obs, fmt.Errorf("list addresses: %w", err)
	}
	if err := k.observeRoutes(p, &obs, byIndex); err != nil {
		return obs, fmt.Errorf("list routes: %w", err)
	}
	if err := k.observeNeighbors(&obs, byIndex); err != nil {
		return obs, fmt.Errorf("list neighbours: %w", err)
	}
	for _, s := range p.Sysctls {
		b, err := os.ReadFile(sysctlFile(s.Path))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return obs, fmt.Errorf("read sysctl: %w", err)
		}
		obs.Sysctls[s.Path] = strings.TrimSpace(string(b))
	}
	return obs, nil
}

func plannedNames(p *Plan) map[string]bool {
	named := map[string]bool{}
	for _, b := range p.Bridges {
		named[b.Name] = true
	}
	for _, v := range p.VXLANs {
		named[v.Name] = true
	}
	return named
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	o := Link{Name: a.Name, Index: a.Index, Kind: l.Type(), MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0}
	o.Network, o.Ours = strings.CutPrefix(a.Alias, AliasPrefix)
	if !o.Ours {
		o.Network = ""
	}
	switch l := l.(type) {
	case *netlink.Bridge:
		o.Snooping = l.MulticastSnooping != nil && *l.MulticastSnooping
	case *netlink.Vxlan:
		o.VNI, o.Port, o.Local, o.Learning = uint32(l.VxlanId), uint16(l.Port), addrOf(l.SrcAddr), l.Learning
	}
	return o
}

type portState struct {
	state   uint8
	hairpin bool
}

// Port states of linux/if_bridge.h.
const brStateForwarding = 3

// bridgePorts returns the bridge port attributes of all ports by link index,
// with one dump in the network namespace of the calling thread.
func bridgePorts() (map[int]portState, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, err
	}
	ports := map[int]portState{}
	for _, m := range msgs {
		msg := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type != unix.IFLA_PROTINFO|unix.NLA_F_NESTED {
				continue
			}
			infos, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, err
			}
			var p portState
			for _, i := range infos {
				switch i.Attr.Type {
				case nl.IFLA_BRPORT_STATE:
					p.state = i.Value[0]
				case nl.IFLA_BRPORT_MODE:
					p.hairpin = i.Value[0] != 0
				}
			}
			ports[int(msg.Index)] = p
		}
	}
	return ports, nil
}

func (k *netlinkKernel) observeAddrs(p *Plan, obs *Observed, byIndex map[int]string) error {
	addrs, err := dump(func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, a := range addrs {
		prefix, ok := prefixOf(a.IPNet)
		if !ok {
			continue
		}
		name := byIndex[a.LinkIndex]
		if name == "lo" {
			la := LocalAddr{Addr: prefix.Addr()}
			if a.Label == LoLabel || slices.Contains(p.Addrs, la) && a.Scope == unix.RT_SCOPE_HOST {
				obs.Addrs = append(obs.Addrs, la)
			}
			continue
		}
		l, ok := obs.Links[name]
		if ok && !prefix.Addr().IsLinkLocalUnicast() {
			l.Addrs = append(l.Addrs, prefix)
			obs.Links[name] = l
		}
	}
	return nil
}

func (k *netlinkKernel) observeRoutes(p *Plan, obs *Observed, byIndex map[int]string) error {
	planned := map[routeKey]bool{}
	for _, r := range p.Routes {
		planned[r.key()] = true
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return k.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return err
		}
		for _, n := range routes {
			r, ok := routeOf(n, byIndex)
			switch {
			case !ok:
			case n.Protocol == Protocol:
				obs.Routes = append(obs.Routes, r)
			case planned[r.key()]:
				obs.Foreign = append(obs.Foreign, r)
			}
		}
	}
	return nil
}

func routeOf(n netlink.Route, byIndex map[int]string) (Route, bool) {
	r := Route{Metric: uint32(n.Priority)}
	if n.Dst == nil {
		return r, false
	}
	var ok bool
	if r.Prefix, ok = prefixOf(n.Dst); !ok {
		return r, false
	}
	switch n.Type {
	case unix.RTN_UNICAST:
		r.Dev = byIndex[n.LinkIndex]
	case unix.RTN_UNREACHABLE:
		r.Type = Unreachable // IPv6 shows "dev lo" here
		return r, true
	default:
		r.Type = fmt.Sprintf("type %d", n.Type)
	}
	r.Via, r.Src = addrOf(n.Gw), addrOf(n.Src)
	if v, ok := n.Via.(*netlink.Via); ok && v != nil {
		r.Via = addrOf(v.Addr)
	}
	r.OnLink = n.Flags&unix.RTNH_F_ONLINK != 0
	return r, true
}

func (k *netlinkKernel) observeNeighbors(obs *Observed, byIndex map[int]string) error {
	for _, name := range sortedKeys(obs.Links) {
		l := obs.Links[name]
		if !l.Ours || l.Kind != KindVXLAN {
			continue
		}
		neighs, err := dump(func() ([]netlink.Neigh, error) { return k.h.NeighList(l.Index, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, n := range neighs {
			a := addrOf(n.IP)
			if n.State&netlink.NUD_PERMANENT != 0 && a.IsValid() && n.LinkIndex == l.Index &&
				(n.Family == unix.AF_INET || n.Family == unix.AF_INET6) {
				obs.Neighbors = append(obs.Neighbors, Neighbor{Dev: name, Addr: a, MAC: n.HardwareAddr.String()})
			}
		}
		fdb, err := dump(func() ([]netlink.Neigh, error) { return k.h.NeighList(l.Index, unix.AF_BRIDGE) })
		if err != nil {
			return err
		}
		for _, n := range fdb {
			dst := addrOf(n.IP)
			if n.LinkIndex == l.Index && dst.IsValid() {
				obs.FDB = append(obs.FDB, FDBEntry{Dev: name, MAC: n.HardwareAddr.String(), Dst: dst})
			}
		}
	}
	slices.SortFunc(obs.Neighbors, func(a, b Neighbor) int { return strings.Compare(a.spec(), b.spec()) })
	slices.SortFunc(obs.FDB, func(a, b FDBEntry) int { return strings.Compare(a.spec(), b.spec()) })
	return nil
}
