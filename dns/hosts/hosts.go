// Package hosts answers from a hosts file and from lines in the server block.
package hosts

import (
	"bufio"
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// DefaultFile is read without an argument.
const DefaultFile = "/etc/hosts"

// negativeTTL is short, in seconds: files are edited.
const negativeTTL = 30

// hosts is one directive.
type hosts struct {
	file      string
	zones     plugin.Zones
	inline    []string
	ttl       uint32
	noReverse bool
	every     time.Duration // 0: read once
	fall      plugin.Fall

	log     *slog.Logger
	content atomic.Pointer[table]
	stamp   plugin.Stamp // of the file read last; the runner's, after Attach
}

// table is the immutable content.
type table struct {
	addrs map[string][]netip.Addr // by lower-case FQDN
	names map[string][]string     // by reverse name
}

// Parse reads `hosts [FILE [ZONE...]] { … }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	h := &hosts{file: DefaultFile, ttl: 3600, every: 5 * time.Second}
	args := d.Args
	if len(args) > 0 {
		h.file, args = s.Path(args[0]), args[1:]
	}
	h.zones = s.ZoneArgs(d, args)
	for _, o := range d.Block {
		if _, err := netip.ParseAddr(o.Name); err == nil {
			if s.Args(o, 1, -1, "ADDRESS NAME...") {
				h.inline = append(h.inline, o.Name+" "+strings.Join(o.Args, " "))
			}
			continue
		}
		switch o.Name {
		case "ttl":
			if s.Args(o, 1, 1, "ttl SECONDS") {
				if n, ok := s.Number(o, "value", o.Args[0], 1, 65535); ok {
					h.ttl = uint32(n)
				}
			}
		case "no_reverse":
			h.noReverse = true
		case "reload":
			if s.Args(o, 1, 1, "reload DURATION") {
				h.every, _ = s.Duration(o, "interval", o.Args[0], 0)
			}
		case "fallthrough":
			h.fall = s.Fall(o)
		default:
			s.Unknown(d, o, "ttl", "no_reverse", "reload", "fallthrough")
		}
	}
	return h
}

// Attach implements plugin.Attacher.
func (h *hosts) Attach(e plugin.Env) {
	h.log = e.Logger
	h.refresh()
}

// Run implements plugin.Runner.
func (h *hosts) Run(ctx context.Context) {
	if h.every <= 0 {
		return
	}
	t := time.NewTicker(h.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			h.refresh()
		}
	}
}

// refresh reads the file when it is another one than before. A file that
// cannot be read counts as empty.
func (h *hosts) refresh() {
	stamp := plugin.StampOf(h.file)
	if h.content.Load() != nil && stamp == h.stamp {
		return
	}
	h.stamp = stamp
	text, err := os.ReadFile(h.file)
	if err != nil {
		h.log.Warn("hosts file cannot be read, it counts as empty", "file", h.file, "err", err)
	}
	t := &table{addrs: make(map[string][]netip.Addr), names: make(map[string][]string)}
	t.read(text, h.noReverse)
	t.read([]byte(strings.Join(h.inline, "\n")), h.noReverse)
	h.content.Store(t)
}

// read adds the lines of a hosts file (hosts(5)); what it does not
// understand it skips, as libc does.
func (t *table) read(text []byte, noReverse bool) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		a = a.Unmap().WithZone("")
		for _, n := range f[1:] {
			name := wire.CanonicalName(n)
			if _, ok := wire.IsDomainName(name); !ok {
				continue
			}
			if !slices.Contains(t.addrs[name], a) {
				t.addrs[name] = append(t.addrs[name], a)
			}
			if rev := plugin.ReverseName(a); !noReverse && !slices.Contains(t.names[rev], name) {
				t.names[rev] = append(t.names[rev], name)
			}
		}
	}
}

// Keeps reports whether no unknown name of the zones goes on to the next
// directive.
func (h *hosts) Keeps(zones plugin.Zones) bool {
	return !h.fall.Set && slices.Equal(h.zones, zones)
}

// Skips implements plugin.Bystander.
func (h *hosts) Skips(name string, qtype uint16) bool {
	t := h.content.Load()
	if qtype == wire.TypePTR && len(t.names[name]) > 0 {
		return false
	}
	if h.zones.Match(name) == "" {
		return true
	}
	return len(t.addrs[name]) == 0 && (h.fall.Passes(name) || plugin.IsReverse(name))
}

// Serve implements plugin.Plugin.
func (h *hosts) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	t := h.content.Load()
	if q.Class != wire.ClassINET {
		return next(ctx, q)
	}
	if q.Type == wire.TypePTR && len(t.names[q.Name]) > 0 {
		m := h.reply(q)
		h.record(q)
		for _, n := range t.names[q.Name] {
			m.Answer = append(m.Answer, &wire.PTR{Hdr: wire.RR_Header{Name: q.Name, Rrtype: wire.TypePTR, Class: wire.ClassINET, Ttl: h.ttl}, Ptr: n})
		}
		return m, nil
	}
	// Reverse names that are not in the file are somebody else's business.
	zone := h.zones.Match(q.Name)
	addrs := t.addrs[q.Name]
	if zone == "" || len(addrs) == 0 && (plugin.IsReverse(q.Name) || h.fall.Passes(q.Name)) {
		return next(ctx, q)
	}
	m := h.reply(q)
	h.record(q)
	if len(addrs) == 0 {
		m.Rcode = wire.RcodeNameError
		m.Ns = []wire.RR{plugin.SOA(zone, negativeTTL, 1)}
		return m, nil
	}
	for _, a := range addrs {
		if rr := plugin.Address(q.Name, a, h.ttl); rr.Header().Rrtype == q.Type {
			m.Answer = append(m.Answer, rr)
		}
	}
	if len(m.Answer) == 0 {
		// The name is like a zone of its own: nothing is known around it.
		m.Ns = []wire.RR{plugin.SOA(q.Name, negativeTTL, 1)}
	}
	return m, nil
}

func (h *hosts) reply(q *plugin.Query) *wire.Msg {
	q.Own, q.Source = true, "hosts"
	return &wire.Msg{MsgHdr: wire.MsgHdr{Authoritative: true}}
}

// Holds implements plugin.Holder.
func (h *hosts) Holds(name string) bool {
	t := h.content.Load()
	return len(t.names[name]) > 0 || len(t.addrs[name]) > 0 && h.zones.Match(name) != ""
}
