// Package log logs queries and what became of them.
package log

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// queries is the directive.
type queries struct {
	zones   plugin.Zones
	format  format   // nil: key=value
	classes []string // empty: all
	log     *slog.Logger
}

var classes = []string{"success", "denial", "error", "all"}

// Parse reads `log [ZONE...] [FORMAT] { class CLASS... }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	l := new(queries)
	args := d.Args
	if n := len(args); n > 0 && strings.ContainsRune(args[n-1], '{') {
		f, err := parseFormat(args[n-1])
		if err != nil {
			s.Errorf(d.Pos, "log: %v", err)
		}
		l.format, args = f, args[:n-1]
	}
	l.zones = s.ZoneArgs(d, args)
	for _, o := range d.Block {
		if o.Name != "class" {
			s.Unknown(d, o, "class")
			continue
		}
		s.Args(o, 1, -1, "class "+strings.Join(classes, "|")+"...")
		for _, c := range o.Args {
			if !slices.Contains(classes, c) {
				s.Errorf(o.Pos, "log: class %q is not known, write success, denial, error or all", c)
			}
			l.classes = append(l.classes, c)
		}
	}
	return l
}

// Attach implements plugin.Attacher.
func (l *queries) Attach(e plugin.Env) { l.log = e.Logger }

func (l *queries) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	start := time.Now()
	m, err := next(ctx, q)
	if l.zones.Match(q.Name) == "" {
		return m, err
	}
	e := entry{q: q, m: m, rcode: wire.RcodeRefused, took: time.Since(start)}
	class := "error"
	switch {
	case err != nil:
		e.rcode = wire.RcodeServerFailure
	case m != nil:
		e.rcode = m.Rcode
		switch {
		case e.rcode == wire.RcodeSuccess && len(m.Answer) > 0:
			class = "success"
		case e.rcode == wire.RcodeSuccess || e.rcode == wire.RcodeNameError:
			class = "denial"
		}
	}
	e.class = class
	if len(l.classes) > 0 && !slices.Contains(l.classes, "all") && !slices.Contains(l.classes, class) {
		return m, err
	}
	if l.format != nil {
		l.log.Info(l.format.render(&e))
		return m, err
	}
	l.log.Info("query", "client", q.Client, "name", q.Name, "type", wire.TypeToString[q.Type],
		"tcp", q.TCP, "rcode", wire.RcodeToString[e.rcode], "by", q.Source, "took", e.took)
	return m, err
}

// Skips implements plugin.Bystander.
func (l *queries) Skips(name string, _ uint16) bool { return l.zones.Match(name) == "" }
