package gossip

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/state"
)

// showRefusal is how long a refusal that does not repeat is shown.
const showRefusal = 5 * time.Minute

// Peer is another node as this one sees it.
type Peer struct {
	ID        state.NodeID
	Name      string
	State     state.Liveness
	Since     time.Time  // of State; zero: unknown
	Addr      netip.Addr // advertised; invalid: unknown
	Connected bool
	RTT       time.Duration // smoothed; 0: not measured
	LastSync  time.Time     // when we last held all that it had; zero: never
	LastHeard time.Time     // last frame on a stream; zero: never since start
	Version   string
	BytesIn   uint64
	BytesOut  uint64
	LastError string // why there is no connection; empty while there is one

	// Hold is how much longer services prefer other nodes, because this one
	// died and came back again and again; 0: it is not flapping.
	Hold time.Duration
	// Skew is how far its clock is ahead of ours, behind if negative; its
	// error is at most half a round trip. 0 without SkewKnown.
	Skew      time.Duration
	SkewKnown bool
}

// Peers returns the other nodes that are known of, also those that left,
// sorted by name.
func (g *Gossip) Peers() []Peer {
	by := map[state.NodeID]*Peer{}
	at := func(id state.NodeID) *Peer {
		if by[id] == nil {
			by[id] = &Peer{ID: id, Name: id.Short()}
		}
		return by[id]
	}
	g.mu.Lock()
	for id, l := range g.track.live {
		p := at(id)
		p.State, p.Since = l.State, l.Since
		if l.Flapping {
			p.Hold = g.track.hold(id, time.Now())
		}
	}
	for id, i := range g.peers {
		p := at(id)
		p.Name, p.Addr = or(i.name, p.Name), i.addr
		p.BytesIn, p.BytesOut, p.LastSync, p.LastHeard, p.LastError = i.in, i.out, i.lastSync, i.heard, i.lastError
		if l := g.links[id]; l != nil {
			p.Connected, p.RTT, p.LastError = true, time.Duration(l.rtt.Load()), ""
			p.BytesIn, p.BytesOut = p.BytesIn+l.in.Load(), p.BytesOut+l.sent.Load()
			p.LastHeard = l.heardAt()
			p.Skew, p.SkewKnown = l.clock.ahead()
		}
	}
	g.mu.Unlock()
	for r, n := range state.All[state.Node](g.store.Snapshot()) {
		p := at(r.ID.Owner)
		p.Name, p.Version = or(n.Name, p.Name), n.Version
		if n.Advertise.IsValid() {
			p.Addr = n.Advertise
		}
		if n.Left {
			p.State = state.Left
		}
	}
	delete(by, g.self)
	out := make([]Peer, 0, len(by))
	for _, p := range by {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Peer) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.ID), string(b.ID)))
	})
	return out
}

// Status is the state of the subsystem.
type Status struct {
	Desired, Applied uint64 // both the store's revision: gossip lags behind nothing
	OK               bool
	Detail           string // one line for people
	Error, Fix       string

	ClusterID, Cluster, RingID string
	Epoch                      uint64
	Synced                     bool
	Heard                      bool // some peer was heard since start; false: answers come from saved state
	Frozen                     bool // withdrawals are held back after a mass loss
	Connected, Known           int  // other nodes that have not left
	Refused                    []Refusal
	// Skew is how far most peers' clocks are ahead of ours (the median), behind
	// if negative: beyond a minute, OK is false. SkewOf is how many peers'
	// clocks are known.
	Skew   time.Duration
	SkewOf int
}

// Frozen reports whether withdrawals are held back.
func (g *Gossip) Frozen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.track.freeze != nil
}

// Status returns the state of the subsystem.
func (g *Gossip) Status() Status {
	sn := g.store.Snapshot()
	rev, gone := sn.Rev(), sn.Gone()
	s := Status{Desired: rev, Applied: rev, Epoch: g.store.Epoch(), OK: true}
	alive := 0
	var skews []time.Duration
	for _, p := range g.Peers() {
		if p.State == state.Left || gone.Node(p.ID) {
			continue
		}
		s.Known++
		if p.SkewKnown {
			skews = append(skews, p.Skew)
		}
		if p.Connected {
			s.Connected++
		}
		if p.State == state.Alive || p.State == state.Suspect {
			alive++
		}
	}
	select {
	case <-g.synced:
		s.Synced = true
	default:
	}
	g.mu.Lock()
	s.ClusterID, s.Cluster, s.RingID = g.cluster.ID, g.cluster.Name, g.cluster.RingID
	s.Heard, s.Frozen = g.heard, g.track.freeze != nil
	var unreached []string
	for addr, t := range g.targets {
		if t.err != "" {
			unreached = append(unreached, addr+": "+t.err)
		}
	}
	for _, r := range g.refusals {
		if g.now().Sub(r.When) < showRefusal {
			s.Refused = append(s.Refused, r)
		}
	}
	g.mu.Unlock()
	slices.SortFunc(s.Refused, func(a, b Refusal) int { return b.When.Compare(a.When) })
	slices.Sort(unreached)

	s.Skew, s.SkewOf = skewOf(skews), len(skews)
	s.Detail = fmt.Sprintf("%d of %d peers alive, %d connected", alive, s.Known, s.Connected)
	switch {
	case s.ClusterID == "":
		s.OK = false
		s.Error = "no peer has let this node into its cluster yet"
		s.Fix = "check that the addresses under join are right and that the secret is the cluster's; or run `nodectl join TOKEN`"
	case !s.Synced:
		s.OK = false
		s.Error = "not synced with any peer since start"
		s.Fix = "start another node of the cluster, or open ports " +
			fmt.Sprintf("%d/tcp, %d/tcp and %d/udp between the nodes", g.o.SyncPort, g.o.GossipPort, g.o.GossipPort)
	case s.Frozen:
		s.OK = false
		s.Error = "over half of the nodes were lost at once: withdrawals are frozen"
		s.Fix = "check this node's network"
	case s.Skew.Abs() > badSkew:
		s.OK = false
		s.Error = "this node's clock is " + skewText(-s.Skew) + " that of most peers"
		s.Fix = "set it with NTP (chrony, systemd-timesyncd): the cluster goes on, but whose change is newer is decided by the clocks, and certificates and tokens of others look expired"
	}
	if !s.OK && len(unreached) > 0 {
		s.Error += " (" + unreached[0] + ")"
	}
	if note, _ := g.fileNote.Load().(string); note != "" {
		s.Detail += "; " + note
	} else if !g.secrets.Load().settled() {
		s.Detail += "; the cluster secret is being rotated: see `nodectl secret status`"
	}
	if len(s.Refused) > 0 {
		s.Detail += fmt.Sprintf("; refused %s: %s", s.Refused[0].Addr, s.Refused[0].Reason)
	}
	return s
}
