package gossip

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodenet/state"
)

// ErrClone is what Run returns when another machine runs with this node's key
// and has the better claim to it. Nothing was written since it was found out,
// and starting again changes nothing while the other one runs.
var ErrClone = errors.New("this node runs on a copy of another one's disk")

// Two machines with one node key would give out the same addresses twice. Both
// hold a valid certificate, so what tells them apart is the instance in their
// hellos, random for each process, and that both are there: a node that was
// restarted or moved does not answer where it was before.
//
//	copy ── hello of X, at B ──► peer ── ping on X's link, or a probe to A ──► X
//	copy ◄─ refuse: clone ─────  peer ◄─ it answers, with another instance ──  X
//
// Of two that answer, the one that has run longer stays: Began is its epoch at
// its start, which is above what its disk held and above its clock, and never
// changes while it runs; Started and Instance decide within one second. So
// everybody decides alike, also after a partition in which each half knew another one.

// older reports whether a has the better claim to the identity that both hold.
func older(a, b *hello) bool {
	return cmp.Or(cmp.Compare(a.Began, b.Began), cmp.Compare(a.Started, b.Started), bytes.Compare(a.Instance, b.Instance)) < 0
}

// clones is what a node remembers to find out that it, or a peer, is a copy.
type clones struct {
	once   sync.Once
	found  chan struct{} // closed when this node turns out to be a copy
	err    error         // why; read after found
	doubts chan sighting // two lives of a node in the membership, at two addresses
}

// sighting is a node that the membership shows at two addresses.
type sighting struct {
	id       state.NodeID
	old, new member
}

func newClones() clones {
	return clones{found: make(chan struct{}), doubts: make(chan sighting, 16)}
}

// heed looks at a refusal by a verified peer: it may say that we are a copy.
func (g *Gossip) heed(r *RefusedError) *RefusedError {
	if r.Code == codeClone {
		g.isCopy(r.Reason)
	}
	return r
}

// isCopy ends Run: whoever goes on with another's identity harms both.
func (g *Gossip) isCopy(reason string) {
	g.clones.once.Do(func() {
		g.log.Error("this node runs on a copy of another one's disk and stops", "reason", reason)
		g.clones.err = fmt.Errorf("%w: %s", ErrClone, reason)
		close(g.clones.found)
	})
}

// cloneLoop ends with an error when this node turns out to be a copy, and
// settles the doubts that the membership raises.
func (g *Gossip) cloneLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.clones.found:
			return g.clones.err
		case d := <-g.clones.doubts:
			g.settle(ctx, d)
		}
	}
}

// twin answers a hello with our own ID from another process.
func (g *Gossip) twin(h *hello) *refuse {
	mine := g.hello(h.Node)
	if older(mine, h) {
		return &refuse{codeClone, cloneReason(mine, h)}
	}
	g.isCopy(cloneReason(h, mine))
	return &refuse{codeCopy, fmt.Sprintf("%s at %s runs on a copy of the disk of %s at %s, and stops", mine.Name, mine.Addr, h.Name, h.Addr)}
}

// cloneReason is what an operator reads on both machines.
func cloneReason(stays, copied *hello) string {
	return fmt.Sprintf("node %s runs at %s (%s) and at %s (%s), on copies of one disk, and the one at %s has run longer: "+
		"at %s, remove the state directory and join with a token; to move the node there instead, stop it at %s first",
		stays.Node, stays.Addr, stays.Name, copied.Addr, copied.Name, stays.Addr, copied.Addr, stays.Addr)
}

// rival is the other machine with a newcomer's identity.
type rival struct {
	*hello
	link *link    // on which it answered, or
	conn net.Conn // of a probe
}

// tell says to a copy what it is, and waits a moment for it to go.
func (r rival) tell(reason string, wait time.Duration) {
	f := &refuse{codeClone, reason}
	if r.link != nil {
		r.link.send(f)
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-r.link.closed:
		case <-t.C:
		}
		return
	}
	r.conn.SetDeadline(time.Now().Add(wait))
	writeFrame(r.conn, f)
}

func (r rival) close() {
	if r.conn != nil {
		r.conn.Close()
	}
}

// contest decides whether the sender of a hello may have the identity that it
// shows. Nil: nobody else answers to it any more, or the other one is the
// copy, which has been told so.
func (g *Gossip) contest(ctx context.Context, id state.NodeID, h *hello) *refuse {
	old, addrs := g.holders(id, h)
	if old == nil && len(addrs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.t.challenge)
	defer cancel()
	found := make(chan rival, len(addrs)+1)
	var wg sync.WaitGroup
	if old != nil {
		wg.Go(func() {
			if old.answers(ctx) {
				found <- rival{hello: old.hello, link: old}
			}
		})
	}
	for _, a := range addrs {
		wg.Go(func() {
			if r, err := g.probe(ctx, a, id); err == nil {
				found <- r
			}
		})
	}
	go func() { wg.Wait(); close(found) }()
	var verdict *refuse
	settled := false
	for r := range found {
		if !settled && !bytes.Equal(r.Instance, h.Instance) {
			settled = true
			cancel() // one is enough; the other goroutines end and found closes
			if older(r.hello, h) {
				verdict = &refuse{codeClone, cloneReason(r.hello, h)}
			} else {
				r.tell(cloneReason(h, r.hello), g.t.challenge/2)
			}
		}
		r.close()
	}
	if verdict == nil {
		g.mu.Lock()
		p := g.info(id)
		p.vetted, p.vettedAt = h.Instance, time.Now()
		g.mu.Unlock()
	}
	return verdict
}

// holders returns where the identity in a hello is known to be held by
// somebody else than the sender: a link of another instance, and other addresses.
func (g *Gossip) holders(id state.NodeID, h *hello) (*link, []string) {
	var addrs []string
	add := func(a netip.Addr, port uint16) {
		s := netip.AddrPortFrom(a.Unmap(), or(port, DefaultSyncPort)).String()
		if a.IsValid() && s != net.JoinHostPort(h.Addr, fmt.Sprint(or(h.SyncPort, DefaultSyncPort))) && !slices.Contains(addrs, s) {
			addrs = append(addrs, s)
		}
	}
	rec, _ := state.Lookup[state.Node](g.store.Snapshot(), state.ID{Class: state.Owner, Kind: state.KindNode, Owner: id, Key: "self"})
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.links[id]
	if old != nil && bytes.Equal(old.hello.Instance, h.Instance) {
		return nil, nil
	}
	if p := g.peers[id]; p != nil {
		if bytes.Equal(p.vetted, h.Instance) && time.Since(p.vettedAt) < g.t.retry {
			return old, nil // asked a moment ago; whom we are linked to is always asked
		}
		add(p.addr, p.sync)
	}
	if rec != nil && !rec.Left {
		add(rec.Advertise, rec.SyncPort)
	}
	if m := g.track.members[id]; m != nil && m.up {
		if a, err := netip.ParseAddr(m.addr); err == nil {
			add(a, m.syncPort)
		}
	}
	return old, addrs
}

// probe asks an address whether a node is there, without becoming its peer.
// The caller closes the rival.
func (g *Gossip) probe(ctx context.Context, addr string, id state.NodeID) (rival, error) {
	raw, err := g.dialRaw(ctx, addr)
	if err != nil {
		return rival{}, err
	}
	deadline, _ := ctx.Deadline()
	raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := g.o.net.client(raw, tlsConfig(g.secrets.Load().cert, alpnSync))
	h, err := func() (*hello, error) {
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		there, err := g.secrets.Load().verify(conn.ConnectionState())
		if err != nil {
			return nil, err
		}
		if there != id {
			return nil, fmt.Errorf("node %s answers at %s", there.Short(), addr)
		}
		mine := g.hello(id)
		mine.Probe = true
		if err := writeFrame(conn, mine); err != nil {
			return nil, err
		}
		f, _, err := readFrame(conn, maxEarly)
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *hello:
			if f.Node != id {
				return nil, errors.New("the hello names another node than the certificate")
			}
			f.Name, f.Addr = printable(f.Name), printable(f.Addr)
			return f, nil
		case *refuse:
			return nil, g.heed(&RefusedError{f.Code, printable(f.Reason)})
		}
		return nil, errors.New("no hello came")
	}()
	if err != nil {
		raw.Close()
		return rival{}, fmt.Errorf("probe %s: %w", addr, err)
	}
	return rival{hello: h, conn: conn}, nil
}

// answerProbe says who is here, and hears whether that is a copy.
func (g *Gossip) answerProbe(conn net.Conn, id state.NodeID) {
	defer conn.Close()
	if writeFrame(conn, g.hello(id)) != nil {
		return
	}
	if f, _, err := readFrame(conn, maxEarly); err == nil {
		if r, ok := f.(*refuse); ok {
			g.heed(&RefusedError{r.Code, printable(r.Reason)})
		}
	}
}

// doubtful raises a doubt when a newer life of a node shows up elsewhere while
// the older one is there; g.mu is held.
func (g *Gossip) doubtful(id state.NodeID, m member) {
	old := g.track.members[id]
	mine := net.JoinHostPort(g.o.Advertise.String(), fmt.Sprint(g.o.GossipPort))
	switch there := net.JoinHostPort(m.addr, fmt.Sprint(m.gossipPort)); {
	case id == g.self && there != mine:
		old = &member{}
	case id == g.self || old == nil || !old.up || m.epoch <= old.epoch || old.addr == m.addr && old.gossipPort == m.gossipPort:
		return
	}
	select {
	case g.clones.doubts <- sighting{id, *old, m}:
	default: // the next one who calls us by this ID is asked anyway
	}
}

// settle asks at both addresses, and tells the copy if two answer.
func (g *Gossip) settle(ctx context.Context, d sighting) {
	ctx, cancel := context.WithTimeout(ctx, g.t.challenge)
	defer cancel()
	ask := func(m member) (r rival) {
		if a, err := netip.ParseAddr(m.addr); err == nil {
			r, _ = g.probe(ctx, netip.AddrPortFrom(a, m.syncPort).String(), d.id)
		}
		return r
	}
	if d.id == g.self {
		ask(d.new).close() // the hellos alone decide it, see twin
		return
	}
	var was rival
	var wg sync.WaitGroup
	wg.Go(func() { was = ask(d.old) })
	now := ask(d.new)
	wg.Wait()
	defer was.close()
	defer now.close()
	if was.hello == nil || now.hello == nil || bytes.Equal(was.Instance, now.Instance) {
		return // it was restarted, or moved
	}
	if !older(was.hello, now.hello) {
		was.tell(cloneReason(now.hello, was.hello), g.t.challenge/2)
		return
	}
	reason := cloneReason(was.hello, now.hello)
	now.tell(reason, g.t.challenge/2)
	g.noteRefusal(d.new.addr, d.id, &RefusedError{codeClone, reason})
	g.mu.Lock()
	g.track.disown(d.id, d.old, d.new.epoch)
	g.mu.Unlock()
	wake(g.wakeLive)
}
