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
func (f *forward) run(ctx context.Context) {
	defer func() {
		f.probes.Wait()
		for _, u := range *f.upstreams.Load() {
			u.retire()
		}
		f.srv.note(f.problemKey(), nil, "")
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
			looping = u.addr.String()
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
			out = append(out, t.addr.String())
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
		m.SetQuestion(".", wire.TypeNS)
		_, err := u.exchange(ctx, m, f.forceTCP)
		f.judge(ctx, u, err)
	})
}

// judge counts failures in a row and puts an upstream out or back.
func (f *forward) judge(ctx context.Context, u *upstream, err error) {
	if err == nil {
		u.fails.Store(0)
		if u.down.CompareAndSwap(true, false) {
			f.srv.log.Info("dns upstream is back", "upstream", u.addr)
			f.poke()
		}
		return
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return // our own doing
	}
	if n := u.fails.Add(1); f.maxFails > 0 && n >= f.maxFails && u.down.CompareAndSwap(false, true) {
		f.srv.log.Warn("dns upstream does not answer", "upstream", u.addr, "err", err)
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
	for _, addr := range f.resolveTargets() {
		if f.isOwn(addr) || slices.ContainsFunc(list, func(u *upstream) bool { return u.addr == addr }) {
			continue
		}
		i := slices.IndexFunc(old, func(u *upstream) bool { return u.addr == addr })
		if i >= 0 {
			list = append(list, old[i])
			continue
		}
		list = append(list, &upstream{addr: addr, expire: f.expire})
	}
	f.upstreams.Store(&list)
	for _, u := range old {
		if !slices.Contains(list, u) {
			u.retire()
		}
	}
}

// isOwn reports whether an upstream is a socket of this server whose queries
// would come to the same block again.
func (f *forward) isOwn(addr netip.AddrPort) bool {
	l := f.srv.live.Load()
	if l == nil || l.tables[addr] == nil {
		return false
	}
	return slices.ContainsFunc(f.block.zones, func(zone string) bool {
		if wire.IsSubDomain(zone, f.from) {
			zone = f.from // forwards a part of the zone
		}
		return l.tables[addr].match(zone) == f.block
	})
}
