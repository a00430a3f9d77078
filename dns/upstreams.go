package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

// run keeps the list of upstreams true and probes those that are down.
func (f *forward) Run(ctx context.Context) {
	defer func() {
		f.probes.Wait()
		for _, u := range *f.upstreams.Load() {
			u.retire()
		}
		f.srv.note(f.problemKey(), nil, "")
		f.srv.note(f.problemKey()+" tls", nil, "")
	}()
	tested := make(map[*upstream]time.Time) // for loops
	refreshed := time.Time{}
	for {
		if time.Since(refreshed) >= refreshEvery {
			f.refresh()
			refreshed = time.Now()
		}
		pause := refreshEvery
		ups := *f.upstreams.Load()
		for _, u := range ups {
			u.tidy()
			if u.down.Load() || u.rtt.Load() == 0 && tested[u].IsZero() {
				f.probe(ctx, u)
			}
			if u.down.Load() {
				pause = f.every
			}
			if at := tested[u]; at.IsZero() || u.looping.Load() && time.Since(at) >= loopRetest {
				tested[u] = time.Now()
				f.testLoop(ctx, u)
			}
		}
		for u := range tested {
			if !slices.Contains(ups, u) {
				delete(tested, u)
			}
		}
		f.report(ups)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-f.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (f *forward) problemKey() string { return "forward " + f.from + " in " + f.block.label() }

// report tells Status what is wrong with the upstreams.
func (f *forward) report(ups []*upstream) {
	healthy, looping := 0, ""
	for _, u := range ups {
		switch {
		case u.looping.Load():
			looping = u.String()
		case !u.down.Load():
			healthy++
		}
	}
	switch {
	case looping != "":
		f.srv.note(f.problemKey(), fmt.Errorf("upstream %s sends queries back to this node, it is not used", looping),
			"forward to a server outside of this node")
	case len(ups) == 0:
		f.srv.note(f.problemKey(), errors.New("no upstream"), "name a server outside of this node in "+f.written())
	case healthy == 0:
		f.srv.note(f.problemKey(), errors.New("no upstream answers"), "check that they can be reached: "+f.written())
	default:
		f.srv.note(f.problemKey(), nil, "")
	}
}

// written lists the targets as in the file.
func (f *forward) written() string {
	var out []string
	for _, t := range f.to {
		if t.file != "" {
			out = append(out, t.file)
		} else {
			out = append(out, (&upstream{addr: t.addr, secure: t.secure}).String())
		}
	}
	return strings.Join(out, " ")
}

// probe asks a trivial question in the background; any answer will do.
func (f *forward) probe(ctx context.Context, u *upstream) {
	if !u.probing.CompareAndSwap(false, true) {
		return
	}
	f.probes.Go(func() {
		defer u.probing.Store(false)
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		m := new(wire.Msg)
		m.SetQuestion(f.probeName, wire.TypeNS)
		m.RecursionDesired = !f.probeNoRec
		_, err := u.exchange(ctx, m, f.forceTCP)
		f.judge(ctx, u, err)
	})
}

// judge counts failures in a row and puts an upstream out or back.
func (f *forward) judge(ctx context.Context, u *upstream, err error) {
	if err == nil {
		u.fails.Store(0)
		if u.down.CompareAndSwap(true, false) {
			f.srv.log.Info("dns upstream is back", "upstream", u.String())
			f.poke()
		}
		return
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return // our own doing
	}
	if n := u.fails.Add(1); f.maxFails > 0 && n >= f.maxFails && u.down.CompareAndSwap(false, true) {
		f.srv.log.Warn("dns upstream does not answer", "upstream", u.String(), "err", err)
		f.poke()
	}
}

func (f *forward) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// refresh makes the list of upstreams from the targets, keeping those that
// it has.
func (f *forward) refresh() {
	var old, list []*upstream
	if p := f.upstreams.Load(); p != nil {
		old = *p
	}
	same := func(t target) func(*upstream) bool {
		return func(u *upstream) bool { return u.addr == t.addr && u.secure == t.secure && u.name == t.name }
	}
	for _, t := range f.resolveTargets() {
		if f.isOwn(t.addr) || slices.ContainsFunc(list, same(t)) {
			continue
		}
		if i := slices.IndexFunc(old, same(t)); i >= 0 {
			list = append(list, old[i])
			continue
		}
		list = append(list, &upstream{addr: t.addr, expire: f.expire, secure: t.secure, name: t.name, dial: &f.dial})
	}
	f.upstreams.Store(&list)
	for _, u := range old {
		if !slices.Contains(list, u) {
			u.retire()
		}
	}
}

// isOwn reports whether an upstream is this block itself.
func (f *forward) isOwn(addr netip.AddrPort) bool { return f.srv.isOwn(f.block, addr, f.from) }

// isOwn reports whether an address is a socket of this server whose queries
// for a zone would come to the block again.
func (s *Server) isOwn(b *block, addr netip.AddrPort, from string) bool {
	l := s.live.Load()
	if l == nil || l.tables[addr] == nil {
		return false
	}
	return slices.ContainsFunc(b.zones, func(zone string) bool {
		if wire.IsSubDomain(zone, from) {
			zone = from // forwards a part of the zone
		}
		return l.tables[addr].match(zone) == b
	})
}
