package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The parsers of this file take one word. Their errors begin with the word and
// end with the fix, ready to follow a directive's name.

// prefix parses an IPv4 prefix with no host bits set.
func prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return p, fmt.Errorf("%s: not a prefix, write e.g. 10.244.0.0/16", s)
	case err != nil:
		return p, fmt.Errorf("%s: not a prefix, write address/length, e.g. 10.244.0.0/16", s)
	case p.Addr().Is4In6() || !p.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("%s: not an IPv4 prefix, only IPv4 ranges are supported", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s: host bits are set, write %s", s, p.Masked())
	}
	return p, nil
}

// special ranges that no network can use.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// rangePrefix is prefix, for ranges that addresses are given from.
func rangePrefix(s string) (netip.Prefix, error) {
	p, err := prefix(s)
	if err != nil {
		return p, err
	}
	for _, sp := range special {
		if sp.Overlaps(p) {
			return netip.Prefix{}, fmt.Errorf("%s: overlaps %s, which hosts cannot use, choose a private range, e.g. %s", s, sp, DefaultPrefix)
		}
	}
	if p.Bits() > 30 {
		return netip.Prefix{}, fmt.Errorf("%s: too small, /30 is the smallest", s)
	}
	return p, nil
}

// special6 are the IPv6 ranges that no network can use: loopback and mapped
// IPv4, link-local, multicast.
var special6 = []netip.Prefix{
	netip.MustParsePrefix("::/8"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// twinPrefix parses the IPv6 prefix beside an IPv4 range: it must have room
// for each of its offsets.
func twinPrefix(s string, beside netip.Prefix) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s: not a prefix, write address/length, e.g. fd00:10:244::/112", s)
	case !p.Addr().Is6() || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s: not an IPv6 prefix, the second range is IPv6, e.g. fd00:10:244::/112", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s: host bits are set, write %s", s, p.Masked())
	}
	for _, sp := range special6 {
		if sp.Overlaps(p) {
			return netip.Prefix{}, fmt.Errorf("%s: overlaps %s, which hosts cannot use, choose a private range, e.g. fd00:10:244::/112", s, sp)
		}
	}
	if beside.IsValid() && 128-p.Bits() < 32-beside.Bits() {
		return netip.Prefix{}, fmt.Errorf("%s: too small for an address beside each of %s, write a length of %d or less", s, beside, 128-(32-beside.Bits()))
	}
	return p, nil
}

// addr4 parses an IPv4 address.
func addr4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%s: not an address%s", s, withoutLength(s))
	}
	if !a.Is4() {
		return netip.Addr{}, fmt.Errorf("%s: not an IPv4 address, only IPv4 is supported here", s)
	}
	return a, nil
}

// eitherAddr parses an address of either version.
func eitherAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%s: not an address%s", s, withoutLength(s))
	}
	return a, nil
}

func withoutLength(s string) string {
	if p, err := netip.ParsePrefix(s); err == nil {
		return ", write " + p.Addr().String()
	}
	return ""
}

// hostAddr parses an address that other hosts can reach this one at.
func hostAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%s: not an address%s", s, withoutLength(s))
	case a.IsUnspecified() || a.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s: no host can have this address, write one of the node's own", s)
	}
	return a.Unmap(), nil
}

// number parses a decimal within [lo, hi].
func number(s string, lo, hi int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || s[0] == '+' {
		return 0, fmt.Errorf("%s: not a number, write one from %d to %d", s, lo, hi)
	}
	if n < lo || n > hi {
		return 0, fmt.Errorf("%s: out of range, write a number from %d to %d", s, lo, hi)
	}
	return n, nil
}

// intIn returns number with its bounds fixed, for one.
func intIn(lo, hi int) func(string) (int, error) {
	return func(s string) (int, error) { return number(s, lo, hi) }
}

// port parses a port number.
func port(s string) (uint16, error) {
	n, err := number(s, 1, 65535)
	if err != nil {
		return 0, fmt.Errorf("%s: not a port, write a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// portRange parses A-B.
func portRange(s string) (PortRange, error) {
	a, b, ok := strings.Cut(s, "-")
	first, err1 := port(a)
	last, err2 := port(b)
	switch {
	case !ok || err1 != nil || err2 != nil:
		return PortRange{}, fmt.Errorf("%s: not a range of ports, write e.g. 30000-32767", s)
	case first > last:
		return PortRange{}, fmt.Errorf("%s: ends before it begins, write %d-%d", s, last, first)
	}
	return PortRange{first, last}, nil
}

// protocol cuts one of the known protocols off s; the first without it.
func protocol(s string, known ...string) (rest, proto string, err error) {
	rest, proto, ok := strings.Cut(s, "/")
	if !ok {
		return s, known[0], nil
	}
	if !slices.Contains(known, proto) {
		words := "/" + strings.Join(known[:len(known)-1], ", /") + " or /" + known[len(known)-1]
		return rest, "", fmt.Errorf("%s: unknown protocol %q, write %s", s, proto, words)
	}
	return rest, proto, nil
}

// oneOf accepts the words of known.
func oneOf(known ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, k := range known {
			if s == k {
				return s, nil
			}
		}
		return "", fmt.Errorf("%s: unknown value%s", s, meant(s, known))
	}
}

// label parses a DNS label of at most max bytes (RFC 1123 section 2.1), in
// lower case.
func label(what string, max int) func(string) (string, error) {
	return func(s string) (string, error) {
		l := strings.ToLower(s)
		if !isLabel(l) {
			return "", fmt.Errorf("%s: not a %s, write letters, digits and inner hyphens, at most %d", s, what, max)
		}
		if len(l) > max {
			return "", fmt.Errorf("%s: %d characters, a %s has at most %d", s, len(l), what, max)
		}
		return l, nil
	}
}

// isLabel reports whether s is a DNS label in lower case.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// domain parses a host name, in lower case and without the final dot.
func domain(s string) (string, error) {
	d := strings.ToLower(strings.TrimSuffix(s, "."))
	for l := range strings.SplitSeq(d, ".") {
		if len(d) > 253 || !isLabel(l) {
			return "", fmt.Errorf("%s: not a host name, write e.g. db.example.org", s)
		}
	}
	return d, nil
}

// absolute parses the path of a file: the daemon's working directory is not
// the operator's.
func absolute(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", fmt.Errorf("%s: not an absolute path, write it from / on", s)
	}
	return filepath.Clean(s), nil
}

// device parses the name of a network interface: 15 bytes, as IFNAMSIZ allows,
// and no characters that the kernel's dev_valid_name refuses.
func device(s string) (string, error) {
	bad := s == "" || s == "." || s == ".." || len(s) > 15
	for i := range len(s) {
		bad = bad || s[i] <= ' ' || s[i] > '~' || s[i] == '/' || s[i] == ':' || s[i] == '%'
	}
	if bad {
		return "", fmt.Errorf("%s: not a device name, write at most 15 letters and digits", s)
	}
	return s, nil
}

// duration parses a lease time: DHCP counts whole seconds in 32 bits, all ones
// meaning for ever (RFC 2131 section 3.3).
func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: not a duration, write e.g. 30m or 12h", s)
	case d < time.Second || d%time.Second != 0 || d >= (1<<32-1)*time.Second:
		return 0, fmt.Errorf("%s: out of range, write whole seconds from 1s to 1193046h", s)
	}
	return d, nil
}

// hostPort parses HOST[:PORT], HOST a name or an address.
func hostPort(s string) (string, error) {
	host := s
	if _, err := netip.ParseAddr(s); err == nil {
		return s, nil // an IPv6 address is full of colons
	}
	if h, p, err := net.SplitHostPort(s); err == nil {
		if _, err := port(p); err != nil {
			return "", fmt.Errorf("%s: %w", s, err)
		}
		host = h
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return s, nil
	}
	if _, err := domain(host); err != nil {
		return "", fmt.Errorf("%s: not a host, write an address or a name, with or without :port", s)
	}
	return s, nil
}

// keyValue parses k=v.
func keyValue(s string) (k, v string, err error) {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" || v == "" {
		return "", "", fmt.Errorf("%s: not a label, write key=value", s)
	}
	return k, v, nil
}

// ports parses PORT or FIRST-LAST; last is 0 for one port.
func ports(s string) (first, last uint16, err error) {
	if !strings.Contains(s, "-") {
		first, err = port(s)
		return first, 0, err
	}
	r, err := portRange(s)
	if err != nil || r.First == r.Last {
		return r.First, 0, err
	}
	return r.First, r.Last, nil
}

// targets parses the ADDR:PORT that the ports from first to last go to, one
// each. The range may be written out: ADDR:PORT-LAST.
func targets(s string, first, last uint16) (netip.AddrPort, error) {
	span := max(first, last) - first
	addr, end, ranged := strings.Cut(s, "-")
	ap, err := target(addr)
	if err != nil {
		return ap, err
	}
	if ranged {
		switch n, err := port(end); {
		case err != nil || n < ap.Port():
			return ap, fmt.Errorf("%s: not an address with a range of ports, write e.g. 10.244.0.2:8000-8010", s)
		case n-ap.Port() != span:
			return ap, fmt.Errorf("%s: %d ports for %d, write as many as are published, or the first alone", s, int(n-ap.Port())+1, int(span)+1)
		}
	}
	if int(ap.Port())+int(span) > 65535 {
		return ap, fmt.Errorf("%s: there are no %d ports from there on, begin lower", s, int(span)+1)
	}
	return ap, nil
}

// target parses ADDR:PORT, or [ADDR]:PORT for IPv6.
func target(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return ap, fmt.Errorf("%s: not an address with a port, write e.g. 10.244.0.2:443", s)
	}
	if !ofHost(ap.Addr()) {
		return ap, fmt.Errorf("%s: not the address of a host, write e.g. 10.244.0.2:443", s)
	}
	return ap, nil
}

// ofHost reports whether an address, of either version, can be that of a
// host which others reach.
func ofHost(a netip.Addr) bool {
	switch {
	case !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast():
		return false
	case a.Is6():
		return !a.IsLoopback() && !a.IsLinkLocalUnicast()
	}
	return true
}
