package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// optRapidCommit is option 80 (RFC 4039), which the codec does not name.
const optRapidCommit = dhcpv4.GenericOptionCode(80)

// defaultOptions go to a client that sends no parameter request list.
var defaultOptions = []byte{3, 6, 12, 15, 26, 28, 42, 119}

// leaseOptions adds the lease's times and the parameters.
func (x *exchange) leaseOptions(m *dhcpv4.DHCPv4, lease *Lease, d time.Duration) {
	m.Options[dhcpv4.OptionIPAddressLeaseTime.Code()] = seconds(d)
	m.Options[dhcpv4.OptionRenewTimeValue.Code()] = seconds(d / 2)
	m.Options[dhcpv4.OptionRebindingTimeValue.Code()] = seconds(d / 8 * 7)
	x.parameters(m, lease)
}

// parameters adds what the scope has to say and the client wants to hear
// (option 55). The mask is sent always: without it a client falls back to
// the address classes.
func (x *exchange) parameters(m *dhcpv4.DHCPv4, lease *Lease) {
	asked := defaultOptions
	if prl := x.in.msg.Options.Get(dhcpv4.OptionParameterRequestList); len(prl) > 0 {
		asked = prl
	}
	put := func(o dhcpv4.OptionCode, v []byte) {
		if len(v) > 0 && slices.Contains(asked, o.Code()) {
			m.Options[o.Code()] = v
		}
	}
	s := x.scope
	prefix, routers := s.subnet(lease.Addr)
	if lease.Prefix.IsValid() {
		prefix = lease.Prefix
	}
	if lease.Router.IsValid() {
		routers = []netip.Addr{lease.Router}
	}
	m.Options[dhcpv4.OptionSubnetMask.Code()] = net.CIDRMask(prefix.Bits(), 32)
	put(dhcpv4.OptionRouter, addrs(routers))
	put(dhcpv4.OptionDomainNameServer, addrs(s.DNS))
	put(dhcpv4.OptionHostName, []byte(x.client.Hostname))
	put(dhcpv4.OptionDomainName, []byte(strings.TrimSuffix(s.Domain, ".")))
	if s.MTU >= 68 { // the least that option 26 may say (RFC 2132 §5.1)
		put(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(min(s.MTU, 65535))))
	}
	if prefix.Bits() < 31 {
		put(dhcpv4.OptionBroadcastAddress, broadcastOf(prefix))
	}
	put(dhcpv4.OptionNTPServers, addrs(s.NTP))
	put(dhcpv4.OptionDNSDomainSearchList, searchList(s.Search))
	put(dhcpv4.OptionClasslessStaticRoute, classlessRoutes(s.Routes, prefix, routers))
}

// sheddable lists options that may go when the reply is too long, first the
// ones that hurt least.
var sheddable = []dhcpv4.OptionCode{
	dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionNTPServers, dhcpv4.OptionBroadcastAddress, dhcpv4.OptionDomainName,
	dhcpv4.OptionHostName, dhcpv4.OptionMessage, dhcpv4.OptionClasslessStaticRoute,
}

// fit keeps the message within what the client accepts (option 57; without
// it a datagram of 576 bytes, RFC 2131 §2).
func (x *exchange) fit(m *dhcpv4.DHCPv4) {
	limit := 576
	if v := x.in.msg.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		limit = max(limit, int(binary.BigEndian.Uint16(v)))
	}
	limit = min(limit, maxPacket) - ipHeaderLen - udpHeaderLen
	for _, o := range sheddable {
		if messageLen(m) <= limit {
			return
		}
		delete(m.Options, o.Code())
	}
}

// messageLen is the encoded length: fixed part, cookie, options, end.
func messageLen(m *dhcpv4.DHCPv4) int {
	n := 236 + 4 + 1
	for _, v := range m.Options {
		// Longer values are split into several options (RFC 3396).
		n += len(v) + 2*max(1, (len(v)+254)/255)
	}
	return n
}

// hostnameOf reads the client's name (option 12, or the first label of option
// 81) and makes a DNS label of it.
func hostnameOf(m *dhcpv4.DHCPv4) string {
	if h := sanitize(string(m.Options.Get(dhcpv4.OptionHostName))); h != "" {
		return h
	}
	// RFC 4702 §2: flags, two result codes, then the name: as text, or in
	// wire form with the E flag.
	v := m.Options.Get(dhcpv4.OptionFQDN)
	if len(v) < 4 {
		return ""
	}
	flags, name := v[0], v[3:]
	if flags&4 != 0 {
		n := int(name[0])
		if n > 63 || n >= len(name) {
			return ""
		}
		name = name[1 : 1+n]
	}
	return sanitize(string(name))
}

// sanitize makes a DNS label (RFC 1123 §2.1) of a client's name: its first
// label in lower case, with a hyphen for each run of other characters. It is
// empty for a name that says nothing.
func sanitize(name string) string {
	name, _, _ = strings.Cut(name, ".")
	b := make([]byte, 0, 63)
	for i := 0; i < len(name) && len(b) < 63; i++ {
		c := name[i]
		switch {
		case c >= 'A' && c <= 'Z':
			b = append(b, c+'a'-'A')
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			b = append(b, c)
		case c == 0:
			i = len(name)
		case len(b) > 0 && b[len(b)-1] != '-':
			b = append(b, '-')
		}
	}
	s := strings.Trim(string(b), "-")
	if s == "localhost" {
		return ""
	}
	return s
}

func seconds(d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(min(int64(d/time.Second), 0xffffffff)))
}

func addrs(list []netip.Addr) []byte {
	var b []byte
	for _, a := range list {
		if a.Is4() {
			b = append(b, a.AsSlice()...)
		}
	}
	return b
}

func broadcastOf(p netip.Prefix) []byte {
	a := p.Masked().Addr().As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	return binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a[:])|host)
}

// searchList encodes option 119 (RFC 3397) without compression, which several
// clients get wrong. Names that cannot be encoded are left out.
func searchList(names []string) []byte {
	var b []byte
names:
	for _, n := range names {
		var enc []byte
		for l := range strings.SplitSeq(strings.TrimSuffix(n, "."), ".") {
			if l == "" || len(l) > 63 {
				continue names
			}
			enc = append(append(enc, byte(len(l))), l...)
		}
		if len(enc) < 255 {
			b = append(append(b, enc...), 0)
		}
	}
	return b
}

// classlessRoutes encodes option 121. The default route has to be in it,
// because a client that gets it ignores option 3 (RFC 3442); and a router
// outside the subnet needs a route of its own first.
func classlessRoutes(routes []Route, subnet netip.Prefix, routers []netip.Addr) []byte {
	var all []Route
	if len(routers) > 0 && routers[0].Is4() {
		r := routers[0]
		if !subnet.Contains(r) || subnet.IsSingleIP() {
			all = append(all, Route{netip.PrefixFrom(r, 32), netip.IPv4Unspecified()})
		}
		routes = append(slices.Clone(routes), Route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), r})
	}
	var b []byte
	for _, r := range append(all, routes...) {
		if !r.Prefix.Addr().Is4() || !r.Via.Is4() {
			continue
		}
		dst := r.Prefix.Masked().Addr().As4()
		b = append(b, byte(r.Prefix.Bits()))
		b = append(b, dst[:(r.Prefix.Bits()+7)/8]...)
		b = append(b, r.Via.AsSlice()...)
	}
	return b
}
