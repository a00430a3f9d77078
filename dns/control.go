package dns

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"nodenet/config"
	"nodenet/state"
)

// defaultTick is how often the control loop looks at what announces no change:
// reload, retries, rates.
const defaultTick = time.Second

// retry is the back-off of something that could not be opened.
type retry struct {
	at    time.Time
	pause time.Duration
}

// Run serves until ctx ends; then it returns nil, after the lameduck period
// of `health`. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	// Queries and runners outlive ctx by the lameduck period.
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.background = background
	for _, b := range s.live.Load().blocks {
		b.start(background)
	}
	s.lastLoad, s.sampled, s.began = time.Now(), time.Now(), time.Now()
	s.running.Store(true)
	t := time.NewTicker(s.tick)
	defer t.Stop()
	for ctx.Err() == nil {
		s.reload(time.Now())
		s.derive()
		s.publish(s.live.Load().blocks)
		if s.mayListen(time.Now()) {
			s.listenSecure(time.Now())
			s.listen(time.Now())
		}
		s.dropRest(time.Now())
		s.serveHTTP(time.Now())
		s.sample(time.Now())
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-t.C:
		}
	}
	s.drain()
	s.running.Store(false)
	cancel()
	for _, l := range s.sockets {
		if len(l.kept) > 0 && l.udp != nil {
			l.udp.makeRoom()
		}
		s.closing.Go(l.close)
	}
	for _, l := range s.secured {
		s.closing.Go(l.close)
	}
	s.closing.Wait()
	s.pool.stop()
	for _, h := range s.httpd {
		h.close()
	}
	for _, b := range s.live.Load().blocks {
		b.stop()
	}
	return nil
}

// drain keeps serving, as unhealthy, for the longest lameduck period.
func (s *Server) drain() {
	var d time.Duration
	for _, b := range s.live.Load().blocks {
		d = max(d, b.endpoint.lameduck)
	}
	s.draining.Store(true)
	if d > 0 {
		s.log.Info("dns shuts down", "lameduck", d)
		time.Sleep(d)
	}
}

// publish makes blocks the ones to answer from.
func (s *Server) publish(blocks []*block) {
	for _, b := range blocks {
		b.bind.report(s.note)
	}
	l := buildLive(blocks, *s.addrs.Load())
	for _, t := range l.tables {
		t.limited(blocks, s.limiter)
	}
	for _, t := range l.sites {
		t.limited(blocks, s.limiter)
	}
	s.live.Store(l)
}

// derivePace bounds the share of a core that building zones takes when the
// data changes all the time: after a build of duration d, the next one waits
// for derivePace times d. In a small cluster that is well below a millisecond.
const derivePace = 4

// derive builds the zones when there is new data or a new address of the
// name server itself.
func (s *Server) derive() {
	v := s.pending.Load()
	if v == nil {
		return
	}
	ns := firstOfEach(*s.addrs.Load())
	fresh := s.applied.Load() != v
	begin := time.Now()
	if wait := s.deriveAt.Sub(begin); fresh && wait > 0 {
		time.AfterFunc(wait, s.poke)
		return
	}
	old := s.applied.Load()
	for _, b := range s.live.Load().blocks {
		deriveBlock(b, old, v, ns, fresh)
	}
	if fresh {
		s.clients.Store(clientsOf(s.clients.Load(), v))
		s.noteSaved(v)
	}
	s.applied.Store(v)
	if fresh {
		s.change()
	}
	if fresh && old != nil {
		s.deriveAt = time.Now().Add(derivePace * time.Since(begin))
	}
}

// deriveBlock derives the zones of one block from a view; old is the one that
// they were derived from. Without fresh data it derives only those that miss
// or have another address of the name server.
func deriveBlock(b *block, old, v *state.View, ns []netip.Addr, fresh bool) {
	for _, p := range b.plugins {
		c, ok := p.Plugin.(*cluster)
		if !ok {
			continue
		}
		if z := c.zone.Load(); fresh || z == nil || !slices.Equal(z.opt.ns, ns) {
			c.derive(old, v, ns)
		}
	}
}

// firstOfEach returns the first IPv4 and the first IPv6 address.
func firstOfEach(addrs []netip.Addr) (out []netip.Addr) {
	for _, want4 := range []bool{true, false} {
		if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == want4 }); i >= 0 {
			out = append(out, addrs[i])
		}
	}
	return out
}

// listen opens and closes just the sockets that differ from what blocks and
// addresses ask for. What cannot be opened is reported and tried again.
func (s *Server) listen(now time.Time) {
	want := s.live.Load().tables
	for ap, l := range s.sockets {
		switch {
		case want[ap] == nil:
			s.unkeep(l.kept)
			s.closing.Go(l.close)
			delete(s.sockets, ap)
			s.log.Info("dns socket closed", "addr", ap)
		case l.ended.Load(): // by an error of the socket
			s.unkeep(l.kept)
			l.close()
			delete(s.sockets, ap)
			s.log.Warn("dns socket failed, it is opened again", "addr", ap)
		}
	}
	for ap := range want {
		key := "listen " + ap.String()
		if s.sockets[ap] != nil || now.Before(s.backoff[key].at) {
			continue
		}
		l, err := s.open(s.background, ap)
		if err != nil {
			s.postpone(key, now)
			s.note(key, err, fixForListen(ap))
			continue
		}
		s.sockets[ap] = l
		s.settle(key)
		s.log.Info("dns socket open", "addr", ap)
	}
	s.forget("listen ", func(key string) bool {
		if strings.Contains(key[len("listen "):], " ") {
			return true // see listenSecure
		}
		ap, err := netip.ParseAddrPort(key[len("listen "):])
		return err == nil && want[ap] != nil
	})
	open := slices.Collect(maps.Keys(s.sockets))
	for st := range s.secured {
		open = append(open, st.addr)
	}
	slices.SortFunc(open, netip.AddrPort.Compare)
	if addrs := *s.addrs.Load(); len(addrs) > 0 { // the resolver's address first
		slices.SortStableFunc(open, func(a, b netip.AddrPort) int {
			return slices.Index(addrs, a.Addr()) - slices.Index(addrs, b.Addr())
		})
	}
	s.mu.Lock()
	s.listening = open
	s.mu.Unlock()
}

func fixForListen(ap netip.AddrPort) string {
	return "find what else uses the port with `ss -lntup sport = :" + portString(ap) + "` and stop it, or give the block another address with `bind`"
}

// postpone doubles the pause before the next attempt, one tick to 10 s.
func (s *Server) postpone(key string, now time.Time) {
	pause := min(max(2*s.backoff[key].pause, s.tick), 10*time.Second)
	s.backoff[key] = retry{at: now.Add(pause), pause: pause}
}

func (s *Server) settle(key string) {
	delete(s.backoff, key)
	s.note(key, nil, "")
}

// forget drops the problems of what is no longer wanted.
func (s *Server) forget(prefix string, wanted func(key string) bool) {
	for key := range s.backoff {
		if len(key) > len(prefix) && key[:len(prefix)] == prefix && !wanted(key) {
			s.settle(key)
		}
	}
}

// reload reads the server blocks again when a `reload` is due. Blocks that
// did not change go on with their caches and upstreams; sockets that stay
// are not touched. A faulty file changes nothing.
func (s *Server) reload(now time.Time) {
	every := time.Duration(0)
	for _, b := range s.live.Load().blocks {
		if b.reload.every > 0 && (every == 0 || b.reload.every < every) {
			every = b.reload.every
		}
	}
	if every == 0 || s.opt.Load == nil || now.Sub(s.lastLoad) < every {
		return
	}
	s.lastLoad = now
	const fix = "correct the file; the server goes on with what it had"
	servers, err := s.opt.Load()
	if err != nil {
		s.note("reload", err, fix)
		return
	}
	blocks, _, err := parseServers(servers)
	s.note("reload", err, fix)
	if err != nil {
		return
	}
	s.replace(blocks)
}

// replace makes blocks the server's, keeping old ones that are equal.
func (s *Server) replace(blocks []*block) {
	old := s.live.Load().blocks
	kept := make(map[*block]bool)
	var fresh []*block
	for i, b := range blocks {
		j := slices.IndexFunc(old, func(o *block) bool {
			return !kept[o] && reflect.DeepEqual(withoutPos(o.server), withoutPos(b.server))
		})
		if j >= 0 {
			kept[old[j]] = true
			blocks[i] = old[j]
			continue
		}
		fresh = append(fresh, b)
	}
	if len(fresh) == 0 && len(blocks) == len(old) {
		return
	}
	for _, b := range fresh {
		b.attach(s)
		if v := s.applied.Load(); v != nil {
			deriveBlock(b, nil, v, firstOfEach(*s.addrs.Load()), true)
		}
		b.start(s.background)
	}
	for _, b := range old {
		if !kept[b] {
			b.bind.forget(s.note)
		}
	}
	s.publish(blocks)
	for _, b := range old {
		if !kept[b] {
			b.stop()
		}
	}
	s.change()
	s.metrics.reloads.Inc()
	s.log.Info("dns server blocks reloaded", "changed", len(fresh), "kept", len(kept))
}

// withoutPos is a server block without its places in the file.
func withoutPos(srv config.Server) config.Server {
	srv.Pos = config.Pos{}
	srv.Directives = directivesWithoutPos(srv.Directives)
	return srv
}

func directivesWithoutPos(ds []config.Directive) []config.Directive {
	out := make([]config.Directive, len(ds))
	for i, d := range ds {
		out[i] = config.Directive{Name: d.Name, Args: append([]string{}, d.Args...), Block: directivesWithoutPos(d.Block)}
	}
	return out
}

// sample updates the query rate about every five seconds.
func (s *Server) sample(now time.Time) {
	d := now.Sub(s.sampled)
	if d < 5*time.Second {
		return
	}
	n := s.metrics.queries.Load()
	s.mu.Lock()
	s.rate = float64(n-s.sampledN) / d.Seconds()
	s.mu.Unlock()
	s.sampled, s.sampledN = now, n
}
