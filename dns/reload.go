package dns

import (
	"time"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// reloadOptions of a block; the shortest interval of all blocks counts.
type reloadOptions struct {
	every time.Duration // 0: no reload
}

func parseReload(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	if !p.Args(d, 0, 2, "reload [INTERVAL]") {
		return nil
	}
	p.block.reload.every = 30 * time.Second
	if len(d.Args) > 0 {
		p.block.reload.every, _ = p.Duration(d, "interval", d.Args[0], 2*time.Second)
	}
	if len(d.Args) > 1 {
		p.Noticef(d, "reload: jitter %s is ignored, each node reads its own file", d.Args[1])
	}
	return nil
}
