package dns

import (
	"net/netip"

	"nodenet/dns/plugin"
)

// Nameservers returns the servers that the text of a resolv.conf(5) names.
func Nameservers(resolvConf string) []netip.Addr { return parseNameservers(resolvConf) }

// IsResolvedStub reports an address at which systemd-resolved listens for the
// host's own programs: who names it in resolv.conf(5) means that daemon.
func IsResolvedStub(a netip.Addr) bool { return isResolvedStub(a) }

// ReverseZones returns the zones under in-addr.arpa or ip6.arpa that hold the
// names of a prefix's addresses, and as little else as the label boundaries allow.
func ReverseZones(p netip.Prefix) []string { return plugin.ReverseZones(p) }
