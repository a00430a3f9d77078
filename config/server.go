package config

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// schemes that CoreDNS knows in the key of a server block.
var schemes = []string{"dns", "tls", "quic", "https", "https3", "grpc"}

// server takes a block whose keys are DNS zones. What its directives mean, and
// which exist, is the dns package's business.
func (p *parser) server(b block) {
	if word := misspelt(b); word != "" {
		p.faults.add(b.pos, b.name(), "%s is neither a block of nodenet nor a list of zones, did you mean %s?", b.keys[0], word)
		return
	}
	if b.keys[0] == planned {
		p.faults.add(b.pos, b.name(), "%s blocks are not supported by this version, remove it (a zone is written %s.)", planned, planned)
		return
	}
	ok := true
	for _, k := range b.keys {
		if why := zoneFault(k); why != "" {
			ok = false
			p.faults.add(b.pos, "", "%s: %s", k, why)
		}
	}
	if ok {
		p.cfg.Servers = append(p.cfg.Servers, Server{Keys: b.keys, Directives: b.body, Pos: b.pos})
	}
}

// noZone is the fault of a key that is no zone whatever it was meant to be.
var noZone = "not a DNS zone, write e.g. example.org or .:53, or begin the block with one of: " + strings.Join(reserved, ", ")

// zoneFault says why key is not [SCHEME://]ZONE[:PORT], ZONE a domain or a
// prefix of addresses to resolve backwards; "" when it is.
func zoneFault(key string) string {
	if s, rest, ok := strings.Cut(key, "://"); ok {
		if !slices.Contains(schemes, s) {
			return "unknown scheme " + s + meant(s, schemes)
		}
		key = rest
	}
	zone := key
	if _, err := netip.ParsePrefix(key); err != nil {
		if i := strings.LastIndexByte(key, ':'); i >= 0 {
			if _, err := port(key[i+1:]); err != nil {
				return err.Error()
			}
			zone = key[:i]
		}
	}
	if _, _, err := net.ParseCIDR(zone); err == nil {
		return ""
	}
	if zone == "." || zone == "" && key != "" {
		return "" // ":53" is the root zone, as in CoreDNS
	}
	if zone == "import" {
		return "import begins a line of its own, not a list of zones (a zone is written import.)"
	}
	zone = strings.TrimSuffix(zone, ".")
	if len(zone) > 253 {
		return "longer than 253 characters, which no DNS zone is"
	}
	if strings.HasSuffix(zone, ".in-addr.arpa") {
		zone = strings.ReplaceAll(zone, "/", "-") // 0/25.2.0.192.in-addr.arpa, RFC 2317
	}
	for l := range strings.SplitSeq(zone, ".") {
		if !isZoneLabel(l) {
			return noZone
		}
	}
	return ""
}

// isZoneLabel allows what zones in the wild have beyond host names:
// underscores, capitals and non-ASCII letters (for dns to turn into punycode).
func isZoneLabel(l string) bool {
	if l == "" || len(l) > 63 {
		return false
	}
	for _, c := range l {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		case c >= 0x80 && c != 0xFFFD:
		default:
			return false
		}
	}
	return true
}
