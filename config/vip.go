package config

import (
	"fmt"
	"net/netip"
	"slices"
)

// IP versions, as `families` names them.
const (
	IPv4 = "ipv4"
	IPv6 = "ipv6"
)

// ParseFamilies parses the IP versions that a service has addresses of, in any
// order.
func ParseFamilies(words []string) ([]string, error) {
	for i, w := range words {
		if _, err := oneOf(IPv4, IPv6)(w); err != nil {
			return nil, err
		}
		if slices.Contains(words[:i], w) {
			return nil, fmt.Errorf("%s: given twice, keep one", w)
		}
	}
	return slices.Sorted(slices.Values(words)), nil
}

// ParseVIPs parses the addresses of a service, one of each IP version at most,
// or `none`, which is headless.
func ParseVIPs(words []string) (v4, v6 netip.Addr, headless bool, err error) {
	for _, w := range words {
		if w == "none" {
			if len(words) > 1 {
				return v4, v6, false, fmt.Errorf("none: means no address at all, remove it or the others")
			}
			return v4, v6, true, nil
		}
		a, err := eitherAddr(w)
		switch {
		case err != nil:
			return v4, v6, false, err
		case a.Is4In6() || a.Zone() != "":
			return v4, v6, false, fmt.Errorf("%s: write a plain IPv4 or IPv6 address", w)
		case a.Is4() && v4.IsValid():
			return v4, v6, false, fmt.Errorf("%s: %s is given already, a service has one address of each IP version", w, v4)
		case a.Is6() && v6.IsValid():
			return v4, v6, false, fmt.Errorf("%s: %s is given already, a service has one address of each IP version", w, v6)
		case a.Is4():
			v4 = a
		default:
			v6 = a
		}
	}
	return v4, v6, false, nil
}

// Family is the one IP version that a service is restricted to; "": none.
func (s *Service) Family() string {
	if len(s.Families) == 1 {
		return s.Families[0]
	}
	return ""
}

// serves reports whether the families of a service have the version of an
// address.
func (s *Service) serves(a netip.Addr) bool {
	return s.Family() == "" || (s.Family() == IPv4) == a.Is4()
}

// families checks the addresses of a service against its families.
func (c *serviceCheck) families() {
	s := c.s
	if _, err := ParseFamilies(s.Families); err != nil {
		c.wrong("families", "families %v", err)
	}
	if s.VIP.IsValid() && !s.VIP.Is4() || s.VIP6.IsValid() && (!s.VIP6.Is6() || s.VIP6.Is4In6() || s.VIP6.Zone() != "") {
		c.wrong("vip", "vip %s: not one IPv4 and one IPv6 address at most", vipText(s.VIP, s.VIP6))
	}
	other := map[string]string{IPv4: IPv6, IPv6: IPv4}[s.Family()]
	for _, a := range []netip.Addr{s.VIP, s.VIP6} {
		if a.IsValid() && !s.serves(a) {
			c.wrong("vip", "vip %s: the service has %s alone, remove the address or write `families ipv4 ipv6`", a, s.Family())
		}
	}
	for _, b := range s.Backends {
		if a := b.Addr.Addr(); a.IsValid() && !s.serves(a) {
			c.wrong("backend", "backend %s: the service has %s alone, remove the backend or add %s to families", a, s.Family(), other)
		}
	}
	for _, a := range s.Addresses {
		if a.IsValid() && !s.serves(a) {
			c.wrong("address", "address %s: the service has %s alone, remove the address or add %s to families", a, s.Family(), other)
		}
	}
}

func vipText(v4, v6 netip.Addr) string {
	switch {
	case !v6.IsValid():
		return v4.String()
	case !v4.IsValid():
		return v6.String()
	}
	return v4.String() + " " + v6.String()
}

// CheckIn says what is wrong with the addresses of a service in a service
// range. A version of IP that the range does not have is a fault.
func (s *Service) CheckIn(r *ServiceRange) []ServiceFault {
	c := &serviceCheck{s: s}
	if !r.Prefix.IsValid() || s.External != "" {
		return nil
	}
	if slices.Contains(s.Families, IPv6) && !r.Prefix6.IsValid() && !s.Headless {
		c.wrong("families", "families ipv6: the services have no IPv6 range, write one after `services %s`", r.Prefix)
		return c.faults
	}
	if s.VIP6.IsValid() && s.serves(s.VIP6) && !r.Prefix6.IsValid() {
		c.wrong("vip", "vip %s: the services have no IPv6 range, write one after `services %s`", s.VIP6, r.Prefix)
		return c.faults
	}
	for _, v := range s.vips(r) {
		in := r.Prefix
		if v.addr.Is6() {
			in = r.Prefix6
		}
		switch {
		case !usable(v.addr, in):
			c.wrong("vip", "vip %s: not a host address of services %s, choose one or leave vip out", v, in)
			return c.faults
		case v.addr == r.DNS || v.addr == twin(r.Prefix, r.Prefix6, r.DNS):
			c.wrong("vip", "vip %s: is that of the resolver (services dns), choose another", v)
			return c.faults
		}
	}
	return c.faults
}

// vip is an address that a service has by what it names: the one that is
// written, or the one of the other version with the same offset.
type vip struct{ addr, written netip.Addr }

func (v vip) String() string {
	if v.addr == v.written {
		return v.addr.String()
	}
	return v.written.String() + " and so " + v.addr.String()
}

// vips are the addresses that a service has by what it names.
func (s *Service) vips(r *ServiceRange) []vip {
	v4, v6 := vip{s.VIP, s.VIP}, vip{s.VIP6, s.VIP6}
	switch {
	case !s.VIP6.IsValid():
		v6 = vip{twin(r.Prefix, r.Prefix6, s.VIP), s.VIP}
	case !s.VIP.IsValid():
		v4 = vip{untwin(r.Prefix, r.Prefix6, s.VIP6), s.VIP6}
	}
	return slices.DeleteFunc([]vip{v4, v6}, func(v vip) bool { return !v.addr.IsValid() || !s.serves(v.addr) || !s.serves(v.written) })
}

// Aim returns the address that a published port leads to: the one that is
// written or, on a host address of the other IP version, the other address of
// the same workload; invalid: there is none.
func (c *Config) Aim(p *Publish) netip.Addr {
	h, t := p.HostAddr, p.Target.Addr()
	if !h.IsValid() || h.IsLoopback() || h.Is4() == t.Is4() {
		return t
	}
	for i := range c.Networks {
		n := &c.Networks[i]
		for _, a := range []netip.Addr{twin(n.Prefix, n.Prefix6, t), untwin(n.Prefix, n.Prefix6, t)} {
			if a.IsValid() {
				return a
			}
		}
	}
	return netip.Addr{}
}

// twin is the address of in6 with the offset that a has in prefix in; invalid:
// none.
func twin(in, in6 netip.Prefix, a netip.Addr) netip.Addr {
	if !in.IsValid() || !in6.IsValid() || !a.Is4() || !in.Contains(a) {
		return netip.Addr{}
	}
	base, b, out := in.Masked().Addr().As4(), a.As4(), in6.Masked().Addr().As16()
	for i := range b {
		out[12+i] |= b[i] &^ base[i]
	}
	return netip.AddrFrom16(out)
}

// untwin is the address of in whose twin is a; invalid: none.
func untwin(in, in6 netip.Prefix, a netip.Addr) netip.Addr {
	if !in.IsValid() || !in6.Contains(a) {
		return netip.Addr{}
	}
	out, low := in.Masked().Addr().As4(), a.As16()
	for i := range out {
		out[i] |= low[12+i]
	}
	if b := netip.AddrFrom4(out); twin(in, in6, b) == a {
		return b
	}
	return netip.Addr{}
}
