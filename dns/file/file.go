// Package file serves zones from zone files (RFC 1035).
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// file is one directive: a file that is read once for each of its zones.
type file struct {
	path  string
	zones plugin.Zones
	every time.Duration // 0: read once
	fall  plugin.Fall

	log     *slog.Logger
	note    func(what string, err error, fix string)
	content sync.Map // origin → *atomic.Pointer[zone]
	stamp   stamp    // of what was read last; the runner's after Attach
}

// Parse reads `file FILE [ZONE...] { reload DURATION; fallthrough [ZONE...] }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	if !s.Args(d, 1, -1, "file FILE [ZONE...]") {
		return nil
	}
	f := &file{path: s.Path(d.Args[0]), zones: s.ZoneArgs(d, d.Args[1:]), every: time.Minute}
	for _, o := range d.Block {
		switch o.Name {
		case "reload":
			if s.Args(o, 1, 1, "reload DURATION") {
				f.every, _ = s.Duration(o, "interval", o.Args[0], 0)
			}
		case "reload_by_mtime":
			s.Args(o, 0, 0, "reload_by_mtime") // every change of the file counts
		case "fallthrough":
			f.fall = s.Fall(o)
		case "upstream":
			s.Noticef(o, "file: upstream is ignored, names outside the zone are resolved by this server")
		case "transfer":
			s.Errorf(o.Pos, "file: transfer is a directive of its own, write `transfer { to … }`")
		case "no_reload":
			s.Errorf(o.Pos, "file: no_reload is gone, write `reload 0`")
		default:
			s.Unknown(d, o, "reload", "reload_by_mtime", "fallthrough")
		}
	}
	return f
}

// Attach implements plugin.Attacher.
func (f *file) Attach(e plugin.Env) {
	f.log, f.note = e.Logger, e.Note
	for _, z := range f.zones {
		f.content.Store(z, new(atomic.Pointer[zone]))
	}
	f.refresh()
}

// Run implements plugin.Runner.
func (f *file) Run(ctx context.Context) {
	defer f.note("file "+f.path, nil, "")
	if f.every <= 0 {
		<-ctx.Done()
		return
	}
	t := time.NewTicker(f.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f.refresh()
		}
	}
}

// stamp tells one content of a file from another.
type stamp struct {
	size  int64
	mtime time.Time
}

// refresh reads the file when it is another one than before. A zone that is
// faulty or gone is served as it was.
func (f *file) refresh() {
	info, err := os.Stat(f.path)
	var now stamp
	if err == nil {
		now = stamp{info.Size(), info.ModTime()}
		if now == f.stamp {
			return
		}
	}
	f.stamp = now
	var text []byte
	if err == nil {
		text, err = os.ReadFile(f.path)
	}
	if err != nil {
		f.note("file "+f.path, err, "put the zone file there; until then its zones are served as they were")
		return
	}
	var errs []error
	for _, origin := range f.zones {
		z, err := load(bytes.NewReader(text), origin, f.path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p := f.pointer(origin)
		old := p.Swap(z)
		attrs := []any{"zone", origin, "file", f.path, "serial", z.soa.Serial, "records", z.count}
		if old != nil && old.soa.Serial == z.soa.Serial {
			f.log.Warn("zone changed without a new serial, servers that copy it do not notice", attrs...)
		} else {
			f.log.Info("zone loaded", attrs...)
		}
	}
	f.note("file "+f.path, errors.Join(errs...), "correct the zone file; until then its zones are served as they were")
}

func (f *file) pointer(origin string) *atomic.Pointer[zone] {
	p, ok := f.content.Load(origin)
	if !ok {
		return nil
	}
	return p.(*atomic.Pointer[zone])
}

func (f *file) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	origin := f.zones.Match(q.Name)
	if origin == "" || q.Class != wire.ClassINET {
		return next(ctx, q)
	}
	z := f.pointer(origin).Load()
	if z == nil {
		q.Own, q.Source = true, "file"
		q.Explain(wire.ExtendedErrorCodeNotReady, "the zone "+origin+" is not loaded")
		return plugin.Refusal(wire.RcodeServerFailure), nil
	}
	a := z.lookup(q.Name, q.Type, q.DO)
	if a.rcode == wire.RcodeNameError && len(a.answer) == 0 && f.fall.Passes(q.Name) {
		return next(ctx, q)
	}
	q.Own, q.Source = true, "file"
	if q.Trace != nil {
		q.Record(plugin.Step{Plugin: "file", Decision: "looked up", Origin: fmt.Sprintf("%s, serial %d", f.path, z.soa.Serial)})
	}
	m := &wire.Msg{Answer: a.answer, Ns: a.ns, Extra: a.extra}
	m.Rcode, m.Authoritative = a.rcode, !a.referral && a.rcode != wire.RcodeServerFailure
	if a.rcode == wire.RcodeServerFailure {
		q.Explain(wire.ExtendedErrorCodeOther, "alias chain is circular or too long")
	}
	if a.chase == "" {
		return m, nil
	}
	// Stub resolvers do not follow an alias by themselves.
	r, err := q.Lookup(ctx, a.chase, q.Type)
	if err != nil {
		return nil, fmt.Errorf("follow alias of %s: %w", q.Name, err)
	}
	if r != nil && r.Rcode != wire.RcodeRefused {
		m.Rcode, m.Ns = r.Rcode, r.Ns // of the last name in the chain, RFC 6604
		m.Answer = plugin.Join(m.Answer, r.Answer)
	}
	return m, nil
}

// Holds implements plugin.Holder.
func (f *file) Holds(name string) bool { return f.zones.Match(name) != "" && !f.fall.Passes(name) }

// Transfer implements plugin.Transferer.
func (f *file) Transfer(origin string) ([]wire.RR, bool) {
	p := f.pointer(origin)
	if p == nil || p.Load() == nil {
		return nil, false
	}
	return p.Load().records(), true
}

// Skips implements plugin.Bystander.
func (f *file) Skips(name string, _ uint16) bool { return f.zones.Match(name) == "" }
