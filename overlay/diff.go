package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Kernel is what the overlay asks of the kernel: to say what is there, to
// change one thing, and to tell when something changed. Methods that set are
// idempotent and replace what is there; methods that delete accept that it is
// gone already.
type Kernel interface {
	// Observe reads what we own, and what stands where the plan puts something.
	Observe(p *Plan) (Observed, error)

	AddBridge(b Bridge) error // with MAC, alias and snooping off; down
	AddVXLAN(v VXLAN) error   // down
	DelLink(name string) error
	SetLink(name string, c LinkChange) error
	SetPort(name, bridge string) error // enslave, hairpin on, up

	AddAddr(dev string, p netip.Prefix) error
	DelAddr(dev string, p netip.Prefix) error
	AddLocalAddr(a LocalAddr) error
	DelLocalAddr(a LocalAddr) error

	SetNeighbor(n Neighbor) error
	DelNeighbor(n Neighbor) error
	SetFDB(f FDBEntry) error
	DelFDB(f FDBEntry) error
	SetRoute(r Route) error
	DelRoute(r Route) error
	SetSysctl(s Sysctl) error

	// Watch calls wake when something of ours may have changed, until ctx ends.
	Watch(ctx context.Context, wake func())
}

// Kinds of links that the overlay cares about.
const (
	KindBridge = "bridge"
	KindVXLAN  = "vxlan"
	KindVeth   = "veth"
)

// LinkChange is a change of a link; zero fields stay as they are.
type LinkChange struct {
	MAC         string
	MTU         int
	Up          bool
	NoSnooping  bool // bridges
	AliasForNet string
}

// Observed is what the kernel has.
type Observed struct {
	Links     map[string]Link // by name: ours, and those with a name of the plan
	Routes    []Route         // protocol 78, main table
	Foreign   []Route         // other protocols, with prefix and metric of a planned route
	Neighbors []Neighbor      // permanent, of our VXLAN devices
	FDB       []FDBEntry      // of our VXLAN devices
	Addrs     []LocalAddr     // on lo, with our label or planned
	LoDown    bool
	Sysctls   map[string]string // by path: the planned ones that exist
}

// Link is a link as the kernel has it.
type Link struct {
	Name     string
	Index    int
	Kind     string
	Ours     bool   // it carries our alias
	Network  string // from the alias
	MAC      string
	MTU      int
	Up       bool
	Snooping bool
	Addrs    []netip.Prefix // without link-local ones
	Master   string
	Hairpin  bool

	VNI      uint32
	Port     uint16
	Local    netip.Addr
	Learning bool
}

// op is one operation: its text as a shell command and how to do it.
type op struct {
	kind string // metric label
	text string
	do   func(Kernel) error
}

// ErrForeign marks something that is in the way and not ours.
var ErrForeign = errors.New("not made by nodenet")

// fixFor returns what to do about an error of a pass, where we know.
func fixFor(err error) string {
	switch {
	case errors.Is(err, ErrForeign):
		return "remove or rename it, or choose another bridge, prefix or metric in the Nodefile"
	case errors.Is(err, errLoDown):
		return "ip link set lo up"
	case errors.Is(err, errNoPermission):
		return "run with CAP_NET_ADMIN"
	case errors.Is(err, errReadOnly):
		return "make /proc/sys writable for the daemon, or set the sysctl yourself"
	}
	return ""
}

var errLoDown = errors.New("lo is down")

// differ collects operations in the order in which they must happen:
//
//	links that block new ones go, links, sysctls, addresses, up, ports,
//	neighbours, FDB, routes | routes, FDB, neighbours, addresses, links go
type differ struct {
	p    *Plan
	obs  *Observed
	gone map[string]bool // devices that do not survive with what hangs on them

	early, add, late []op
	conflicts        []error
}

// diff returns the operations that turn obs into p, and what stands in the
// way that is not ours to remove.
func diff(p *Plan, obs *Observed) ([]op, []error) {
	d := differ{p: p, obs: obs, gone: map[string]bool{}}
	d.adopt()
	d.links()
	d.sysctls("")
	d.devices()
	d.addrs()
	d.ports()
	d.neighbors()
	d.routes()
	d.remove()
	return slices.Concat(d.early, d.add, d.late), d.conflicts
}

func (d *differ) plus(kind, text string, do func(Kernel) error) {
	d.add = append(d.add, op{kind, text, do})
}

func (d *differ) minus(kind, text string, do func(Kernel) error) {
	d.late = append(d.late, op{kind, text, do})
}

// adopt takes links for ours that lack the alias but have the planned name,
// kind and MAC: the kernel takes no alias in a create request, and a daemon
// that died between the two leaves such a link.
func (d *differ) adopt() {
	ours := func(name, kind, mac string) {
		if l, ok := d.obs.Links[name]; ok && !l.Ours && l.Kind == kind && l.MAC == mac {
			l.Ours = true
			d.obs.Links[name] = l
		}
	}
	for _, b := range d.p.Bridges {
		ours(b.Name, KindBridge, b.MAC)
	}
	for _, v := range d.p.VXLANs {
		ours(v.Name, KindVXLAN, v.MAC)
	}
}

// links decides which links go first: those of ours that have the name of a
// planned one but are something else, and those that hold a VNI and port that
// a planned one needs.
func (d *differ) links() {
	wantVNI := map[[2]uint32]string{}
	for _, v := range d.p.VXLANs {
		wantVNI[[2]uint32{v.VNI, uint32(v.Port)}] = v.Name
		if l, ok := d.obs.Links[v.Name]; ok && l.Ours && !sameVXLAN(v, l) {
			d.rebuild(v.Name)
		}
	}
	for _, b := range d.p.Bridges {
		if l, ok := d.obs.Links[b.Name]; ok && l.Ours && l.Kind != KindBridge {
			d.rebuild(b.Name)
		}
	}
	for _, name := range sortedKeys(d.obs.Links) {
		l := d.obs.Links[name]
		if n, ok := wantVNI[[2]uint32{l.VNI, uint32(l.Port)}]; ok && l.Ours && l.Kind == KindVXLAN && n != name && !d.gone[name] {
			d.rebuild(name)
		}
	}
}

func sameVXLAN(v VXLAN, l Link) bool {
	return l.Kind == KindVXLAN && l.VNI == v.VNI && l.Port == v.Port && l.Local == v.Local && l.MAC == v.MAC && !l.Learning
}

func (d *differ) rebuild(name string) {
	d.gone[name] = true
	d.early = append(d.early, op{"link", "ip link del " + name, func(k Kernel) error { return k.DelLink(name) }})
}

// usable returns the link that serves as the planned one, if there is one.
// foreign is true when the name is taken by somebody else's link.
func (d *differ) usable(name string) (l Link, ok, foreign bool) {
	l, ok = d.obs.Links[name]
	if !ok || d.gone[name] {
		return Link{}, false, false
	}
	if !l.Ours {
		d.conflicts = append(d.conflicts, fmt.Errorf("link %s (%s) is in the way: %w", name, l.Kind, ErrForeign))
		d.gone[name] = true // nothing can be hung on it
		return l, false, true
	}
	return l, true, false
}

func (d *differ) devices() {
	for _, b := range d.p.Bridges {
		l, ok, foreign := d.usable(b.Name)
		if foreign {
			continue
		}
		if !ok {
			d.gone[b.Name] = true
			d.plus("link", b.add(), func(k Kernel) error { return k.AddBridge(b) })
			l = Link{MAC: b.MAC, MTU: b.MTU, Network: b.Network}
		}
		d.attrs(b.Name, b.Network, b.MAC, b.MTU, l)
		d.sysctls(b.Name)
		for _, a := range b.Addrs {
			if !slices.Contains(l.Addrs, a) {
				d.plus("address", fmt.Sprintf("ip addr add %s dev %s", a, b.Name), func(k Kernel) error { return k.AddAddr(b.Name, a) })
			}
		}
		d.up(b.Name, l)
	}
	for _, v := range d.p.VXLANs {
		l, ok, foreign := d.usable(v.Name)
		if foreign {
			continue
		}
		if !ok {
			d.gone[v.Name] = true
			d.plus("link", v.add(), func(k Kernel) error { return k.AddVXLAN(v) })
			l = Link{MAC: v.MAC, MTU: v.MTU, Network: v.Network}
		}
		d.attrs(v.Name, v.Network, v.MAC, v.MTU, l)
		d.sysctls(v.Name)
		d.up(v.Name, l)
	}
}

func (d *differ) attrs(name, network, mac string, mtu int, l Link) {
	set := func(text string, c LinkChange) {
		d.plus("link", "ip link set "+name+" "+text, func(k Kernel) error { return k.SetLink(name, c) })
	}
	if l.Network != network {
		set("alias "+AliasPrefix+network, LinkChange{AliasForNet: network})
	}
	if l.MAC != mac {
		set("address "+mac, LinkChange{MAC: mac})
	}
	if l.MTU != mtu {
		set(fmt.Sprintf("mtu %d", mtu), LinkChange{MTU: mtu})
	}
	if l.Snooping {
		set("type bridge mcast_snooping 0", LinkChange{NoSnooping: true})
	}
}

func (d *differ) up(name string, l Link) {
	if !l.Up {
		d.plus("link", "ip link set "+name+" up", func(k Kernel) error { return k.SetLink(name, LinkChange{Up: true}) })
	}
}

// sysctls sets those of a device, or with dev "" those of the host. One that
// the kernel lacks (IPv6 switched off) is left out. A device that is about to
// be made has defaults that nobody has seen: all are set.
func (d *differ) sysctls(dev string) {
	for _, s := range d.p.Sysctls {
		if s.Dev != dev {
			continue
		}
		if fresh := dev != "" && d.gone[dev]; fresh || s.applies(d.obs.Sysctls) {
			d.plus("sysctl", "sysctl -w "+s.spec(), func(k Kernel) error { return k.SetSysctl(s) })
		}
	}
}

func (d *differ) addrs() {
	for _, a := range d.p.Addrs {
		if slices.Contains(d.obs.Addrs, a) {
			continue
		}
		d.plus("address", "ip addr add "+a.spec(), func(k Kernel) error { return k.AddLocalAddr(a) })
	}
	if d.obs.LoDown && len(d.p.Addrs) > 0 {
		d.conflicts = append(d.conflicts, errLoDown)
	}
}

// ports puts veths of attachments back on their bridge: a bridge that was
// deleted and made again has none.
func (d *differ) ports() {
	bridge := map[string]string{}
	for _, b := range d.p.Bridges {
		if l, ok := d.obs.Links[b.Name]; !ok || l.Ours {
			bridge[b.Network] = b.Name
		}
	}
	for _, name := range sortedKeys(d.obs.Links) {
		l := d.obs.Links[name]
		br, ok := bridge[l.Network]
		if !ok || !l.Ours || l.Kind != KindVeth {
			continue
		}
		if l.Master != br || !l.Hairpin || !l.Up || d.gone[br] {
			d.plus("port", fmt.Sprintf("ip link set %s master %s up type bridge_slave hairpin on", name, br),
				func(k Kernel) error { return k.SetPort(name, br) })
		}
	}
}

func (d *differ) neighbors() {
	// A foreign link in the place of a VXLAN device takes no entries.
	dev := map[string]bool{}
	for _, v := range d.p.VXLANs {
		if l, ok := d.obs.Links[v.Name]; !ok || l.Ours {
			dev[v.Name] = true
		}
	}
	haveNeigh, haveFDB := setOf(d.obs.Neighbors), setOf(d.obs.FDB)
	for _, n := range d.p.Neighbors {
		if dev[n.Dev] && (d.gone[n.Dev] || !haveNeigh[n]) {
			d.plus("neighbor", "ip neigh replace "+n.spec(), func(k Kernel) error { return k.SetNeighbor(n) })
		}
	}
	for _, f := range d.p.FDB {
		if dev[f.Dev] && (d.gone[f.Dev] || !haveFDB[f]) {
			d.plus("fdb", "bridge fdb replace "+f.spec(), func(k Kernel) error { return k.SetFDB(f) })
		}
	}
}

func (d *differ) routes() {
	foreign := map[routeKey]Route{}
	for _, r := range d.obs.Foreign {
		foreign[r.key()] = r
	}
	have := map[routeKey]Route{}
	for _, r := range d.obs.Routes {
		have[r.key()] = r
	}
	for _, r := range d.p.Routes {
		if l, ok := d.obs.Links[r.Dev]; ok && !l.Ours && d.gone[r.Dev] {
			continue
		}
		if h, ok := have[r.key()]; ok && h.inKernel() == r.inKernel() && !d.gone[r.Dev] {
			continue
		}
		if f, ok := foreign[r.key()]; ok {
			d.conflicts = append(d.conflicts, fmt.Errorf("route %s dev %s is in the way: %w", f.Prefix, f.Dev, ErrForeign))
			continue
		}
		d.plus("route", "ip route replace "+r.spec(), func(k Kernel) error { return k.SetRoute(r) })
	}
}

// remove takes away what the plan does not have, in the reverse order.
func (d *differ) remove() {
	planned := map[string]bool{}
	for _, b := range d.p.Bridges {
		planned[b.Name] = true
	}
	for _, v := range d.p.VXLANs {
		planned[v.Name] = true
	}
	dies := func(dev string) bool { return d.gone[dev] || !planned[dev] }

	want := map[routeKey]bool{}
	for _, r := range d.p.Routes {
		want[r.key()] = true
	}
	for _, r := range d.obs.Routes {
		// A route on a rebuilt device went with it.
		if !want[r.key()] && (r.Dev == "" || !d.gone[r.Dev]) {
			d.minus("route", "ip route del "+r.spec(), func(k Kernel) error { return k.DelRoute(r) })
		}
	}
	// Replacing changes an entry in place: only keys that no planned entry has go.
	fdb := map[[2]string]bool{}
	for _, f := range d.p.FDB {
		fdb[[2]string{f.Dev, f.MAC}] = true
	}
	for _, f := range d.obs.FDB {
		if !fdb[[2]string{f.Dev, f.MAC}] && !dies(f.Dev) {
			d.minus("fdb", "bridge fdb del "+f.spec(), func(k Kernel) error { return k.DelFDB(f) })
		}
	}
	neigh := map[[2]string]bool{}
	for _, n := range d.p.Neighbors {
		neigh[[2]string{n.Dev, n.Addr.String()}] = true
	}
	for _, n := range d.obs.Neighbors {
		if !neigh[[2]string{n.Dev, n.Addr.String()}] && !dies(n.Dev) {
			d.minus("neighbor", "ip neigh del "+n.spec(), func(k Kernel) error { return k.DelNeighbor(n) })
		}
	}
	for _, b := range d.p.Bridges {
		if d.gone[b.Name] {
			continue
		}
		for _, a := range d.obs.Links[b.Name].Addrs {
			if !slices.Contains(b.Addrs, a) {
				d.minus("address", fmt.Sprintf("ip addr del %s dev %s", a, b.Name), func(k Kernel) error { return k.DelAddr(b.Name, a) })
			}
		}
	}
	for _, a := range d.obs.Addrs {
		if !slices.Contains(d.p.Addrs, a) {
			d.minus("address", "ip addr del "+a.spec(), func(k Kernel) error { return k.DelLocalAddr(a) })
		}
	}
	for _, name := range sortedKeys(d.obs.Links) {
		l := d.obs.Links[name]
		if l.Ours && !planned[name] && !d.gone[name] && (l.Kind == KindBridge || l.Kind == KindVXLAN) {
			d.minus("link", "ip link del "+name, func(k Kernel) error { return k.DelLink(name) })
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

func setOf[T comparable](list []T) map[T]bool {
	set := make(map[T]bool, len(list))
	for _, v := range list {
		set[v] = true
	}
	return set
}
