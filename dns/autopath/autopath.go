// Package autopath walks a client's search path on the server: the first
// question of the path gets the answer that the whole path would have found.
package autopath

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// autopath is one directive. Its answers are put together of answers that the
// cache may keep each by itself; the whole is never kept, as it belongs to
// one client's path.
type autopath struct {
	zones plugin.Zones
	file  string // search path of everybody; empty: ask
	ask   string // the plugin that knows the client's path

	log      *slog.Logger
	searcher plugin.Searcher
	search   atomic.Pointer[[]string]
	stamp    time.Time
}

// reread is how often the file is looked at.
const reread = 5 * time.Second

// Parse reads `autopath [ZONE...] RESOLV-CONF|@PLUGIN`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.NoBlock(d)
	if !s.Args(d, 1, -1, "autopath [ZONE...] RESOLV-CONF|@cluster") {
		return nil
	}
	a := new(autopath)
	last := len(d.Args) - 1
	a.zones = s.ZoneArgs(d, d.Args[:last])
	if name, ok := strings.CutPrefix(d.Args[last], "@"); ok {
		if name == "kubernetes" {
			name = "cluster"
		}
		if name != "cluster" {
			s.Errorf(d.Pos, "autopath: @%s knows no search paths, write @cluster", name)
		}
		a.ask = name
	} else {
		a.file = s.Path(d.Args[last])
	}
	return a
}

// Attach implements plugin.Attacher.
func (a *autopath) Attach(e plugin.Env) {
	a.log = e.Logger
	for _, p := range e.Plugins {
		if s, ok := p.Plugin.(plugin.Searcher); ok && p.Name == a.ask {
			a.searcher = s
		}
	}
	if a.file != "" {
		a.refresh()
	} else if a.searcher == nil {
		e.Note("autopath in "+e.Block, errNoSearcher(a.ask), "write the directive `"+a.ask+"` into the same block")
	}
}

type errNoSearcher string

func (e errNoSearcher) Error() string {
	return "there is no " + string(e) + " in the block to know search paths"
}

// Run implements plugin.Runner.
func (a *autopath) Run(ctx context.Context) {
	if a.file == "" {
		return
	}
	t := time.NewTicker(reread)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			a.refresh()
		}
	}
}

// refresh reads the search lines of resolv.conf(5): the last one counts.
func (a *autopath) refresh() {
	info, err := os.Stat(a.file)
	if err == nil && info.ModTime().Equal(a.stamp) {
		return
	}
	var text []byte
	if err == nil {
		a.stamp = info.ModTime()
		text, err = os.ReadFile(a.file)
	}
	if err != nil {
		if a.search.Load() == nil {
			a.log.Warn("search path cannot be read, names are not completed", "file", a.file, "err", err)
			a.search.Store(&[]string{})
		}
		return
	}
	var search []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			search = search[:0]
			for _, s := range f[1:] {
				if n := wire.CanonicalName(s); n != "." {
					search = append(search, n)
				}
			}
		}
	}
	a.search.Store(&search)
}

func (a *autopath) path(q *plugin.Query) []string {
	if a.searcher != nil {
		return a.searcher.Search(q.Client.Addr().Unmap())
	}
	if p := a.search.Load(); p != nil {
		return *p
	}
	return nil
}

func (a *autopath) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if a.zones.Match(q.Name) == "" || q.Type != wire.TypeA && q.Type != wire.TypeAAAA || q.Depth > 0 {
		return next(ctx, q)
	}
	search := a.path(q)
	if len(search) == 0 || !plugin.InZone(search[0], q.Name) || q.Name == search[0] {
		return next(ctx, q)
	}
	base := strings.TrimSuffix(q.Name, search[0])
	first, err := next(ctx, q)
	if err != nil || first == nil || first.Rcode != wire.RcodeNameError {
		return first, err
	}
	for _, s := range append(search[1:len(search):len(search)], ".") {
		name := base + s
		if s == "." {
			name = base
		}
		if _, ok := wire.IsDomainName(name); !ok {
			continue
		}
		r, err := q.Lookup(ctx, name, q.Type)
		if err != nil || r == nil {
			continue
		}
		q.Record(plugin.Step{Plugin: "autopath", Decision: "tried", Name: name, Type: q.Type, Rcode: wire.RcodeToString[r.Rcode]})
		// No data is an answer too: a name that exists ends the search.
		if r.Rcode != wire.RcodeSuccess {
			continue
		}
		q.Own, q.Source = true, "autopath"
		m := &wire.Msg{Ns: r.Ns}
		m.Answer = append([]wire.RR{&wire.CNAME{
			Hdr:    wire.RR_Header{Name: q.Name, Rrtype: wire.TypeCNAME, Class: wire.ClassINET, Ttl: leastTTL(r.Answer)},
			Target: name,
		}}, r.Answer...)
		return m, nil
	}
	return first, nil
}

func leastTTL(rrs []wire.RR) uint32 {
	ttl := uint32(3600)
	for _, rr := range rrs {
		ttl = min(ttl, rr.Header().Ttl)
	}
	return ttl
}

// Skips implements plugin.Bystander.
func (a *autopath) Skips(name string, qtype uint16) bool {
	return a.zones.Match(name) == "" || qtype != wire.TypeA && qtype != wire.TypeAAAA
}
