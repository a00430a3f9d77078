package announce

import (
	"fmt"
	"net/netip"
	"time"

	"nodenet/state"
)

// phase is where this node is with one address.
type phase uint8

const (
	idle      phase = iota // another node's, or nobody's
	waiting                // ours, but the node does not serve yet or has no link to the LAN
	probing                // ours, unless somebody answers
	held                   // ours: asks are answered
	yielding               // ours by our view, but another node has it and its claim is better
	contested              // ours, but a host that is no node has it
)

func (p phase) String() string {
	return [...]string{"idle", "waiting", "probing", "announced", "yielded", "in use by a stranger"}[min(p, contested)]
}

const (
	probeEvery   = 100 * time.Millisecond // before a claim
	probeTime    = 300 * time.Millisecond // without an answer for this long, the address is free
	probeUnknown = 3 * time.Second        // the same while a better node is not heard of yet
	watchEvery   = time.Second            // while another has the address
	watchTime    = 2500 * time.Millisecond
	strangeEvery = 10 * time.Second // while a stranger has it
	strangeTime  = 25 * time.Second
	checkEvery   = 5 * time.Second  // held, while a better node is dead: the LAN may have healed before gossip
	repeatEvery  = 60 * time.Second // announcements after the first ones
	defendEvery  = time.Second      // answers to a claim of another, at most
	defendSlow   = 10 * time.Second // the same, once it goes on (RFC 5227 §2.4)
	defendTimes  = 3                // claims of a living node that we answer before we give in
	defendForget = 15 * time.Second
	conflictShow = 2 * time.Minute // for how long a stranger's claim is shown
)

// burst is when announcements are sent after an address was taken, or after
// something that may have led others astray.
var burst = []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second}

// claim is this node's part in one address. It is pure: time comes in, and
// what is to be sent is asked of out. Not safe for concurrent use.
//
//	idle ──elected──► waiting ──ready, link──► probing ──silence──► held
//	                                             │                   │ ▲
//	                                  an answer  ▼        a claim    ▼ │ silence
//	                                        contested (stranger), yielding (node)
//
// Not being elected any more leads to idle from everywhere, at once and
// without a word: the new owner announces itself.
type claim struct {
	addr netip.Addr
	plan *Address
	self state.NodeID
	out  sender

	phase    phase
	since    time.Time
	from     time.Time // of the burst
	sent     int       // of the burst, then 1 a repetition
	next     time.Time // announcement
	probeAt  time.Time
	freeAt   time.Time // when silence will mean that the address is free
	to       state.NodeID
	rival    MAC       // the last stranger that claimed it
	rivalAt  time.Time // zero: none
	defended int       // answers to claims lately
	defendAt time.Time // the last one
}

// sender is what a claim does to the LAN.
type sender interface {
	probe(netip.Addr)
	announce(netip.Addr)
	note(c *claim, what string) // a transition, for the log
}

func (c *claim) enter(p phase, now time.Time, why string) {
	if c.phase == p {
		return
	}
	c.phase, c.since = p, now
	c.out.note(c, why)
}

// update takes over the newest plan; nil: the address is not announced any
// more. able says that the node can answer: it serves, and its link is up. A
// kept address is one that the kernel went on answering for while this daemon
// was away: it is ours without probing.
func (c *claim) update(a *Address, able, kept bool, now time.Time) {
	was := c.plan
	c.plan = a
	switch {
	case a == nil || a.Owner != c.self:
		c.enter(idle, now, "not elected")
		c.to, c.defended = "", 0
	case !able:
		c.enter(waiting, now, "not ready, or no link to its LAN")
	case (c.phase == idle || c.phase == waiting) && kept:
		c.hold(now, "kept over a restart")
	case c.phase == idle || c.phase == waiting:
		c.probeAt, c.freeAt = now, now.Add(probeTime)
		if c.betterUnknown() {
			c.freeAt = now.Add(probeUnknown)
		}
		c.enter(probing, now, "elected")
	case c.phase == held && was != nil && healed(was, a):
		c.again(now)
	}
}

// healed reports whether a node is back that may have had the address while it
// could not hear of us.
func healed(was, is *Address) bool {
	for _, x := range is.Order {
		if x.State != state.Alive {
			continue
		}
		if i := was.rank(x.Node); i >= 0 && (was.Order[i].State == state.Dead || was.Order[i].State == state.Unknown) {
			return true
		}
	}
	return false
}

// betterUnknown reports whether a node of which nothing was heard yet comes
// before us in the order.
func (c *claim) betterUnknown() bool {
	for _, x := range c.plan.Order[:max(0, c.plan.rank(c.self))] {
		if x.State == state.Unknown {
			return true
		}
	}
	return false
}

// better reports whether a node comes before us in the order.
func (c *claim) better(id state.NodeID) bool {
	r := c.plan.rank(id)
	return r >= 0 && r < c.plan.rank(c.self)
}

func (c *claim) living(id state.NodeID) bool {
	r := c.plan.rank(id)
	return r >= 0 && (c.plan.Order[r].State == state.Alive || c.plan.Order[r].State == state.Suspect)
}

// missing reports whether a node before us in the order is not alive: it may
// be so only for us.
func (c *claim) missing() bool {
	for _, x := range c.plan.Order[:max(0, c.plan.rank(c.self))] {
		if !c.living(x.Node) {
			return true
		}
	}
	return false
}

func (c *claim) hold(now time.Time, why string) {
	c.rivalAt = time.Time{}
	c.enter(held, now, why)
	c.to = ""
	c.probeAt = now.Add(checkEvery)
	c.again(now)
}

// again announces from the start: others may believe something else.
func (c *claim) again(now time.Time) {
	if c.phase != held {
		return
	}
	c.from, c.sent, c.next = now, 0, now
}

// step does what is due, and returns when to be called next; zero: not before
// something happens.
func (c *claim) step(now time.Time) time.Time {
	switch c.phase {
	case probing:
		if !now.Before(c.freeAt) {
			c.hold(now, "nobody else has it")
			return c.step(now)
		}
		c.ask(now, probeEvery)
		return earlier(c.probeAt, c.freeAt)
	case held:
		for !now.Before(c.next) {
			c.out.announce(c.addr)
			if c.sent++; c.sent < len(burst) {
				c.next = c.from.Add(burst[c.sent])
			} else {
				c.next = now.Add(repeatEvery)
			}
		}
		if !c.missing() {
			return c.next
		}
		c.ask(now, checkEvery)
		return earlier(c.next, c.probeAt)
	case yielding, contested:
		every := watchEvery
		if c.phase == contested {
			every = strangeEvery
		}
		if !now.Before(c.freeAt) {
			c.hold(now, "the other host is silent")
			return c.step(now)
		}
		c.ask(now, every)
		return earlier(c.probeAt, c.freeAt)
	}
	return time.Time{}
}

func (c *claim) ask(now time.Time, every time.Duration) {
	if !now.Before(c.probeAt) {
		c.out.probe(c.addr)
		c.probeAt = now.Add(every)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// claimedBy is told that another host says to have the address: node by is, or
// for an empty by the stranger mac.
func (c *claim) claimedBy(by state.NodeID, mac MAC, now time.Time) {
	if c.phase == idle || c.phase == waiting {
		return
	}
	if by == "" {
		c.strange(mac, now)
		return
	}
	switch {
	case c.phase == yielding && by == c.to:
		c.freeAt = now.Add(watchTime)
	case !c.living(by) && c.better(by):
		// Our view does not know it alive, but it is, and the node that it
		// would be for everybody: it keeps the address (and it may not hear of
		// us either). When it does fall silent, its turn is over.
		c.yield(by, now, "a better node has it, which gossip does not reach")
	case c.phase != held:
	case now.Sub(c.defendAt) < c.pace():
	case c.living(by) && !c.better(by) && c.defended >= defendTimes:
		// It hears us, is well, and insists: its view has a reason to pass us
		// over (we flap) that ours cannot have.
		c.yield(by, now, "a living node insists on it")
	default:
		if now.Sub(c.defendAt) > defendForget {
			c.defended = 0
		}
		c.defended++
		c.defendAt = now
		c.out.announce(c.addr)
	}
}

// pace is the least time between two answers to claims.
func (c *claim) pace() time.Duration {
	if c.defended > defendTimes {
		return defendSlow
	}
	return defendEvery
}

func (c *claim) yield(to state.NodeID, now time.Time, why string) {
	c.to, c.defended = to, 0
	c.probeAt, c.freeAt = now.Add(watchEvery), now.Add(watchTime)
	c.enter(yielding, now, why)
}

// strange handles a claim by a host that is no node. An address that such a
// host had before us is left to it; one that we have is defended.
func (c *claim) strange(mac MAC, now time.Time) {
	fresh := c.rivalAt.IsZero() || c.rival != mac || now.Sub(c.rivalAt) > conflictShow
	c.rival, c.rivalAt = mac, now
	switch {
	case c.phase != held:
		c.probeAt, c.freeAt = now.Add(strangeEvery), now.Add(strangeTime)
		c.enter(contested, now, fmt.Sprintf("%s has it, which is no node", mac))
		return
	case fresh:
		c.out.note(c, fmt.Sprintf("%s claims it too, which is no node", mac))
	}
	if now.Sub(c.defendAt) >= c.pace() {
		if now.Sub(c.defendAt) > defendForget {
			c.defended = 0
		}
		c.defended++
		c.defendAt = now
		c.out.announce(c.addr)
	}
}
