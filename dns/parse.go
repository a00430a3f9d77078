package dns

import (
	"errors"
	"strings"

	"nodenet/config"
	"nodenet/dns/plugin"
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

// parser is a Setup with the block that directives of the server itself, such
// as bind, change.
type parser struct {
	*plugin.Setup
	block *block
}

// parseServers turns server blocks into blocks without side effects.
func parseServers(servers []config.Server) ([]*block, []string, error) {
	var (
		blocks  []*block
		notices []string
		errs    []error
	)
	for _, srv := range servers {
		p := &parser{Setup: &plugin.Setup{Server: srv}, block: &block{server: srv}}
		p.parseKeys()
		p.Zones = p.block.zones
		p.parseDirectives()
		p.needsTLS()
		blocks = append(blocks, p.block)
		errs = append(errs, p.Errs()...)
		notices = append(notices, p.Notices()...)
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
			if c, ok := p.Plugin.(*cluster); ok && len(c.opt.forward) > 0 && c.opt.forward[0] != "." {
				return strings.TrimSuffix(c.opt.forward[0], ".")
			}
		}
	}
	return config.DefaultZone
}

// needsTLS finds keys that cannot be served without a certificate.
func (p *parser) needsTLS() {
	if p.block.tls != nil {
		return
	}
	for _, k := range p.block.keys {
		if k.scheme != "" {
			p.Errorf(p.block.server.Pos, "%s:// needs a certificate, write `tls CERT KEY`", k.scheme)
			return
		}
	}
}
