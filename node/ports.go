package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/state"
)

// portTick is how often processes of the host are looked for that bind a port
// which is published, or a node port, after it was.
const portTick = 5 * time.Second

// localhosts are where a port that is published on every address is served too.
var localhosts = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// claim is a port of this host that the balancer takes packets of.
type claim struct {
	state.Publish
	nodePort string // the service whose node port it is; empty: a published port
}

func (c claim) String() string {
	if c.nodePort != "" {
		return fmt.Sprintf("node port %d/%s of service %s", c.HostPort, c.Protocol, c.nodePort)
	}
	return "published port " + c.Key()
}

// takes reports whether a socket would miss packets, or its port could not be
// served, because of the claim. A published port takes packets of its target's
// IP version, a node port those of both. Another address of 127.0.0.0/8 than
// ours is left alone.
func (c claim) takes(s boundSocket) bool {
	at := s.at.Addr()
	v4, v6 := c.Target.Is4(), c.Target.Is6()
	if !c.Target.IsValid() { // a workload that has no address yet gets one of IPv4
		v4, v6 = true, c.nodePort != ""
	}
	switch port := s.at.Port(); {
	case s.proto != c.Protocol || port < c.HostPort || port > c.LastPort():
		return false
	case at.IsUnspecified() && at.Is6() && !s.v6:
		return true // both
	case c.HostAddr.IsValid() && !at.IsUnspecified():
		return at == c.HostAddr
	case c.HostAddr.IsLoopback(): // served by the daemon, whatever the target
		return at.Is4() == c.HostAddr.Is4()
	case at.Is4() && !v4 || at.Is6() && !v6:
		return false
	case at.IsLoopback():
		return slices.Contains(localhosts, at) && c.nodePort == "" && c.Protocol != "sctp"
	}
	return true
}

// portConflict is a port that two want.
type portConflict struct {
	claim    claim
	socket   boundSocket
	who      string // process, as hostSockets.Owner says; empty: not known
	withheld bool   // the claim gave way: it is declared and not in use
	reason   string // of a claim that is withheld for another claim's sake
}

// holder says who sits on the port.
func (c portConflict) holder() string {
	if c.reason != "" {
		return c.reason
	}
	verb := "listens on"
	if c.socket.proto == "udp" {
		verb = "is bound to"
	}
	return fmt.Sprintf("%s %s %s/%s", cmp.Or(c.who, "a process of this host"), verb, c.socket.at, c.socket.proto)
}

func (c portConflict) String() string {
	if c.withheld {
		return fmt.Sprintf("%s is not in use: %s", c.claim, c.holder())
	}
	return fmt.Sprintf("%s takes the packets of a process: %s and hears nothing there", c.claim, c.holder())
}

// fix says what to do.
func (c portConflict) fix() string {
	switch {
	case c.claim.nodePort != "":
		return "move the process to a port outside the node ports, or give the service another node port"
	case c.withheld:
		return "stop the process or publish another port; the port comes into use within seconds"
	}
	return "stop the process, or publish another port"
}

// conflictOf finds a socket that a claim is in the way of. The daemon's own
// listeners for published ports on loopback are part of the claim, and the
// resolver's address is exempt from all.
func (n *Node) conflictOf(c claim, sockets []boundSocket) (portConflict, bool) {
	for _, s := range sockets {
		if !c.takes(s) || s.at.Addr() == n.cfg.Services.DNS {
			continue
		}
		if s.at.Addr().IsLoopback() && n.serves(s) && n.sockets.Own(s.inode) {
			continue
		}
		return portConflict{claim: c, socket: s, who: n.sockets.Owner(s.inode)}, true
	}
	return portConflict{}, false
}

// serves reports whether a socket's port is published on loopback.
func (n *Node) serves(s boundSocket) bool {
	for _, p := range n.store.Snapshot().View().Publishes {
		if (claim{Publish: p}).takes(s) {
			return true
		}
	}
	return false
}

// checkFree refuses to publish a port that a process of this host has, or
// whose protocol the kernel cannot translate.
func (n *Node) checkFree(list ...state.Publish) error {
	var claims []claim
	for _, p := range list {
		if p.Protocol == "sctp" && n.noSCTP != nil && n.noSCTP() {
			return invalid("publish %s: this kernel does not track SCTP: load nf_conntrack with CONFIG_NF_CT_PROTO_SCTP", p.Key())
		}
		claims = append(claims, claim{Publish: p})
	}
	return n.checkClaims(claims...)
}

// checkAllFree does so for what is attached with ports.
func (n *Node) checkAllFree(list []api.Publish) error {
	var all []state.Publish
	for _, r := range list {
		p, err := publishRecord(r)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	return n.checkFree(all...)
}

// checkNodePorts refuses a given node port that a process of this host has. On
// other nodes the status tells.
func (n *Node) checkNodePorts(s state.Service) error {
	var list []claim
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			list = append(list, claim{state.Publish{Protocol: p.Protocol, HostPort: p.NodePort}, s.FullName()})
		}
	}
	return n.checkClaims(list...)
}

func (n *Node) checkClaims(claims ...claim) error {
	if n.sockets == nil || len(claims) == 0 {
		return nil
	}
	sockets, err := n.sockets.Bound()
	if err != nil {
		n.log.Warn("processes with the same port are not looked for", "err", err)
		return nil
	}
	for _, c := range claims {
		if x, ok := n.conflictOf(c, sockets); ok {
			return &api.Error{Message: fmt.Sprintf("port %d/%s of this host is in use: %s: stop it, or choose another port",
				x.socket.at.Port(), c.Protocol, x.holder()), Code: api.CodeExists}
		}
	}
	return nil
}

// withhold removes from what a Nodefile declares the published ports that are
// not ours yet and that a process of this host has, or that were published
// otherwise before: a file read anew must not cut off what works. What was
// withheld is declared again until it can be.
func (n *Node) withhold(sn *state.Snapshot, want map[string]any) []portConflict {
	var sockets []boundSocket
	if n.sockets != nil {
		var err error
		if sockets, err = n.sockets.Bound(); err != nil {
			n.log.Warn("processes with the same port are not looked for", "err", err)
		}
	}
	var out []portConflict
	for key, v := range want {
		p := v.(state.Publish)
		old, ok := state.Lookup[state.Publish](sn, state.ID{Class: state.Owner, Kind: state.KindPublish, Owner: n.self, Key: key})
		if ok && old.Source == sourceNodefile {
			continue
		}
		c := claim{Publish: p}
		x, busy := n.conflictOf(c, sockets)
		for rec, o := range state.All[state.Publish](sn) {
			if rec.ID.Owner == n.self && o.Source != sourceNodefile && o.Overlaps(p) {
				x, busy = portConflict{claim: c, reason: fmt.Sprintf("%s is published already, to %s:%d", o.Key(), o.Target, o.Port)}, true
			}
		}
		if busy {
			x.withheld = true
			out = append(out, x)
			delete(want, key)
		}
	}
	slices.SortFunc(out, func(a, b portConflict) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// noteWithheld keeps what was withheld for the status and logs what is new.
func (n *Node) noteWithheld(list []portConflict) {
	n.mu.Lock()
	was := n.withheld
	n.withheld = list
	n.mu.Unlock()
	for _, c := range list {
		if !slices.ContainsFunc(was, func(o portConflict) bool { return o.String() == c.String() }) {
			n.log.Error(c.String(), "fix", c.fix())
		}
	}
	for _, c := range was {
		if !slices.ContainsFunc(list, func(o portConflict) bool { return o.claim == c.claim }) {
			n.log.Info("published port is in use now, or not declared any more", "port", c.claim.Key())
		}
	}
}

// claims lists the ports that this node takes now.
func claims(v *state.View) []claim {
	var out []claim
	for _, p := range v.Publishes {
		out = append(out, claim{Publish: p})
	}
	for s := range v.Services() {
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				out = append(out, claim{state.Publish{Protocol: p.Protocol, HostPort: p.NodePort}, s.FullName()})
			}
		}
	}
	return out
}

// runPorts looks for processes that bound a port of ours later, and gives
// what is withheld another chance.
func (n *Node) runPorts(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(portTick)
	defer tick.Stop()
	for {
		n.lookAtPorts(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) lookAtPorts(ctx context.Context) {
	n.mu.Lock()
	again := len(n.withheld) > 0
	n.mu.Unlock()
	if again {
		select {
		case n.redeclare <- struct{}{}:
		default:
		}
	}
	found, err := n.findPortConflicts()
	if err != nil {
		n.log.Debug("processes with the same port are not looked for", "err", err)
		return
	}
	n.mu.Lock()
	was := n.shadowed
	n.shadowed = found
	n.mu.Unlock()
	for _, c := range found {
		if !slices.ContainsFunc(was, func(o portConflict) bool { return o.String() == c.String() }) {
			n.log.Error(c.String(), "fix", c.fix())
		}
	}
	if len(was) > 0 && len(found) == 0 {
		n.log.Info("no process of this host has a published port or a node port any more")
	}
}

// findPortConflicts looks at everything that is in use now.
func (n *Node) findPortConflicts() ([]portConflict, error) {
	list := claims(n.store.Snapshot().View())
	if n.sockets == nil || len(list) == 0 {
		return nil, nil
	}
	sockets, err := n.sockets.Bound()
	if err != nil {
		return nil, err
	}
	var out []portConflict
	for _, c := range list {
		if x, ok := n.conflictOf(c, sockets); ok {
			out = append(out, x)
		}
	}
	return out, nil
}

// portStatus is the line of the status for ports; false: nothing to tell.
func (n *Node) portStatus(rev uint64) (api.SubsystemStatus, bool) {
	n.mu.Lock()
	all := append(slices.Clone(n.withheld), n.shadowed...)
	n.mu.Unlock()
	if len(all) == 0 {
		return api.SubsystemStatus{}, false
	}
	s := api.SubsystemStatus{Name: "ports", Desired: rev, Applied: rev, Error: all[0].String(), Fix: all[0].fix()}
	if more := len(all) - 1; more > 0 {
		s.Error += fmt.Sprintf(" (and %d more)", more)
	}
	return s, true
}
