package dns

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
)

// errorsPlugin logs what goes wrong in the chain below it: each message at
// most once in errorsEvery, with how often it happened.
type errorsPlugin struct {
	log  *slog.Logger
	mu   sync.Mutex
	seen map[string]*errorCount
}

type errorCount struct {
	at         time.Time
	suppressed int
}

const (
	errorsEvery = 10 * time.Second
	errorsKept  = 1000 // different messages
)

func parseErrors(p *parser, d config.Directive) plugin {
	p.args(d, 0, 0, "errors")
	for _, o := range d.Block {
		switch o.Name {
		case "consolidate":
			p.noticef(o, "errors: consolidate is ignored, equal errors are logged once in %s anyway", errorsEvery)
		case "stacktrace":
			p.noticef(o, "errors: stacktrace is ignored, a panic is always logged with its stack")
		default:
			p.unknown(d, o, "consolidate", "stacktrace")
		}
	}
	return &errorsPlugin{seen: make(map[string]*errorCount)}
}

func (e *errorsPlugin) attach(s *Server, _ *block) { e.log = s.log }

func (e *errorsPlugin) serve(ctx context.Context, q *query, next handler) (*wire.Msg, error) {
	m, err := next(ctx, q)
	if err != nil {
		if n, ok := e.due(err.Error(), time.Now()); ok {
			e.log.Error("dns query", "name", q.name, "type", wire.TypeToString[q.qtype], "err", err, "suppressed", n)
		}
	}
	return m, err
}

// due reports whether a message is to be logged now, and how often it was
// not since the last time.
func (e *errorsPlugin) due(msg string, now time.Time) (suppressed int, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.seen[msg]
	if c != nil && now.Sub(c.at) < errorsEvery {
		c.suppressed++
		return 0, false
	}
	if c == nil {
		if len(e.seen) >= errorsKept {
			clear(e.seen)
		}
		c = new(errorCount)
		e.seen[msg] = c
	}
	suppressed = c.suppressed
	c.at, c.suppressed = now, 0
	return suppressed, true
}

// logPlugin logs queries.
type logPlugin struct {
	zones   zones
	classes []string // empty: all
	log     *slog.Logger
}

func parseLog(p *parser, d config.Directive) plugin {
	l := new(logPlugin)
	if slices.ContainsFunc(d.Args, func(a string) bool { return strings.ContainsRune(a, '{') }) {
		p.errorf(d.Pos, "log: formats are not supported, lines are key=value: write `log [ZONE...]`")
		return nil
	}
	l.zones = p.zoneArgs(d, d.Args)
	for _, o := range d.Block {
		if o.Name != "class" {
			p.unknown(d, o, "class")
			continue
		}
		for _, c := range o.Args {
			if !slices.Contains([]string{"success", "denial", "error", "all"}, c) {
				p.errorf(o.Pos, "log: class %q is not known, write success, denial, error or all", c)
			}
			l.classes = append(l.classes, c)
		}
	}
	return l
}

func (l *logPlugin) attach(s *Server, _ *block) { l.log = s.log }

func (l *logPlugin) serve(ctx context.Context, q *query, next handler) (*wire.Msg, error) {
	start := time.Now()
	m, err := next(ctx, q)
	if l.zones.match(q.name) == "" {
		return m, err
	}
	rcode := wire.RcodeRefused
	class := "error"
	switch {
	case err != nil:
		rcode = wire.RcodeServerFailure
	case m != nil:
		rcode = m.Rcode
		switch {
		case rcode == wire.RcodeSuccess && len(m.Answer) > 0:
			class = "success"
		case rcode == wire.RcodeSuccess || rcode == wire.RcodeNameError:
			class = "denial"
		}
	}
	if len(l.classes) == 0 || slices.Contains(l.classes, "all") || slices.Contains(l.classes, class) {
		l.log.Info("query", "client", q.from, "name", q.name, "type", wire.TypeToString[q.qtype],
			"tcp", q.tcp, "rcode", wire.RcodeToString[rcode], "by", q.source, "took", time.Since(start))
	}
	return m, err
}
