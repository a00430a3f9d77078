// Package announce gives a service's external address a place on the LAN: of
// the nodes on that LAN one is elected, and answers ARP and neighbour discovery
// for the address as if it had it.
//
//	state.View ─► Elector ─► Plan ─► Speaker ─► claim, one an address ─► frames
//	                                    ▲                ▲
//	                 links, carrier ────┘                └── what others say
//
// No node has the address on an interface: the kernel answers nobody for it
// (unless proxy_arp is on), it is no source of anybody's traffic, and all nodes
// translate what arrives for it alike. So the only thing that moves is the
// answer to "who has it?", and moving it disturbs no flow on the old node.
//
// The election needs no messages: it is a pure function of the view. Where
// views differ (a partition, a node only now seen dead) what is heard on the
// LAN decides, see claim.
package announce

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nodenet/state"
)

// System is what a Speaker needs of the host: the real one is Host.
type System interface {
	// Links lists the Ethernet interfaces that are not ours.
	Links() ([]Link, error)
	// Watch sends when links or addresses may have changed, until ctx ends.
	Watch(ctx context.Context) (<-chan struct{}, error)
	// Open listens on a link.
	Open(Link) (Wire, error)
	// Keeper opens the kernel's own answers.
	Keeper() (Keeper, error)
}

// Keeper answers ARP while the daemon is away: a Responder.
type Keeper interface {
	// Kept lists what is answered for now.
	Kept() ([]netip.Addr, error)
	// Keep answers for exactly these addresses for a while from now.
	Keep([]Station) error
	Close() error
}

// Wire is one link's ARP and neighbour discovery traffic. Send may be called
// while Receive blocks; Close ends both.
type Wire interface {
	Send(Frame) error
	// Receive returns the next frame of another station. Its error means that
	// nothing will come any more.
	Receive() (Frame, error)
	// Listen says which addresses asks are wanted for: those for IPv6 go to
	// groups that the interface has to be a member of.
	Listen([]netip.Addr) error
	Close()
}

// Link is an Ethernet interface.
type Link struct {
	Index int
	Name  string
	MAC   MAC
	Up    bool           // with carrier
	Addrs []netip.Prefix // without link-local ones, sorted
	Local netip.Addr     // IPv6 link-local; zero: none
}

// Options configure a Speaker. The zero value announces nothing that it was
// not told to and works in the process's network namespace, with CAP_NET_RAW.
type Options struct {
	System System // nil: Host
	// Ready says whether this node can take what will arrive; nil: always.
	// Until it can, it claims nothing. It must not block.
	Ready func() bool
	// Changed is told the links, first at the start and then whenever one
	// changed; nil: nobody. It must not block.
	Changed  func([]Link)
	Logger   *slog.Logger
	Registry prometheus.Registerer // nil: no metrics
}

// Speaker answers for the addresses that the newest plan gives to this node.
// All methods are safe for concurrent use.
type Speaker struct {
	opt  Options
	log  *slog.Logger
	m    *metrics
	wake chan struct{}

	mu     sync.Mutex
	plan   *Plan
	rev    uint64
	status Status

	// Owned by Run.
	links  []Link
	ports  map[int]*port // by interface index
	claims map[netip.Addr]*voice
	heard  chan heard
	keep   keep
}

// voice is a claim with the link that it is made on.
type voice struct {
	claim
	s    *Speaker
	port *port
	why  string // it has none
}

// New returns a Speaker that does nothing until Run.
func New(o Options) (*Speaker, error) {
	s := &Speaker{opt: o, log: o.Logger, wake: make(chan struct{}, 1), ports: map[int]*port{}, claims: map[netip.Addr]*voice{}, heard: make(chan heard)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.opt.System == nil {
		s.opt.System = Host{}
	}
	if s.opt.Ready == nil {
		s.opt.Ready = func() bool { return true }
	}
	m, err := newMetrics(o.Registry)
	if err != nil {
		return nil, err
	}
	s.m = m
	return s, nil
}

// Set says who announces what from now on, as of a revision. It never blocks.
func (s *Speaker) Set(p *Plan, rev uint64) {
	s.mu.Lock()
	same := s.plan == p
	s.plan, s.rev, s.status.Desired = p, rev, rev
	if same && s.status.Applied > 0 {
		s.status.Applied = rev
	}
	s.mu.Unlock()
	if !same {
		s.poke()
	}
}

func (s *Speaker) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

const (
	lookEvery  = 200 * time.Millisecond // links, at most
	lookSlow   = 10 * time.Second       // links, at least
	readyEvery = 50 * time.Millisecond  // how often an address waits for Ready
)

// Run announces until ctx ends. It says no goodbye: a restart must not move an
// address, and who leaves is replaced by the election. Run may be called once.
func (s *Speaker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		for _, p := range s.ports {
			p.close()
		}
	}()
	changes, err := s.opt.System.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	s.keep.open(s)
	defer s.keep.close()
	s.look()
	looked := time.Now()
	tick := time.NewTicker(lookSlow)
	defer tick.Stop()
	look, due := newAlarm(), newAlarm()
	defer look.Stop()
	defer due.Stop()
	for {
		due.set(s.sync(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-due.C:
		case h := <-s.heard:
			if !s.hear(h, time.Now()) {
				continue // most of what is said on a LAN
			}
		case <-changes:
			look.set(looked.Add(lookEvery))
			continue
		case <-tick.C:
			look.set(time.Now())
			continue
		case <-look.C:
			s.look()
			looked = time.Now()
		}
	}
}

// alarm is a timer that is set to a time.
type alarm struct{ *time.Timer }

func newAlarm() alarm {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return alarm{t}
}

// set makes it ring at a time; a zero one is never.
func (a alarm) set(at time.Time) {
	if at.IsZero() {
		a.Stop()
		return
	}
	a.Reset(max(0, time.Until(at)))
}

// sync brings claims in line with plan and links, does what is due, and
// returns when it has to be called again; zero: not before something happens.
func (s *Speaker) sync(now time.Time) time.Time {
	s.mu.Lock()
	plan, rev := s.plan, s.rev
	s.mu.Unlock()
	if plan == nil {
		return time.Time{}
	}
	ready := s.opt.Ready()
	wanted := map[netip.Addr]bool{}
	used := map[int][]netip.Addr{}
	var next time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for i := range plan.Addrs {
		a := &plan.Addrs[i]
		wanted[a.Addr] = true
		v := s.claims[a.Addr]
		if v == nil {
			v = &voice{s: s, claim: claim{addr: a.Addr, self: plan.Self}}
			v.out = v
			s.claims[a.Addr] = v
		}
		mine := a.Owner == plan.Self
		v.why = ""
		was := v.port
		if v.port = nil; mine {
			s.connect(v)
			if v.port != nil {
				used[v.port.link.Index] = append(used[v.port.link.Index], a.Addr)
				if !ready && v.phase <= waiting {
					v.why = "this node does not serve yet"
					sooner(now.Add(readyEvery))
				}
			}
		}
		// What is held stays held when the node stops being ready: its rules
		// are as they were, and moving the address would help nobody.
		able := v.port != nil && (ready || v.phase > waiting)
		v.update(a, able, s.keep.had(a.Addr), now)
		if v.port != was {
			v.again(now) // another MAC, or the old one on a link that was gone
		}
		sooner(v.step(now))
	}
	for addr, v := range s.claims {
		if !wanted[addr] {
			v.update(nil, false, false, now)
			delete(s.claims, addr)
		}
	}
	for index, p := range s.ports {
		if addrs := used[index]; len(addrs) == 0 {
			p.leave()
			delete(s.ports, index)
		} else if err := p.wire.Listen(addrs); err != nil {
			s.log.Warn("asks for an address may not be heard", "link", p.link.Name, "err", err)
		}
	}
	sooner(s.keep.sync(ready, now))
	s.publish(plan, rev)
	return next
}

// connect gives a claim its link, opened.
func (s *Speaker) connect(v *voice) {
	link := linkFor(s.links, v.addr)
	if link == nil {
		v.port, v.why = nil, "no interface of this node is on its LAN"
		return
	}
	if !link.Up {
		v.port, v.why = nil, link.Name+" is down or has no carrier"
		return
	}
	p := s.ports[link.Index]
	if p == nil {
		w, err := s.opt.System.Open(*link)
		if err != nil {
			v.port, v.why = nil, fmt.Sprintf("listen on %s: %v", link.Name, err)
			return
		}
		p = &port{link: *link, wire: w, done: make(chan struct{})}
		s.ports[link.Index] = p
		go p.read(s.heard)
	}
	v.port = p
}

// linkFor returns the link whose prefix covers an address, the most specific
// one, one that is up before one that is not.
func linkFor(links []Link, addr netip.Addr) *Link {
	var best *Link
	bits := -1
	for i := range links {
		l := &links[i]
		for _, p := range l.Addrs {
			if covers(p, addr) && (best == nil || l.Up && !best.Up || l.Up == best.Up && p.Bits() > bits) {
				best, bits = l, p.Bits()
			}
		}
	}
	return best
}

// look lists the links anew. One that is another one now (its MAC, its state)
// is closed, and opened again where it is needed.
func (s *Speaker) look() {
	links, err := s.opt.System.Links()
	s.mu.Lock()
	s.status.Error = ""
	if err != nil {
		s.status.Error = err.Error()
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("links not listed", "err", err)
		return
	}
	if sameLinks(links, s.links) {
		return
	}
	byIndex := map[int]*Link{}
	for i := range links {
		byIndex[links[i].Index] = &links[i]
	}
	for index, p := range s.ports {
		l := byIndex[index]
		if l == nil || !l.Up || l.MAC != p.link.MAC || l.Name != p.link.Name {
			p.leave()
			delete(s.ports, index)
		} else {
			p.link = *l
		}
	}
	s.links = links
	if s.opt.Changed != nil {
		s.opt.Changed(links)
	}
}

// hear handles a frame: an ask for what is held, or a claim. It reports
// whether anything may have changed by it.
func (s *Speaker) hear(h heard, now time.Time) bool {
	if s.ports[h.port.link.Index] != h.port {
		return false // of a wire that is closed
	}
	if h.frame == nil {
		s.log.Warn("link not heard any more, opening it again", "link", h.port.link.Name, "err", h.err)
		h.port.leave()
		delete(s.ports, h.port.link.Index)
		return true
	}
	m, err := parse(h.frame)
	if err != nil || m.mac == h.port.link.MAC {
		return false
	}
	claimed := false
	if v := s.claims[m.claimed()]; v != nil && v.port == h.port {
		v.claimedBy(s.station(m.mac), m.mac, now)
		claimed = true
	}
	v := s.claims[m.addr]
	if m.tell || m.from == m.addr || v == nil || v.phase != held || v.port != h.port {
		return claimed
	}
	if err := h.port.wire.Send(answer(&m, h.port.link.MAC, h.port.link.Local)); err != nil {
		v.failed("answer", err)
		return claimed
	}
	s.m.replies.Inc()
	return claimed
}

func (s *Speaker) station(mac MAC) state.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan.Stations[mac]
}

func (v *voice) probe(addr netip.Addr) {
	if v.port == nil {
		return
	}
	if err := v.port.wire.Send(probe(addr, v.port.link.MAC)); err != nil {
		v.failed("probe", err)
	}
}

func (v *voice) announce(addr netip.Addr) {
	if v.port == nil {
		return
	}
	for _, f := range announcement(addr, v.port.link.MAC, v.port.link.Local) {
		if err := v.port.wire.Send(f); err != nil {
			v.failed("announce", err)
			return
		}
	}
	v.s.m.announcements.Inc()
}

func (v *voice) failed(what string, err error) {
	v.s.log.Debug("frame not sent", "what", what, "addr", v.addr, "link", v.port.link.Name, "err", err)
}

func (v *voice) note(c *claim, what string) {
	level := slog.LevelInfo
	switch {
	case c.phase == contested, c.phase == held && !c.rivalAt.IsZero():
		level = slog.LevelWarn
		v.s.m.conflicts.Inc()
	case c.phase == idle && c.plan == nil, c.phase == waiting, c.phase == probing:
		level = slog.LevelDebug
	case c.phase == held:
		v.s.m.takeovers.Inc()
	}
	args := []any{"addr", c.addr, "now", c.phase.String(), "why", what}
	if c.to != "" {
		args = append(args, "node", c.to.Short())
	}
	if v.port != nil {
		args = append(args, "link", v.port.link.Name)
	}
	v.s.log.Log(context.Background(), level, "external address", args...)
}
