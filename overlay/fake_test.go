package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// fakeKernel is a Kernel in memory that keeps the kernel's rules as far as the
// order of operations depends on them: what hangs on a link or an address goes
// with it, and nothing can be hung on what is not there.
type fakeKernel struct {
	links   map[string]Link
	routes  map[routeKey]Route
	foreign []Route
	neigh   map[[2]string]Neighbor
	fdb     map[[2]string]FDBEntry
	addrs   []LocalAddr
	sysctls map[string]string

	failIn int // the operation that fails, counted down; 0: none
	broken []string
}

var errInjected = errors.New("injected")

func newFake() *fakeKernel {
	return &fakeKernel{links: map[string]Link{"lo": {Name: "lo", Up: true, Kind: "device"}, "eth0": {Name: "eth0", Up: true, Kind: "veth"}},
		routes: map[routeKey]Route{}, neigh: map[[2]string]Neighbor{}, fdb: map[[2]string]FDBEntry{},
		sysctls: map[string]string{"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/send_redirects": "1"}}
}

// rule notes a breach of an order that real traffic would suffer from.
func (k *fakeKernel) rule(ok bool, format string, a ...any) {
	if !ok {
		k.broken = append(k.broken, fmt.Sprintf(format, a...))
	}
}

func (k *fakeKernel) fail() error {
	if k.failIn > 0 {
		if k.failIn--; k.failIn == 0 {
			return errInjected
		}
	}
	return nil
}

func (k *fakeKernel) Observe(p *Plan) (Observed, error) {
	o := Observed{Links: map[string]Link{}, Sysctls: map[string]string{}, Addrs: slices.Clone(k.addrs)}
	named := plannedNames(p)
	for n, l := range k.links {
		if l.Ours || named[n] {
			l.Addrs = slices.Clone(l.Addrs)
			o.Links[n] = l
		}
	}
	for _, r := range k.routes {
		o.Routes = append(o.Routes, r)
	}
	o.Foreign = slices.Clone(k.foreign)
	o.Neighbors = slices.Collect(maps.Values(k.neigh))
	o.FDB = slices.Collect(maps.Values(k.fdb))
	for _, s := range p.Sysctls {
		if v, ok := k.sysctls[s.Path]; ok {
			o.Sysctls[s.Path] = v
		}
	}
	return o, nil
}

func (k *fakeKernel) Watch(ctx context.Context, _ func()) { <-ctx.Done() }

func (k *fakeKernel) addLink(l Link) error {
	if err := k.fail(); err != nil {
		return err
	}
	if _, ok := k.links[l.Name]; ok {
		return fmt.Errorf("%s exists", l.Name)
	}
	for _, o := range k.links {
		if l.Kind == KindVXLAN && o.Kind == KindVXLAN && o.VNI == l.VNI && o.Port == l.Port {
			return fmt.Errorf("VNI %d exists on %s", l.VNI, o.Name)
		}
	}
	l.Ours = true
	k.links[l.Name] = l
	for _, f := range []string{"net/ipv4/conf/%s/send_redirects", "net/ipv4/conf/%s/rp_filter", "net/ipv4/conf/%s/arp_announce", "net/ipv6/conf/%s/disable_ipv6", "net/ipv6/conf/%s/addr_gen_mode"} {
		k.sysctls[fmt.Sprintf(f, l.Name)] = "default"
	}
	return nil
}

func (k *fakeKernel) AddBridge(b Bridge) error {
	return k.addLink(Link{Name: b.Name, Kind: KindBridge, Network: b.Network, MAC: b.MAC, MTU: b.MTU})
}

func (k *fakeKernel) AddVXLAN(v VXLAN) error {
	return k.addLink(Link{Name: v.Name, Kind: KindVXLAN, Network: v.Network, MAC: v.MAC, MTU: v.MTU, VNI: v.VNI, Port: v.Port, Local: v.Local})
}

func (k *fakeKernel) DelLink(name string) error {
	if err := k.fail(); err != nil {
		return err
	}
	for n, l := range k.links {
		if l.Master == name {
			l.Master, l.Hairpin = "", false
			k.links[n] = l
		}
	}
	for _, a := range k.links[name].Addrs {
		k.dropSrc(a.Addr())
	}
	delete(k.links, name)
	maps.DeleteFunc(k.routes, func(_ routeKey, r Route) bool { return r.Dev == name })
	maps.DeleteFunc(k.neigh, func(_ [2]string, n Neighbor) bool { return n.Dev == name })
	maps.DeleteFunc(k.fdb, func(_ [2]string, f FDBEntry) bool { return f.Dev == name })
	return nil
}

// dropSrc removes the routes whose source address went.
func (k *fakeKernel) dropSrc(a netip.Addr) {
	maps.DeleteFunc(k.routes, func(_ routeKey, r Route) bool { return r.Src == a && a.IsValid() })
}

func (k *fakeKernel) change(name string, f func(*Link)) error {
	if err := k.fail(); err != nil {
		return err
	}
	l, ok := k.links[name]
	if !ok {
		return fmt.Errorf("no link %s", name)
	}
	f(&l)
	k.links[name] = l
	return nil
}

func (k *fakeKernel) SetLink(name string, c LinkChange) error {
	return k.change(name, func(l *Link) {
		if c.AliasForNet != "" {
			l.Network, l.Ours = c.AliasForNet, true
		}
		if c.MAC != "" {
			l.MAC = c.MAC
		}
		if c.MTU != 0 {
			l.MTU = c.MTU
		}
		l.Up = l.Up || c.Up
		l.Snooping = l.Snooping && !c.NoSnooping
	})
}

func (k *fakeKernel) SetPort(name, bridge string) error {
	if k.links[bridge].Kind != KindBridge {
		return fmt.Errorf("no bridge %s", bridge)
	}
	return k.change(name, func(l *Link) { l.Master, l.Hairpin, l.Up = bridge, true, true })
}

func (k *fakeKernel) AddAddr(dev string, p netip.Prefix) error {
	return k.change(dev, func(l *Link) { l.Addrs = append(l.Addrs, p) })
}

func (k *fakeKernel) DelAddr(dev string, p netip.Prefix) error {
	k.dropSrc(p.Addr())
	return k.change(dev, func(l *Link) { l.Addrs = slices.DeleteFunc(l.Addrs, func(a netip.Prefix) bool { return a == p }) })
}

func (k *fakeKernel) AddLocalAddr(a LocalAddr) error {
	if err := k.fail(); err != nil {
		return err
	}
	k.addrs = append(k.addrs, a)
	return nil
}

func (k *fakeKernel) DelLocalAddr(a LocalAddr) error {
	if err := k.fail(); err != nil {
		return err
	}
	k.addrs = slices.DeleteFunc(k.addrs, func(b LocalAddr) bool { return a == b })
	return nil
}

func (k *fakeKernel) SetNeighbor(n Neighbor) error {
	if err := k.fail(); err != nil {
		return err
	}
	if k.links[n.Dev].Kind != KindVXLAN {
		return fmt.Errorf("no device %s", n.Dev)
	}
	k.neigh[[2]string{n.Dev, n.Addr.String()}] = n
	return nil
}

func (k *fakeKernel) DelNeighbor(n Neighbor) error {
	for _, r := range k.routes {
		k.rule(r.Dev != n.Dev || r.Via != n.Addr, "neighbour %s goes before route %s", n.Addr, r.Prefix)
	}
	delete(k.neigh, [2]string{n.Dev, n.Addr.String()})
	return k.fail()
}

func (k *fakeKernel) SetFDB(f FDBEntry) error {
	if err := k.fail(); err != nil {
		return err
	}
	if k.links[f.Dev].Kind != KindVXLAN {
		return fmt.Errorf("no device %s", f.Dev)
	}
	k.fdb[[2]string{f.Dev, f.MAC}] = f
	return nil
}

func (k *fakeKernel) DelFDB(f FDBEntry) error {
	for _, r := range k.routes {
		n := k.neigh[[2]string{r.Dev, r.Via.String()}]
		k.rule(r.Dev != f.Dev || n.MAC != f.MAC, "FDB entry for %s goes before route %s", f.Dst, r.Prefix)
	}
	delete(k.fdb, [2]string{f.Dev, f.MAC})
	return k.fail()
}

func (k *fakeKernel) local(a netip.Addr) bool {
	if !a.IsValid() || a == ip("192.0.2.1") {
		return true
	}
	for _, l := range k.links {
		for _, p := range l.Addrs {
			if p.Addr() == a {
				return true
			}
		}
	}
	return false
}

func (k *fakeKernel) SetRoute(r Route) error {
	if err := k.fail(); err != nil {
		return err
	}
	if r.Type == Unicast {
		l, ok := k.links[r.Dev]
		if !ok || !l.Up {
			return fmt.Errorf("device %s is not up", r.Dev)
		}
		if !k.local(r.Src) {
			return fmt.Errorf("source %s is not local", r.Src)
		}
		if l.Kind == KindVXLAN {
			n, ok := k.neigh[[2]string{r.Dev, r.Via.String()}]
			k.rule(ok, "route %s comes before neighbour %s", r.Prefix, r.Via)
			_, ok = k.fdb[[2]string{r.Dev, n.MAC}]
			k.rule(ok, "route %s comes before the FDB entry of %s", r.Prefix, r.Via)
		}
	}
	k.routes[r.key()] = r.inKernel()
	return nil
}

func (k *fakeKernel) DelRoute(r Route) error {
	if err := k.fail(); err != nil {
		return err
	}
	delete(k.routes, r.key())
	return nil
}

func (k *fakeKernel) SetSysctl(s Sysctl) error {
	if err := k.fail(); err != nil {
		return err
	}
	k.sysctls[s.Path] = s.Value
	return nil
}
