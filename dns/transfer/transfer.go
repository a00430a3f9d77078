// Package transfer lets other servers copy zones (RFC 5936) and tells them of
// changes (RFC 1996).
package transfer

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// transfer is one directive.
type transfer struct {
	zones   plugin.Zones
	anybody bool
	allowed []netip.Prefix
	notify  []netip.AddrPort
	source  netip.Addr

	log     *slog.Logger
	plugins []plugin.Named
	serials map[string]uint32 // by zone, told last; the runner's
}

const (
	lookEvery   = 5 * time.Second
	notifyTries = 3
	notifyWait  = 2 * time.Second
)

// Parse reads `transfer [ZONE...] { to ADDRESS...; source ADDRESS }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	t := &transfer{zones: s.ZoneArgs(d, d.Args), serials: make(map[string]uint32)}
	for _, o := range d.Block {
		switch o.Name {
		case "to":
			s.Args(o, 1, -1, "to ADDRESS...|*")
			for _, a := range o.Args {
				t.to(s, o, a)
			}
		case "source":
			if s.Args(o, 1, 1, "source ADDRESS") {
				a, err := netip.ParseAddr(o.Args[0])
				if err != nil {
					s.Errorf(o.Pos, "transfer: source %q is not an address", o.Args[0])
				}
				t.source = a
			}
		default:
			s.Unknown(d, o, "to", "source")
		}
	}
	if !t.anybody && len(t.allowed) == 0 {
		s.Errorf(d.Pos, "transfer: nobody may copy the zones, write `transfer { to ADDRESS }`")
	}
	return t
}

func (t *transfer) to(s *plugin.Setup, o config.Directive, text string) {
	if text == "*" {
		t.anybody = true
		return
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		a := ap.Addr().Unmap()
		t.allowed = append(t.allowed, netip.PrefixFrom(a, a.BitLen()))
		t.notify = append(t.notify, netip.AddrPortFrom(a, ap.Port()))
		return
	}
	if p, ok := s.Prefix(o, text); ok {
		t.allowed = append(t.allowed, p)
		if p.IsSingleIP() {
			t.notify = append(t.notify, netip.AddrPortFrom(p.Addr(), 53))
		}
	}
}

// Attach implements plugin.Attacher.
func (t *transfer) Attach(e plugin.Env) { t.log, t.plugins = e.Logger, e.Plugins }

// content returns the records of a zone, the SOA first.
func (t *transfer) content(zone string) []wire.RR {
	for _, p := range t.plugins {
		if from, ok := p.Plugin.(plugin.Transferer); ok {
			if rrs, ok := from.Transfer(zone); ok && len(rrs) > 0 {
				return rrs
			}
		}
	}
	return nil
}

// Serve answers AXFR and IXFR. The answer may be larger than a message; the
// server splits it.
func (t *transfer) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Type != wire.TypeAXFR && q.Type != wire.TypeIXFR || !slices.Contains(t.zones, q.Name) {
		return next(ctx, q)
	}
	q.Own, q.Source = true, "transfer"
	from := q.Client.Addr().Unmap().WithZone("")
	if !t.anybody && !slices.ContainsFunc(t.allowed, func(p netip.Prefix) bool { return p.Contains(from) }) {
		q.Explain(wire.ExtendedErrorCodeProhibited, "")
		return plugin.Refusal(wire.RcodeRefused), nil
	}
	rrs := t.content(q.Name)
	if rrs == nil {
		return plugin.Refusal(wire.RcodeNotAuth), nil
	}
	m := &wire.Msg{MsgHdr: wire.MsgHdr{Authoritative: true}}
	soa := rrs[0].(*wire.SOA)
	switch {
	case q.Type == wire.TypeIXFR && (!q.TCP || serialOf(q.Msg) == soa.Serial):
		m.Answer = rrs[:1] // the client has it all, or must come over TCP: RFC 1995 sections 2 and 4
	case !q.TCP:
		return plugin.Refusal(wire.RcodeRefused), nil
	default:
		m.Answer = append(slices.Clone(rrs), soa)
		t.log.Info("zone copied", "zone", q.Name, "serial", soa.Serial, "records", len(rrs), "client", q.Client)
	}
	return m, nil
}

// serialOf is the serial that a client of IXFR has.
func serialOf(m *wire.Msg) uint32 {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*wire.SOA); ok {
			return soa.Serial
		}
	}
	return 0
}

// Run tells the servers in `to` when a zone has a new serial.
func (t *transfer) Run(ctx context.Context) {
	if len(t.notify) == 0 {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		t.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (t *transfer) look(ctx context.Context) {
	for _, zone := range t.zones {
		rrs := t.content(zone)
		if rrs == nil {
			continue
		}
		serial := rrs[0].(*wire.SOA).Serial
		if old, told := t.serials[zone]; told && old == serial {
			continue
		}
		t.serials[zone] = serial
		for _, to := range t.notify {
			if err := t.tell(ctx, zone, to); err != nil && ctx.Err() == nil {
				t.log.Warn("server not told of the changed zone", "zone", zone, "to", to, "err", err)
			}
		}
	}
}

// tell sends a NOTIFY and waits for its acknowledgement.
func (t *transfer) tell(ctx context.Context, zone string, to netip.AddrPort) error {
	m := new(wire.Msg).SetNotify(zone)
	d := net.Dialer{}
	if t.source.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.source, 0))
	}
	c := &wire.Client{Dialer: &d, Timeout: notifyWait}
	var last error
	for range notifyTries {
		r, _, err := c.ExchangeContext(ctx, m, to.String())
		if err == nil && r.Rcode == wire.RcodeSuccess {
			return nil
		}
		if last = err; err == nil {
			last = fmt.Errorf("it answers %s", wire.RcodeToString[r.Rcode])
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return last
}

// Skips implements plugin.Bystander.
func (t *transfer) Skips(_ string, qtype uint16) bool {
	return qtype != wire.TypeAXFR && qtype != wire.TypeIXFR
}
