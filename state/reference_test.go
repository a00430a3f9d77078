package state

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// reference is a view made in the plainest way: every table is walked, nothing
// is remembered. It is what the views that are kept up to date have to equal.
type reference struct {
	Nodes     []NodeView
	Networks  []NetworkView
	Endpoints []*EndpointView
	Services  []*ServiceView
	Policies  []*Policy
	Publishes []Publish
	Names     []Name
	Conflicts []Conflict
	Refusals  []Refusal

	nodeByID map[NodeID]*NodeView
}

func deriveReference(sn *Snapshot) *reference {
	v := &reference{nodeByID: map[NodeID]*NodeView{}}
	c := newClaims(sn, sn.Gone())
	v.Refusals = slices.Clone(c.found)
	v.deriveNodes(sn, c)
	v.deriveNetworks(sn)
	v.deriveEndpoints(sn, c)
	v.deriveServices(sn, c)
	duplicates := v.duplicateVIPs() // shown after the conflicts of policies
	v.derivePolicies(sn)
	v.Conflicts = append(v.Conflicts, duplicates...)
	v.deriveNames(sn)
	for r, p := range All[Publish](sn) {
		if r.ID.Owner == sn.self {
			v.Publishes = append(v.Publishes, *p)
		}
	}
	slices.SortFunc(v.Refusals, inOrder)
	v.Conflicts = append(v.Conflicts, sn.Conflicts()...)
	v.Conflicts = append(v.Conflicts, conflictsOf(v.Refusals, func(id NodeID) string {
		if n := v.nodeByID[id]; n != nil && n.Name != "" {
			return n.Name
		}
		return id.Short()
	})...)
	return v
}

func (v *reference) deriveNodes(sn *Snapshot, c *claims) {
	gone := sn.Gone()
	for r, n := range All[Node](sn) {
		live, known := sn.live[r.ID.Owner]
		nv := NodeView{ID: r.ID.Owner, Node: *n, State: live.State, Since: live.Since, Serving: live.Serving, Flapping: live.Flapping, Refused: c.node(r.ID.Owner)}
		switch {
		case r.ID.Owner == sn.self:
			nv.Self, nv.State, nv.Serving = true, Alive, true
		case n.Left || live.State == Left || gone.Node(r.ID.Owner):
			continue
		case !known:
			// Nothing heard since start: what was saved holds until told otherwise.
			nv.Serving = true
		}
		v.Nodes = append(v.Nodes, nv)
	}
	slices.SortFunc(v.Nodes, func(a, b NodeView) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	for i := range v.Nodes {
		n := &v.Nodes[i]
		v.nodeByID[n.ID] = n
		if i > 0 && n.Name == v.Nodes[i-1].Name {
			v.Conflicts = append(v.Conflicts, Conflict{
				What: "node " + n.Name, Winner: v.Nodes[i-1].ID.Short(), Loser: n.ID.Short(),
				Detail: "two nodes have the same name: set `node { name … }` on one of them",
			})
		}
	}
	for r, b := range All[Block](sn) {
		if n := v.nodeByID[r.ID.Owner]; n != nil && n.Refused == "" && !gone.Record(&r) && c.block(r.ID) {
			n.Blocks = append(n.Blocks, *b)
		}
	}
	for i := range v.Nodes {
		slices.SortFunc(v.Nodes[i].Blocks, func(a, b Block) int {
			return cmp.Or(strings.Compare(a.Network, b.Network), a.Prefix.Addr().Compare(b.Prefix.Addr()))
		})
	}
}

func (v *reference) deriveNetworks(sn *Snapshot) {
	own := map[string]*NetworkView{}
	for r, n := range All[Network](sn) {
		if r.ID.Owner == sn.self {
			own[n.Name] = &NetworkView{Network: *n}
		}
	}
	for r, n := range All[Network](sn) {
		mine := own[n.Name]
		peer := v.nodeByID[r.ID.Owner]
		if mine == nil || peer == nil || peer.Self || n.Local() && mine.Local() {
			continue
		}
		if why := networkDiff(&mine.Network, n); why != "" {
			v.Conflicts = append(v.Conflicts, Conflict{
				What: "network " + n.Name, Winner: "this node's definition", Loser: peer.Name,
				Detail: why + ": make the Nodefiles agree",
			})
		}
	}
	self := v.nodeByID[sn.self]
	for _, name := range slices.Sorted(maps.Keys(own)) {
		n := own[name]
		if n.Local() {
			n.Own = []netip.Prefix{n.Prefix}
		} else if self != nil {
			for _, b := range self.Blocks {
				if b.Network == name {
					n.Own = append(n.Own, b.Prefix)
				}
			}
		}
		v.Networks = append(v.Networks, *n)
	}
}

func (v *reference) deriveEndpoints(sn *Snapshot, c *claims) {
	type place struct {
		owner NodeID
		name  string
	}
	gone := sn.Gone()
	local := map[place]bool{}
	namespace := map[string]string{}
	for r, n := range All[Network](sn) {
		if n.Local() {
			local[place{r.ID.Owner, n.Name}] = true
		}
		if namespace[n.Name] == "" || r.ID.Owner == sn.self {
			namespace[n.Name] = cmp.Or(n.Namespace, "default")
		}
	}
	for r, e := range All[Endpoint](sn) {
		n := v.nodeByID[r.ID.Owner]
		if n == nil || gone.Record(&r) {
			continue
		}
		refused := ""
		if x := c.endpoint(&r, e); x != nil {
			refused = x.Why
			v.Refusals = append(v.Refusals, *x)
		}
		serving := e.Ready && n.Serving && n.Refused == "" && refused == ""
		if !n.Self && local[place{r.ID.Owner, e.Network}] && e.Mode != "host" {
			serving = false // an address that means something on its own node only
		}
		v.Endpoints = append(v.Endpoints, &EndpointView{Endpoint: e, Owner: r.ID.Owner, Serving: serving, Refused: refused})
	}
	for r, l := range All[LeaseValue](sn) {
		n := v.nodeByID[l.Server]
		if l.Declined || n == nil {
			continue
		}
		if x := c.lease(&r, l); x != nil {
			v.Refusals = append(v.Refusals, *x)
			continue
		}
		v.Endpoints = append(v.Endpoints, &EndpointView{
			Endpoint: &Endpoint{
				ID: "dhcp/" + l.Network + "/" + l.Addr.String(), Network: l.Network,
				Namespace: cmp.Or(namespace[l.Network], "default"), Name: l.Hostname,
				Addrs: []netip.Addr{l.Addr}, MAC: l.MAC, Kind: EndpointDHCP, Ready: true, Created: l.Granted,
			},
			Owner: l.Server, Lease: true,
			Serving: n.Serving && n.Refused == "" && (n.Self || !local[place{l.Server, l.Network}]),
		})
	}
	slices.SortFunc(v.Endpoints, byPlace)
}

func (v *reference) deriveServices(sn *Snapshot, c *claims) {
	// Declarations by Nodefiles come before those by command, among them the
	// lowest node ID: the same choice on every node.
	type decl struct {
		owner NodeID
		svc   *Service
	}
	byKey := map[string][]decl{}
	for r, s := range All[Service](sn) {
		if r.ID.Class == Owner && v.nodeByID[r.ID.Owner] == nil {
			continue
		}
		byKey[s.Key()] = append(byKey[s.Key()], decl{r.ID.Owner, s})
	}
	byNamespace := map[string][]*EndpointView{}
	for _, e := range v.Endpoints {
		byNamespace[e.Namespace] = append(byNamespace[e.Namespace], e)
	}
	explicit := map[string][]Backend{}
	for _, b := range All[Backend](sn) {
		k := b.Namespace + "/" + b.Service
		explicit[k] = append(explicit[k], *b)
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		ds := byKey[key]
		slices.SortStableFunc(ds, func(a, b decl) int {
			if (a.owner == "") != (b.owner == "") {
				if a.owner == "" {
					return 1
				}
				return -1
			}
			return cmp.Compare(a.owner, b.owner)
		})
		slices.SortStableFunc(ds, func(a, b decl) int {
			rank := map[bool]int{true: 1}
			return rank[a.svc.Source == "label"] - rank[b.svc.Source == "label"]
		})
		// The first that differs is looked for in the order without labels' rank.
		rest := slices.Clone(ds[1:])
		slices.SortStableFunc(rest, func(a, b decl) int {
			if (a.owner == "") != (b.owner == "") {
				if a.owner == "" {
					return 1
				}
				return -1
			}
			return cmp.Compare(a.owner, b.owner)
		})
		for _, d := range rest {
			x, y := *ds[0].svc, *d.svc
			if x.Source == "label" || y.Source == "label" {
				x.Source, y.Source = "", ""
			}
			if !sameValue(&x, &y) {
				v.Conflicts = append(v.Conflicts, Conflict{
					What: "service " + ds[0].svc.FullName(), Winner: v.declarer(ds[0].owner, ds[0].svc), Loser: v.declarer(d.owner, d.svc),
					Detail: "declared differently: make the declarations agree",
				})
				break
			}
		}
		sv := &ServiceView{Service: *ds[0].svc}
		sv.Ports = slices.Clone(sv.Ports)
		var allocated netip.Addr
		if a, ok := Lookup[VIP](sn, ID{Class: Cluster, Kind: KindVIP, Key: key}); ok && sv.External == "" {
			allocated = a.Addr
			for i := range sv.Ports {
				p := &sv.Ports[i]
				if p.NodePort == 0 && sv.NodePorts {
					p.NodePort = a.NodePorts[fmt.Sprintf("%d/%s", p.Port, p.Protocol)]
				}
			}
		}
		if !sv.Headless && sv.External == "" {
			v.giveAddresses(sn, c, sv, allocated)
		}
		v.backends(sn, sv, byNamespace[sv.Namespace], append(slices.Clone(sv.Service.Backends), explicit[key]...))
		v.Services = append(v.Services, sv)
	}
}

func (v *reference) derivePolicies(sn *Snapshot) {
	type decl struct {
		owner  NodeID
		policy *Policy
	}
	byKey := map[string][]decl{}
	for r, p := range All[Policy](sn) {
		if r.ID.Class == Owner && v.nodeByID[r.ID.Owner] == nil {
			continue
		}
		byKey[p.Key()] = append(byKey[p.Key()], decl{r.ID.Owner, p})
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		ds := byKey[key]
		slices.SortStableFunc(ds, func(a, b decl) int {
			if (a.owner == "") != (b.owner == "") { // commands come last
				return strings.Compare(string(b.owner), string(a.owner))
			}
			return cmp.Compare(a.owner, b.owner)
		})
		for _, d := range ds[1:] {
			a, b := *ds[0].policy, *d.policy
			if a.Source, b.Source = "", ""; !sameValue(a, b) {
				v.Conflicts = append(v.Conflicts, Conflict{
					What: "policy " + a.FullName(), Winner: v.declarer(ds[0].owner, &Service{}), Loser: v.declarer(d.owner, &Service{}),
					Detail: "declared differently: make the declarations agree",
				})
				break
			}
		}
		v.Policies = append(v.Policies, ds[0].policy)
	}
}

func (v *reference) declarer(id NodeID, s *Service) string {
	what := "Nodefile of "
	if s.Source == "label" {
		what = "labels on "
	}
	if id == "" {
		return "command"
	}
	if n := v.nodeByID[id]; n != nil {
		return what + n.Name
	}
	return what + id.Short()
}

// backends resolves a service's selector and its explicit backends.
func (v *reference) backends(sn *Snapshot, sv *ServiceView, candidates []*EndpointView, explicit []Backend) {
	seen := map[netip.AddrPort]bool{}
	add := func(b BackendOf, port uint16) {
		if k := netip.AddrPortFrom(b.Addr, port); !seen[k] && (sv.Families == "" || (sv.Families == "ipv4") == b.Addr.Is4()) {
			seen[k] = true
			sv.Backends = append(sv.Backends, b)
		}
	}
	if len(sv.Selector) > 0 {
		for _, e := range candidates {
			if !matches(sv.Selector, e.Labels) || len(e.Addrs) == 0 {
				continue
			}
			b := BackendOf{
				Key: e.ID + "@" + string(e.Owner), Addr: e.Addrs[0], Hostname: cmp.Or(e.Hostname, e.Name), Endpoint: e.ID, Node: e.Owner,
				Ready: e.Serving, Weight: 1, Targets: make([]uint16, len(sv.Ports)),
			}
			if e.Lease {
				b.Key = e.ID
			}
			if w, err := strconv.Atoi(e.Labels["nodenet.io/weight"]); err == nil {
				b.Weight = uint16(min(max(w, 1), 256))
			}
			switch n := v.nodeByID[e.Owner]; {
			case e.Serving:
			case n != nil && n.Refused != "":
				b.Why = n.Name + " is not what it says: see `nodectl conflicts`"
			case n != nil && !n.Serving:
				b.Why = n.Name + " is " + n.State.String()
			case !e.Ready:
				b.Why = cmp.Or(e.Why, "endpoint is not ready")
			case e.Refused != "":
				b.Why = e.Refused
			default:
				b.Why = "its network is local to " + n.Name
			}
			for i, p := range sv.Ports {
				b.Targets[i] = target(p, e.Ports)
			}
			v.health(sn, sv, &b)
			add(b, 0)
			if i := slices.IndexFunc(e.Addrs, netip.Addr.Is6); i > 0 {
				b.Addr, b.Targets = e.Addrs[i], slices.Clone(b.Targets)
				add(b, 0)
			}
		}
	}
	for _, x := range explicit {
		b := BackendOf{Key: x.Addr.String(), Addr: x.Addr, Hostname: x.Hostname, Ready: true, Weight: uint16(max(1, x.Weight)), Targets: make([]uint16, len(sv.Ports))}
		if x.Port != 0 {
			b.Key = netip.AddrPortFrom(x.Addr, x.Port).String()
		}
		for i, p := range sv.Ports {
			b.Targets[i] = cmp.Or(x.Port, p.Target, p.Port)
		}
		v.health(sn, sv, &b)
		add(b, x.Port)
	}
	for i := range sv.Backends {
		v.operator(sn, sv, &sv.Backends[i])
	}
	v.steps(sv)
	slices.SortFunc(sv.Backends, compareBackends)
}

// health finds the results of a backend's check among all records.
func (v *reference) health(sn *Snapshot, sv *ServiceView, b *BackendOf) {
	if sv.Check == "" && sv.SlowStart == 0 {
		return
	}
	n := v.nodeByID[b.Node]
	afar := b.Node == "" || n.State == Suspect || n.State == Dead
	var h *Health
	for r, x := range All[Health](sn) {
		switch {
		case r.ID.Class == Owner && r.ID.Owner == b.Node && b.Node != "" && r.ID.Key == sv.Key()+"/"+b.Endpoint && h == nil:
			h = x
		case r.ID.Class == Cluster && afar && r.ID.Key == sv.Key()+"/"+b.Key:
			h, b.By = x, r.Version.Node
		}
	}
	if sv.SlowStart > 0 && h == nil {
		b.Step = 1
	} else if sv.SlowStart > 0 {
		b.Step = h.Step
	}
	if sv.Check != "" && h != nil && !h.OK && b.Ready {
		b.Ready, b.Why, b.Failed = false, h.Why, b.By == "" || b.Node == ""
	}
}

// operator finds what was said of a backend.
func (v *reference) operator(sn *Snapshot, sv *ServiceView, b *BackendOf) {
	for r, a := range All[Admin](sn) {
		if r.ID.Key != sv.Key()+"/"+b.Key || a.Namespace+"/"+a.Service != sv.Key() || a.Backend != b.Key {
			continue
		}
		if a.Weight > 0 {
			b.Weight = uint16(min(a.Weight, 256))
		}
		if a.Drain && a.Ended {
			b.Ready, b.Failed, b.Why = false, true, "drained"
		} else if a.Drain && b.Ready {
			b.Ready, b.Draining, b.Why = false, true, "draining"
		}
	}
}

// steps scales the weights of a service in which a backend starts slowly.
func (v *reference) steps(sv *ServiceView) {
	starts, scale := false, 8
	for _, b := range sv.Backends {
		starts = starts || b.Step != 0
		for scale > 1 && scale*int(b.Weight) > 256 {
			scale--
		}
	}
	for i := range sv.Backends {
		b := &sv.Backends[i]
		b.Declared = b.Weight
		switch {
		case !starts:
		case b.Step == 0:
			b.Weight = uint16(scale) * b.Weight
		default:
			b.Weight = max(1, uint16(scale)*b.Weight*uint16(b.Step)/8)
		}
	}
}

// giveAddresses knows the ranges of the test: both have room for a byte.
func (v *reference) giveAddresses(sn *Snapshot, c *claims, sv *ServiceView, allocated netip.Addr) {
	self, _ := Lookup[Node](sn, ID{Class: Owner, Kind: KindNode, Owner: sn.self, Key: "self"})
	named4, named6 := sv.Service.VIP, sv.Service.VIP6
	dual := self != nil && self.ServiceRange6.IsValid()
	if sv.VIP = named4; !named4.IsValid() {
		if sv.VIP = allocated; named6.IsValid() && dual && self.ServiceRange6.Contains(named6) {
			sv.VIP = self.ServiceRange.Addr()
			for range named6.As16()[15] {
				sv.VIP = sv.VIP.Next()
			}
		}
	}
	refusal := c.vip(ID{Kind: KindService, Key: sv.Key()}, &sv.Service, sv.VIP)
	if refusal != nil {
		sv.VIP = netip.Addr{}
	}
	none := &Refusal{Record: ID{Kind: KindService, Key: sv.Key()}, What: "IPv6 address of " + sv.FullName(), Why: "the services have no IPv6 range here: write one after `services 10.0.0.0/24`"}
	also := &Refusal{Record: ID{Kind: KindService, Key: sv.Key()}, What: "VIP " + named6.String(), Why: "it lies outside the service range: give " + sv.FullName() + " an address inside it"}
	switch {
	case sv.Families == FamilyV4:
	case !dual && self != nil && self.ServiceRange.IsValid() && (named6.IsValid() || sv.Families == FamilyV6):
		refusal = cmp.Or(refusal, none)
	case dual && named6.IsValid() && self.ServiceRange6.Contains(named6):
		sv.VIP6 = named6
	case dual && named6.IsValid():
		refusal = cmp.Or(refusal, also)
	case dual && sv.VIP.IsValid():
		six := self.ServiceRange6.Addr().As16()
		six[15] = sv.VIP.As4()[3]
		sv.VIP6 = netip.AddrFrom16(six)
	}
	if sv.Families == FamilyV6 {
		sv.VIP = netip.Addr{}
	}
	if refusal != nil {
		v.Refusals = append(v.Refusals, *refusal)
	}
}

// duplicateVIPs lets the first of two services with one address have it.
func (v *reference) duplicateVIPs() (found []Conflict) {
	first, lost := map[netip.Addr]string{}, map[[2]string]bool{}
	for _, which := range []func(*ServiceView) *netip.Addr{
		func(s *ServiceView) *netip.Addr { return &s.VIP }, func(s *ServiceView) *netip.Addr { return &s.VIP6 },
	} {
		for _, s := range v.Services {
			a := which(s)
			owner, taken := first[*a]
			switch {
			case !a.IsValid():
			case !taken:
				first[*a] = s.FullName()
			default:
				if pair := [2]string{owner, s.FullName()}; !lost[pair] {
					lost[pair] = true
					found = append(found, Conflict{
						What: "VIP " + a.String(), Winner: owner, Loser: s.FullName(),
						Detail: "two services claim the address: give one of them another",
					})
				}
				*a = netip.Addr{}
			}
		}
	}
	return found
}

func (v *reference) deriveNames(sn *Snapshot) {
	seen := map[Name]bool{}
	for _, n := range All[Name](sn) {
		if !seen[*n] {
			seen[*n] = true
			v.Names = append(v.Names, *n)
		}
	}
	slices.SortFunc(v.Names, func(a, b Name) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Type, b.Type), strings.Compare(a.Target, b.Target))
	})
}
