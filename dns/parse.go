package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
)

// Validate checks server blocks without reading any file. It returns all
// errors at once, each as `file:line: zone: what, fix`.
func Validate(servers []config.Server) error {
	_, _, err := parseServers(servers)
	return err
}

// Notices lists what is accepted but has no effect or another name, each as
// `file:line: directive: what`.
func Notices(servers []config.Server) []string {
	_, notices, _ := parseServers(servers)
	return notices
}

// parser turns the directives of one server block into plugins and settings,
// and collects what is wrong with them.
type parser struct {
	block   *block
	errs    []error
	notices []string
}

func (p *parser) errorf(pos config.Pos, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %s: %s", pos.File, pos.Line, p.block.label(), fmt.Sprintf(format, args...)))
}

func (p *parser) noticef(d config.Directive, format string, args ...any) {
	p.notices = append(p.notices, fmt.Sprintf("%s:%d: %s", d.Pos.File, d.Pos.Line, fmt.Sprintf(format, args...)))
}

// args checks the number of arguments; max -1 means any number.
func (p *parser) args(d config.Directive, least, most int, syntax string) bool {
	if len(d.Args) < least || most >= 0 && len(d.Args) > most {
		p.errorf(d.Pos, "%s: wrong number of arguments, write `%s`", d.Name, syntax)
		return false
	}
	return true
}

// noBlock refuses a nested block.
func (p *parser) noBlock(d config.Directive) {
	for _, o := range d.Block {
		p.errorf(o.Pos, "%s: unknown option %q, remove it", d.Name, o.Name)
	}
}

// unknown reports an option that a directive does not have.
func (p *parser) unknown(d, o config.Directive, known ...string) {
	p.errorf(o.Pos, "%s: unknown option %q, %s", d.Name, o.Name, suggest(o.Name, known))
}

func (p *parser) duration(d config.Directive, what, s string, least time.Duration) (time.Duration, bool) {
	v, err := time.ParseDuration(s)
	if err != nil {
		if n, nerr := strconv.Atoi(s); nerr == nil {
			v, err = time.Duration(n)*time.Second, nil
		}
	}
	if err != nil || v < least {
		p.errorf(d.Pos, "%s: %s %q is not a duration of at least %s, write it like 10s", d.Name, what, s, least)
		return 0, false
	}
	return v, true
}

func (p *parser) number(d config.Directive, what, s string, least, most int) (int, bool) {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		p.errorf(d.Pos, "%s: %s %q is not a number from %d to %d", d.Name, what, s, least, most)
		return 0, false
	}
	return n, true
}

// zoneArgs reads zones; without any, the zones of the block.
func (p *parser) zoneArgs(d config.Directive, args []string) zones {
	if len(args) == 0 {
		return p.block.zones
	}
	var out zones
	for _, a := range args {
		z, err := parseZone(a)
		if err != nil {
			p.errorf(d.Pos, "%s: %v", d.Name, err)
			continue
		}
		out = append(out, z...)
	}
	return out
}

func (p *parser) fallthroughTo(d config.Directive) fallthroughTo {
	f := fallthroughTo{set: true}
	if len(d.Args) > 0 {
		f.zones = p.zoneArgs(d, d.Args)
	}
	return f
}

// hostPort reads an HTTP listen address, `:8080` or `ADDR:PORT`.
func (p *parser) hostPort(d config.Directive, s string) string {
	host, port, err := net.SplitHostPort(s)
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		p.errorf(d.Pos, "%s: %q is not an address with a port, write it like :8080 or 127.0.0.1:8080", d.Name, s)
		return ""
	}
	return s
}

// parseZone reads a zone as written in a Corefile: a domain name or, for the
// reverse zones of a prefix, 10.0.0.0/8. A prefix may need several zones.
func parseZone(s string) (zones, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return reverseZones(p.Masked()), nil
	}
	z := wire.CanonicalName(s)
	odd := ":/ \\"
	if isReverse(z) {
		odd = ": \\" // 0/25.2.0.192.in-addr.arpa, RFC 2317
	}
	if _, ok := wire.IsDomainName(z); !ok || strings.ContainsAny(s, odd) {
		return nil, fmt.Errorf("%q is not a zone, write a domain name or a prefix", s)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r > 0x7F }) {
		return nil, fmt.Errorf("zone %q is not ASCII, write it in punycode (xn--…)", s)
	}
	return zones{z}, nil
}

// reverseZones returns the zones that cover a prefix: at octet boundaries for
// IPv4, nibble boundaries for IPv6; in between, the next longer boundary.
func reverseZones(p netip.Prefix) zones {
	unit := 8
	if p.Addr().Is6() {
		unit = 4
	}
	n := (p.Bits() + unit - 1) / unit // labels of the zone
	count := 1 << (n*unit - p.Bits())
	var out zones
	first := p.Addr().AsSlice()
	for i := range count {
		b := append([]byte(nil), first...)
		if n > 0 {
			bit := n*unit - 1 // last bit of the last label
			b[bit/8] |= byte(i << (7 - bit%8))
		}
		a, _ := netip.AddrFromSlice(b)
		labels := wire.SplitDomainName(reverseName(a))
		out = append(out, wire.Fqdn(strings.Join(labels[len(labels)-2-n:], ".")))
	}
	return out
}

// reverseName returns the name below in-addr.arpa or ip6.arpa of an address.
func reverseName(a netip.Addr) string {
	if a.Is4() {
		b := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", b[3], b[2], b[1], b[0])
	}
	const hex = "0123456789abcdef"
	b := a.As16()
	var out strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		out.Write([]byte{hex[b[i]&0xF], '.', hex[b[i]>>4], '.'})
	}
	return out.String() + "ip6.arpa."
}

// isReverse reports whether a zone holds PTR records.
func isReverse(zone string) bool {
	return wire.IsSubDomain("in-addr.arpa.", zone) || wire.IsSubDomain("ip6.arpa.", zone)
}

// parseServers turns server blocks into blocks without side effects.
func parseServers(servers []config.Server) ([]*block, []string, error) {
	var (
		blocks  []*block
		notices []string
		errs    []error
	)
	for _, srv := range servers {
		p := &parser{block: &block{server: srv}}
		p.parseKeys()
		p.parseDirectives()
		blocks = append(blocks, p.block)
		errs = append(errs, p.errs...)
		notices = append(notices, p.notices...)
	}
	errs = append(errs, overlaps(blocks)...)
	return blocks, notices, errors.Join(errs...)
}

// ClusterZone returns the zone that workloads search: the first zone of the
// first cluster directive that is not a reverse zone, without the final dot.
// Default: cluster.local.
func ClusterZone(servers []config.Server) string {
	blocks, _, _ := parseServers(servers)
	for _, b := range blocks {
		for _, p := range b.plugins {
			if c, ok := p.(*cluster); ok && len(c.opt.forward) > 0 && c.opt.forward[0] != "." {
				return strings.TrimSuffix(c.opt.forward[0], ".")
			}
		}
	}
	return config.DefaultZone
}
