// Package errors logs what goes wrong in the chain below it.
package errors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

const (
	every = 10 * time.Second // equal errors are logged once in this time
	kept  = 1000             // different messages
)

// report is the directive.
type report struct {
	log      *slog.Logger
	patterns []*pattern
	now      func() time.Time

	mu   sync.Mutex
	seen map[string]*count // errors that no pattern fits
}

type count struct {
	at         time.Time
	suppressed int
}

// pattern collects the errors that it fits, for a period.
type pattern struct {
	re        *regexp.Regexp
	period    time.Duration
	level     slog.Level
	showFirst bool

	mu    sync.Mutex
	n     int
	timer *time.Timer
}

var levels = []string{"debug", "info", "warning", "error"}

// Parse reads `errors { stacktrace; consolidate DURATION REGEXP [LEVEL]
// [show_first] }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.Args(d, 0, 0, "errors")
	r := &report{now: time.Now, seen: make(map[string]*count)}
	for _, o := range d.Block {
		switch o.Name {
		case "consolidate":
			if p := parsePattern(s, o); p != nil {
				r.patterns = append(r.patterns, p)
			}
		case "stacktrace":
			s.Noticef(o, "errors: stacktrace is ignored, a panic is always logged with its stack")
		default:
			s.Unknown(d, o, "consolidate", "stacktrace")
		}
	}
	return r
}

func parsePattern(s *plugin.Setup, o config.Directive) *pattern {
	if !s.Args(o, 2, 4, "consolidate DURATION REGEXP [LEVEL] [show_first]") {
		return nil
	}
	p := &pattern{level: slog.LevelError}
	p.period, _ = s.Duration(o, "period", o.Args[0], time.Millisecond)
	p.re = s.Regexp(o, o.Args[1])
	for i, a := range o.Args[2:] {
		level := slices.Index(levels, a)
		switch {
		case a == "show_first":
			p.showFirst = true
		case i == 0 && level >= 0:
			p.level = slog.Level(4*level - 4) // slog's levels are four apart, debug is -4
		default:
			s.Errorf(o.Pos, "errors: consolidate: %q is no level, write %s", a, strings.Join(levels, ", "))
		}
	}
	if p.re == nil || p.period == 0 {
		return nil
	}
	return p
}

// Attach implements plugin.Attacher.
func (r *report) Attach(e plugin.Env) { r.log = e.Logger }

// Run says at the end what was collected.
func (r *report) Run(ctx context.Context) {
	<-ctx.Done()
	for _, p := range r.patterns {
		p.flush(r.log)
	}
}

func (r *report) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	m, err := next(ctx, q)
	if err == nil || errors.Is(err, plugin.ErrDrop) {
		return m, err
	}
	text := err.Error()
	for _, p := range r.patterns {
		if p.re.MatchString(text) {
			if p.add(r.log) {
				r.log.Log(ctx, p.level, "dns query", "name", q.Name, "type", wire.TypeToString[q.Type], "err", err)
			}
			return m, err
		}
	}
	if n, ok := r.due(text, r.now()); ok {
		r.log.Error("dns query", "name", q.Name, "type", wire.TypeToString[q.Type], "err", err, "suppressed", n)
	}
	return m, err
}

// due reports whether a message is to be logged now, and how often it was
// not since the last time.
func (r *report) due(msg string, now time.Time) (suppressed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.seen[msg]
	if c != nil && now.Sub(c.at) < every {
		c.suppressed++
		return 0, false
	}
	if c == nil {
		if len(r.seen) >= kept {
			clear(r.seen)
		}
		c = new(count)
		r.seen[msg] = c
	}
	suppressed = c.suppressed
	c.at, c.suppressed = now, 0
	return suppressed, true
}

// add counts an error and reports whether it is to be logged by itself.
func (p *pattern) add(log *slog.Logger) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if p.n > 1 {
		return false
	}
	p.timer = time.AfterFunc(p.period, func() { p.flush(log) })
	return p.showFirst
}

// flush ends a period.
func (p *pattern) flush(log *slog.Logger) {
	p.mu.Lock()
	n := p.n
	p.n = 0
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	if n == 0 || n == 1 && p.showFirst {
		return
	}
	log.Log(context.Background(), p.level, fmt.Sprintf("%d errors like '%s' occurred in last %s", n, p.re, p.period))
}

// Skips implements plugin.Bystander: no error comes from data.
func (*report) Skips(string, uint16) bool { return true }
