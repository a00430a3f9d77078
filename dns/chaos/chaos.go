// Package chaos answers version.bind and the like in class CH.
package chaos

import (
	"context"
	"os"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

type chaos struct {
	version string
	authors []string
	host    string
}

// Parse reads `chaos [VERSION] [AUTHOR...]`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.NoBlock(d)
	c := &chaos{version: "nodenet", authors: []string{"nodenet"}, host: "localhost"}
	if len(d.Args) > 0 {
		c.version = d.Args[0]
	}
	if len(d.Args) > 1 {
		c.authors = d.Args[1:]
	}
	for _, text := range append([]string{c.version}, c.authors...) {
		if len(text) > 255 { // a TXT string, RFC 1035 section 3.3.14
			s.Errorf(d.Pos, "chaos: %.20q… is longer than 255 bytes", text)
		}
	}
	return c
}

// Attach implements plugin.Attacher.
func (c *chaos) Attach(plugin.Env) {
	if h, err := os.Hostname(); err == nil && h != "" && len(h) < 256 {
		c.host = h
	}
}

func (c *chaos) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Class != wire.ClassCHAOS || q.Type != wire.TypeTXT {
		return next(ctx, q)
	}
	var texts []string
	switch q.Name {
	case "version.bind.", "version.server.":
		texts = []string{c.version}
	case "authors.bind.":
		texts = c.authors
	case "hostname.bind.", "id.server.": // RFC 4892
		texts = []string{c.host}
	default:
		return next(ctx, q)
	}
	q.Own, q.Source = true, "chaos"
	m := new(wire.Msg)
	m.Authoritative = true
	for _, t := range texts {
		m.Answer = append(m.Answer, &wire.TXT{Hdr: wire.RR_Header{Name: q.Name, Rrtype: wire.TypeTXT, Class: wire.ClassCHAOS}, Txt: []string{t}})
	}
	return m, nil
}

// Skips implements plugin.Bystander: class IN is none of its business.
func (*chaos) Skips(string, uint16) bool { return true }
