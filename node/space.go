package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/api"
	"nodenet/dhcp"
	"nodenet/ipam"
	"nodenet/state"
)

// methodAsk is the RPC by which a node asks another for a part of a ring.
const methodAsk = "ipam.ask"

// methodTake is the RPC by which a leaving node makes sure that its heir
// holds records before it lets go.
const methodTake = "ipam.take"

// asker asks over gossip's stream.
type asker struct{ n *Node }

// Ask implements ipam.Asker.
func (a asker) Ask(ctx context.Context, to state.NodeID, q ipam.Ask) ([]state.Record, error) {
	req, err := state.Encode(q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := a.n.gossip.Call(ctx, to, methodAsk, req)
	if err != nil {
		return nil, err
	}
	if a.n.promised.bound(to) {
		return nil, errors.New("it is being forgotten")
	}
	var recs []state.Record
	if err := state.Decode(resp, &recs); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", to.Short(), err)
	}
	return recs, nil
}

// Take implements ipam.Heir.
func (a asker) Take(ctx context.Context, to state.NodeID, recs []state.Record) error {
	req, err := state.Encode(recs)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = a.n.gossip.Call(ctx, to, methodTake, req)
	return err
}

func (n *Node) serveTake(_ context.Context, from state.NodeID, req []byte) ([]byte, error) {
	var recs []state.Record
	if err := state.Decode(req, &recs); err != nil {
		return nil, fmt.Errorf("records to take over: %w", err)
	}
	var shared []state.Record
	for _, r := range recs {
		if r.ID.Class != state.Owner { // owner-scoped records travel as deltas
			shared = append(shared, r)
		}
	}
	if _, err := n.store.Merge(shared, true); err != nil {
		return nil, err
	}
	n.log.Info("took records over", "from", from.Short(), "records", len(shared))
	return nil, nil
}

func (n *Node) serveAsk(ctx context.Context, from state.NodeID, req []byte) ([]byte, error) {
	var q ipam.Ask
	if err := state.Decode(req, &q); err != nil {
		return nil, fmt.Errorf("request for address space: %w", err)
	}
	q.To = from // whatever the request says
	if n.restored.Load() {
		return nil, errRestored
	}
	recs, err := ipam.ServeAsk(ctx, n.store, n.self, n.ringID(), q)
	if err != nil {
		return nil, err
	}
	n.log.Debug("asked for address space", "ring", q.Ring, "by", from.Short())
	return state.Encode(recs)
}

// spec finds the ring that a name means.
func (n *Node) spec(ring string) (ipam.Spec, bool) {
	for _, s := range n.specs(n.store.Snapshot()) {
		if s.Ring == ring {
			return s, true
		}
	}
	return ipam.Spec{}, false
}

// specs lists the rings that this node takes part in: those of the networks
// that it has declared by now, which a reload of the Nodefile may have changed.
func (n *Node) specs(sn *state.Snapshot) []ipam.Spec {
	specs := serviceSpecs(n.cfg)
	for rec, nw := range state.All[state.Network](sn) {
		if rec.ID.Owner == n.self && !nw.Local() {
			specs = append(specs, ipam.NetworkSpec(*nw))
		}
	}
	return specs
}

// writeWithSpace runs a write that may find this node's part of a ring used
// up; it then asks the others for more and tries again.
func (n *Node) writeWithSpace(ctx context.Context, fn func(*state.Snapshot) ([]state.Op, error)) (uint64, error) {
	for try := 0; ; try++ {
		if err := n.mayAllocate(); err != nil {
			return 0, err
		}
		rev, err := n.store.Write(ctx, fn)
		var need *ipam.NeedSpaceError
		if !errors.As(err, &need) || try == 3 {
			return rev, apiError(err)
		}
		spec, ok := n.spec(need.Ring)
		if !ok {
			return rev, err
		}
		if err := ipam.Grow(ctx, n.store, n.self, n.ringID(), spec, need.Want, asker{n}); err != nil {
			return 0, apiError(err)
		}
	}
}

// errLeaving keeps a leaving node from asking for the space that it has just
// given away.
var errLeaving = &api.Error{Message: "the node is leaving its cluster: it gives out no addresses", Code: api.CodeNotReady}

// apiError gives ipam's errors the codes that callers of the API know.
func apiError(err error) error {
	var e *api.Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, ipam.ErrExhausted):
		return &api.Error{Message: err.Error(), Code: api.CodeExhausted}
	case errors.Is(err, ipam.ErrInUse), errors.Is(err, ipam.ErrNotOurs):
		return &api.Error{Message: err.Error(), Code: api.CodeExists}
	case errors.Is(err, ipam.ErrNoRing), errors.Is(err, ipam.ErrNeedSpace):
		return &api.Error{Message: err.Error(), Code: api.CodeNotReady}
	}
	return err
}

// runSpace keeps what must be there before it is needed: the pinned and the
// next block of each network, and addresses of services that name none.
func (n *Node) runSpace(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	feed := n.store.Subscribe()
	defer feed.Close()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	wait := 200 * time.Millisecond
	var shared, saidAt time.Time
	var said string
	gone := map[string]time.Time{}
	for {
		select {
		case <-feed.C():
			feed.Take()
		case <-tick.C:
		case <-retry.C:
		case <-ctx.Done():
			return nil
		}
		if n.mayAllocate() != nil {
			continue
		}
		if time.Since(shared) >= shareEvery {
			n.shareRings(ctx)
			shared = time.Now()
			if err := n.dropVIPs(ctx, gone, time.Now()); err != nil && ctx.Err() == nil {
				n.log.Warn("addresses of removed services not taken back", "err", err)
			}
		}
		if err := errors.Join(n.openBlocks(ctx), n.assignVIPs(ctx)); err != nil && ctx.Err() == nil {
			// A full network is asked about with every change, for ever.
			if what := err.Error(); what != said || time.Since(saidAt) >= time.Minute {
				n.log.Info("address space not ready, will try again", "in", wait, "err", err)
				said, saidAt = what, time.Now()
			}
			retry.Reset(wait)
			wait = min(2*wait, 10*time.Second)
		} else {
			wait, said = 200*time.Millisecond, ""
		}
	}
}

// openBlocks opens each network's first block at once, the pinned one if
// there is one, so that its route is everywhere before the first workload.
func (n *Node) openBlocks(ctx context.Context) error {
	var errs []error
	for _, nw := range n.store.Snapshot().View().Networks {
		if nw.Local() {
			continue
		}
		// The cheap question first: this runs at every change.
		if ops, err := n.blockOps(n.store.Snapshot(), nw.Network); err == nil && len(ops) == 0 {
			continue
		}
		_, err := n.writeWithSpace(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
			return n.blockOps(sn, nw.Network)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("open a block of network %s: %w", nw.Name, err))
		}
	}
	return errors.Join(errs...)
}

// shareEvery bounds how often a node without a share asks.
const shareEvery = 10 * time.Second

// shareRings asks for a part of the VIPs and node ports while peers can be
// asked: a node that is cut off later can go on making services. Having got
// none is no fault; it is asked for again when it is needed.
func (n *Node) shareRings(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, shareEvery/2)
	defer cancel()
	for _, name := range []string{state.RingServices, state.RingNodePorts} {
		ring := ipam.Resolve(n.store.Snapshot(), name, n.ringID())
		if ring == nil || len(ring.Owned(n.self)) > 0 {
			continue
		}
		spec, _ := n.spec(name)
		if err := ipam.Grow(ctx, n.store, n.self, n.ringID(), spec, netip.Prefix{}, asker{n}); err != nil {
			n.log.Debug("no share of a ring yet", "ring", name, "err", err)
		}
	}
}

// blockOps opens the first block of a network, or the next one when little is left.
func (n *Node) blockOps(sn *state.Snapshot, nw state.Network) ([]state.Op, error) {
	if ops, err := n.alloc.First(sn, n.self, n.ringID(), nw); err != nil || len(ops) > 0 {
		return ops, err
	}
	return n.alloc.Ahead(sn, n.self, n.ringID(), nw)
}

// assignVIPs allocates for services that have no address or node port yet.
// The lowest living node that declares a service does it, so that nodes with
// the same Nodefile do not compete.
func (n *Node) assignVIPs(ctx context.Context) error {
	sn := n.store.Snapshot()
	v := sn.View()
	v4, v6 := sn.ServiceRanges()
	var errs []error
	for s := range v.Services() {
		if !needsVIP(s, v4, v6) || n.assigner(sn, v, s) != n.self {
			continue
		}
		if _, err := n.writeWithSpace(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
			return n.vipOps(sn, s.Service)
		}); err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", s.FullName(), err))
		}
	}
	return errors.Join(errs...)
}

// vipRest is how long an address stays with a service that is gone: the
// service may come back with the next reload, or its record merely later than
// its address.
const vipRest = 10 * time.Minute

// dropVIPs takes back what was allocated for services that have been gone for
// vipRest. gone remembers since when; the lowest living node does it.
func (n *Node) dropVIPs(ctx context.Context, gone map[string]time.Time, now time.Time) error {
	sn := n.store.Snapshot()
	live := map[string]bool{}
	for _, s := range state.All[state.Service](sn) {
		live[s.Key()] = true
	}
	var ops []state.Op
	for rec := range state.All[state.VIP](sn) {
		key := rec.ID.Key
		if live[key] {
			delete(gone, key)
			continue
		}
		if gone[key].IsZero() {
			gone[key] = now
		}
		if now.Sub(gone[key]) > vipRest {
			ops = append(ops, state.Del(state.Cluster, state.KindVIP, key))
		}
	}
	if len(ops) == 0 || !n.lowestAlive(sn.View()) {
		return nil
	}
	_, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) { return ops, nil })
	return err
}

// lowestAlive reports whether this node is the one that does what one node
// has to do for all.
func (n *Node) lowestAlive(v *state.View) bool {
	for _, nv := range v.Nodes {
		if nv.State == state.Alive && nv.ID < n.self {
			return false
		}
	}
	return true
}

func needsVIP(s *state.ServiceView, v4, v6 netip.Prefix) bool {
	if s.External != "" {
		return false
	}
	if !s.VIP.IsValid() && !s.VIP6.IsValid() && s.NeedsOffset(v4, v6) {
		return true
	}
	return s.NodePorts && slices.ContainsFunc(s.Ports, func(p state.ServicePort) bool { return p.NodePort == 0 && p.Last == 0 })
}

func (n *Node) assigner(sn *state.Snapshot, v *state.View, s *state.ServiceView) state.NodeID {
	var lowest state.NodeID
	for _, nv := range v.Nodes {
		if nv.State == state.Dead || nv.State == state.Unknown && !nv.Self {
			continue
		}
		_, declares := state.Lookup[state.Service](sn, state.ID{Class: state.Owner, Kind: state.KindService, Owner: nv.ID, Key: s.Key()})
		if (declares || s.Source != sourceNodefile) && (lowest == "" || nv.ID < lowest) {
			lowest = nv.ID
		}
	}
	return lowest
}

// vipOps returns the ops that give a service what it asked to have allocated.
func (n *Node) vipOps(sn *state.Snapshot, s state.Service) ([]state.Op, error) {
	old, _ := state.Lookup[state.VIP](sn, state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: s.Key()})
	var vip state.VIP
	if old != nil {
		vip.Addr = old.Addr
	}
	if s.External != "" {
		return nil, nil
	}
	if !vip.Addr.IsValid() && s.NeedsOffset(sn.ServiceRanges()) {
		a, err := ipam.AllocateVIP(sn, n.self, n.ringID(), n.cfg.Services.Prefix, []netip.Addr{n.cfg.Services.DNS}, netip.Addr{})
		if err != nil {
			return nil, err
		}
		vip.Addr = a
	}
	if s.NodePorts {
		vip.NodePorts = map[string]uint16{}
		first, last := n.cfg.Services.NodePorts.First, n.cfg.Services.NodePorts.Last
		for _, p := range s.Ports {
			key := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			switch {
			case p.NodePort != 0 || p.Last != 0: // a range has none
			case old != nil && old.NodePorts[key] != 0:
				vip.NodePorts[key] = old.NodePorts[key]
			default:
				np, err := ipam.AllocateNodePort(sn, n.self, n.ringID(), first, last, 0, portsOf(vip.NodePorts)...)
				if err != nil {
					return nil, err
				}
				vip.NodePorts[key] = np
			}
		}
	}
	if !vip.Addr.IsValid() && len(vip.NodePorts) == 0 {
		return nil, nil
	}
	return []state.Op{state.Put(state.Cluster, state.KindVIP, s.Key(), vip)}, nil
}

func portsOf(m map[string]uint16) []uint16 {
	out := make([]uint16, 0, len(m))
	for _, p := range m {
		out = append(out, p)
	}
	return out
}

// pickLease chooses an address for a DHCP client; it is the book's way to ipam.
func (n *Node) pickLease(sn *state.Snapshot, network string, c dhcp.Client, held func(netip.Addr) bool) (dhcp.Pick, error) {
	if err := n.mayAllocate(); err != nil {
		return dhcp.Pick{}, err
	}
	nw, ok := n.network(sn, network)
	if !ok {
		return dhcp.Pick{}, fmt.Errorf("network %s is not declared on this node", network)
	}
	g, ops, err := n.alloc.Allocate(sn, n.self, ipam.Request{
		Network: *nw, RingID: n.ringID(), ID: "dhcp/" + c.MAC.String(), Name: c.Hostname, MAC: c.MAC.String(),
		Want: c.Requested, Now: n.clock.now(), Held: held,
	})
	if err != nil && c.Requested.IsValid() && !errors.Is(err, ipam.ErrNeedSpace) {
		// What a client asks for is a wish (RFC 2131 §4.3.1).
		c.Requested = netip.Addr{}
		return n.pickLease(sn, network, c, held)
	}
	if errors.Is(err, ipam.ErrExhausted) || errors.Is(err, ipam.ErrNeedSpace) {
		err = fmt.Errorf("%w: %w", dhcp.ErrExhausted, err)
	}
	return dhcp.Pick{Addr: g.Addr, Prefix: g.Prefix, Router: g.Gateway, Ops: ops}, err
}
