package state

import "net/netip"

// ServiceRanges returns the ranges that services have their addresses from, by
// this node's own record; invalid: none of that version, or no record yet.
func (sn *Snapshot) ServiceRanges() (v4, v6 netip.Prefix) {
	n, ok := Lookup[Node](sn, ID{Class: Owner, Kind: KindNode, Owner: sn.self, Key: "self"})
	if !ok {
		return v4, v6
	}
	return n.ServiceRange, n.ServiceRange6
}

// Offset returns the address in the IPv4 range that a service has by what it
// names itself: its VIP or, when it names an IPv6 one alone, the one with the
// same offset. It is invalid when the service names none, or its IPv6 address
// is beyond the IPv4 range.
func (s *Service) Offset(v4, v6 netip.Prefix) netip.Addr {
	if s.VIP.IsValid() {
		return s.VIP
	}
	return Untwin(v4, v6, s.VIP6)
}

// AddressesAt returns the addresses that a service has with an offset, which
// is Offset's or one that was allocated, or zero. Invalid: it has none of that
// version.
func (s *Service) AddressesAt(v4, v6 netip.Prefix, at netip.Addr) (a4, a6 netip.Addr) {
	if s.Headless || s.External != "" {
		return a4, a6
	}
	if s.Serves4() {
		a4 = at
	}
	switch {
	case !s.Serves6():
	case !s.VIP6.IsValid():
		a6 = Twin(v4, v6, at)
	case v6.Contains(s.VIP6):
		a6 = s.VIP6
	}
	return a4, a6
}

// NeedsOffset reports whether a service must have an address allocated: it has
// addresses, and what it names leaves one of them open.
func (s *Service) NeedsOffset(v4, v6 netip.Prefix) bool {
	if s.Headless || s.External != "" || s.Offset(v4, v6).IsValid() {
		return false
	}
	return s.Serves4() || !s.VIP6.IsValid()
}

// Serves4 reports whether a service is to be reached by IPv4.
func (s *Service) Serves4() bool { return s.Families != FamilyV6 }

// Serves6 reports whether a service is to be reached by IPv6, where the
// cluster has it.
func (s *Service) Serves6() bool { return s.Families != FamilyV4 }

// Serves reports whether a service is to be reached by the version of an
// address, which must be valid.
func (s *Service) Serves(a netip.Addr) bool {
	if a.Is4() {
		return s.Serves4()
	}
	return s.Serves6()
}

// IsVIP reports whether an address is the service's.
func (s *ServiceView) IsVIP(a netip.Addr) bool { return a.IsValid() && (s.VIP == a || s.VIP6 == a) }

// addresses gives a service its addresses, as far as nobody else has them:
// those that it names, and for what it leaves open the ones with the offset of
// the other or of what was allocated.
func (d *derivation) addresses(sv *ServiceView, allocated netip.Addr) {
	id := ID{Kind: KindService, Key: sv.Key()}
	if sv.Headless || sv.External != "" {
		d.refuse(id, "", nil)
		return
	}
	r := serviceRanges(d.sn.tables.get(ID{Class: Owner, Kind: KindNode, Owner: d.Self, Key: "self"}))
	at := sv.Offset(r[0], r[1])
	if !at.IsValid() {
		at = allocated
	}
	if !at.Is4() {
		at = netip.Addr{} // of a record that no version of ours writes
	}
	outside := d.judged.vip(id, &sv.Service, at)
	if outside != nil {
		at = netip.Addr{}
	}
	if sv.VIP, sv.VIP6 = sv.AddressesAt(r[0], r[1], at); outside == nil {
		outside = vip6Outside(id, &sv.Service, r)
	}
	d.refuse(id, "", outside)
	sv.claims = [2]netip.Addr{sv.VIP, sv.VIP6}
}

// vip6Outside says why a service cannot have the IPv6 address that it asks
// for, or nil. Before this node's ranges are known, nothing is said.
func vip6Outside(id ID, s *Service, r [2]netip.Prefix) *Refusal {
	switch {
	case !r[0].IsValid() || !s.Serves6():
	case !r[1].IsValid() && (s.VIP6.IsValid() || s.Families == FamilyV6):
		return &Refusal{Record: id, What: "IPv6 address of " + s.FullName(), Why: "the services have no IPv6 range here: write one after `services " + r[0].String() + "`"}
	case s.VIP6.IsValid() && !r[1].Contains(s.VIP6):
		return &Refusal{Record: id, What: "VIP " + s.VIP6.String(), Why: "it lies outside the service range: give " + s.FullName() + " an address inside it"}
	}
	return nil
}

// claim brings a service's claims up to date, and notes the addresses whose
// claims changed or may have been settled otherwise.
func (d *derivation) claim(was, is *ServiceView) {
	for v, list := range d.vipConflictsOf() {
		if was != nil && was.claims[v].IsValid() {
			d.View.claims.remove(claim{was.claims[v], was.Namespace, was.Name})
			d.vips[was.claims[v]] = true
		}
		if is != nil && is.claims[v].IsValid() {
			d.View.claims.put(claim{is.claims[v], is.Namespace, is.Name})
			d.vips[is.claims[v]] = true
		}
		if was != nil && (is == nil || is.claims[v] != was.claims[v]) {
			*list = setConflict(*list, was.Namespace, was.Name, nil)
		}
	}
}

// vipConflictsOf are the conflicts over addresses of each version.
func (d *derivation) vipConflictsOf() [2]*[]keyed {
	return [2]*[]keyed{&d.vipConflicts, &d.vip6Conflicts}
}

// settle lets the first of the services that claim an address have it.
func (d *derivation) settle(a netip.Addr) {
	list := d.vipConflictsOf()[version(a)]
	var winner *ServiceView
	for c := range d.View.claims.from(claim{addr: a}) {
		if c.addr != a {
			break
		}
		s := d.View.service(c.namespace, c.name)
		var lost *Conflict
		vip := a
		if winner == nil {
			winner = s
		} else {
			vip = netip.Addr{}
			lost = &Conflict{
				What: "VIP " + a.String(), Winner: winner.FullName(), Loser: s.FullName(),
				Detail: "two services claim the address: give one of them another",
			}
		}
		*list = setConflict(*list, s.Namespace, s.Name, lost)
		t := *s
		if *t.addr(a) != vip {
			*t.addr(a) = vip
			d.View.services.put(&t)
			d.services[s.Key()] = true
		}
	}
}

// addr is where a service keeps its address of the version that a has.
func (s *ServiceView) addr(a netip.Addr) *netip.Addr {
	return [2]*netip.Addr{&s.VIP, &s.VIP6}[version(a)]
}

func version(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// duplicates are the conflicts over addresses of services: of two services that
// claim both addresses of each other, one.
func (v *View) duplicates(yield func(keyed) bool) {
	for _, c := range v.vipConflicts {
		if !yield(c) {
			return
		}
	}
	for _, c := range v.vip6Conflicts {
		if k := conflictOf(v.vipConflicts, c.namespace, c.name); (k == nil || k.Winner != c.Winner) && !yield(c) {
			return
		}
	}
}
