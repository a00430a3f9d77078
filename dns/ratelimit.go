package dns

import (
	"net/netip"

	"nodenet/config"
	"nodenet/dns/limit"
	"nodenet/dns/plugin"
)

// parseRatelimit reads `ratelimit off` or `ratelimit RATE [BURST] { except
// PREFIX... }`.
func parseRatelimit(p *parser, d config.Directive) plugin.Plugin {
	if !p.Args(d, 1, 2, "ratelimit off | RATE [BURST]") {
		return nil
	}
	var except []netip.Prefix
	for _, o := range d.Block {
		if o.Name != "except" {
			p.Unknown(d, o, "except")
			continue
		}
		p.Args(o, 1, -1, "except PREFIX...")
		for _, a := range o.Args {
			if pfx, ok := p.Prefix(o, a); ok {
				except = append(except, pfx)
			}
		}
	}
	p.block.limited = true
	if d.Args[0] == "off" {
		p.Args(d, 1, 1, "ratelimit off")
		return nil
	}
	const most = 1 << 20
	rate, ok := p.Number(d, "rate", d.Args[0], 1, most)
	burst := min(2*rate, most)
	if ok && len(d.Args) == 2 {
		burst, ok = p.Number(d, "burst", d.Args[1], 1, most)
	}
	if ok {
		p.block.limiter = limit.New(rate, burst, except)
	}
	return nil
}
