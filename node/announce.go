package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/lb/announce"
	"nodenet/state"
)

// maxLANs bounds what a node says of its interfaces. The oldest come first: a
// container host's many bridges are younger than its network cards.
const maxLANs = 32

// lansOf is what the node's record says of its links.
func lansOf(links []announce.Link) []state.LAN {
	var out []state.LAN
	byAge := slices.SortedFunc(slices.Values(links), func(a, b announce.Link) int { return cmp.Compare(a.Index, b.Index) })
	for _, l := range byAge {
		for _, p := range l.Addrs {
			if l.Up && len(out) < maxLANs {
				out = append(out, state.LAN{Addr: p, MAC: slices.Clone(l.MAC[:])})
			}
		}
	}
	return out
}

// linksChanged is told by the speaker what the host's links are now.
func (n *Node) linksChanged(links []announce.Link) {
	n.mu.Lock()
	n.links = links
	n.mu.Unlock()
	select {
	case n.relinked <- struct{}{}:
	default:
	}
}

// handedGrace is how long memberships of groups that were handed over wait for
// an address to be held here again.
const handedGrace = 10 * time.Second

// runAnnounce runs the speaker, and gives up what it does not take over.
func (n *Node) runAnnounce(ctx context.Context) error {
	if n.fds != nil {
		rest := time.AfterFunc(handedGrace, func() {
			if err := (fdPart{n.fds, fdsOfAnnounce}).DropRest(); err != nil {
				n.log.Warn("sockets that are not wanted stay with the service manager", "err", err)
			}
		})
		defer rest.Stop()
	}
	return n.announce.Run(ctx)
}

func (n *Node) lans() []state.LAN {
	n.mu.Lock()
	defer n.mu.Unlock()
	return lansOf(n.links)
}

// runLANs keeps the node's record true to its links: who answers for an
// external address is elected among those that are on its LAN now, so a
// carrier that is lost has to be told.
func (n *Node) runLANs(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	retry := time.NewTimer(0) // what changed while the record was first written
	defer retry.Stop()
	for {
		select {
		case <-n.relinked:
		case <-retry.C:
		case <-ctx.Done():
			return nil
		}
		if err := n.tellLANs(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("links not told to the cluster, will try again", "err", err)
			retry.Reset(time.Second)
		}
	}
}

func (n *Node) tellLANs(ctx context.Context) error {
	lans := n.lans()
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		self, ok := state.Lookup[state.Node](sn, state.ID{Class: state.Owner, Kind: state.KindNode, Owner: n.self, Key: "self"})
		if !ok || self.Left || slices.EqualFunc(self.LANs, lans, sameLAN) {
			return nil, nil
		}
		now := *self
		now.LANs = lans
		return []state.Op{state.Put(state.Owner, state.KindNode, "self", now)}, nil
	})
	return err
}

func sameLAN(a, b state.LAN) bool { return a.Addr == b.Addr && slices.Equal(a.MAC, b.MAC) }

// announceReady reports whether what arrives for an external address would be
// balanced: the rules of some revision are in the kernel.
func (n *Node) announceReady() bool {
	st := n.lb.Status()
	return st.OK && st.Applied > 0
}

// setAnnounced hands the outcome of the elections to the speaker.
func (n *Node) setAnnounced(v *state.View) { n.announce.Set(n.elector.Elect(v), v.Rev) }

// announced says for each external address who answers for it. A node without
// a speaker, as in tests without a network, says nothing.
func (n *Node) announced() map[netip.Addr]api.Announcement {
	out := map[netip.Addr]api.Announcement{}
	if n.announce == nil {
		return out
	}
	v := n.store.Snapshot().View()
	for _, a := range n.announce.Status().Addrs {
		x := api.Announcement{Addr: a.Addr, Node: a.Name, Here: a.Mine, State: a.State, Device: a.Link, Problem: a.Trouble()}
		if a.Mine && a.MAC != (announce.MAC{}) {
			x.MAC = a.MAC.String()
		}
		if a.To != "" {
			x.To = nodeName(v, a.To)
		}
		out[a.Addr] = x
	}
	return out
}

// announcementsOf picks those of one service, in its order.
func announcementsOf(s *state.ServiceView, all map[netip.Addr]api.Announcement) []api.Announcement {
	if !s.Announce {
		return nil
	}
	var out []api.Announcement
	for _, addr := range s.Addresses {
		if a, ok := all[addr]; ok {
			out = append(out, a)
		}
	}
	return out
}

// checkAnnounced says of each external address whether somebody answers for
// it, and what on this host would answer against that.
func (n *Node) checkAnnounced(v *state.View) []api.Check {
	st := n.announce.Status()
	var out []api.Check
	devices := map[string]bool{}
	for _, a := range st.Addrs {
		c := api.Check{Name: "external address " + a.Addr.String(), Status: okay, Detail: "announced by " + a.Name}
		switch {
		case a.Trouble() != "":
			c.Status, c.Detail = bad, a.Trouble()
			if a.Owner == "" {
				c.Status = warn
			}
			c.Fix = "see `nodectl service show " + strings.ReplaceAll(a.Services[0], "/", ".") + "` and docs/operations.md about external addresses"
		case a.Mine && a.To != "":
			c.Status, c.Detail = warn, fmt.Sprintf("%s has it, which gossip does not reach from here", nodeName(v, a.To))
		case a.Mine:
			c.Detail = fmt.Sprintf("%s here, on %s", a.State, a.Link)
		}
		if a.Link != "" {
			devices[a.Link] = true
		}
		if slices.Contains(hostAddrs(), a.Addr) {
			c.Status, c.Detail = bad, "an interface of this host has it: the kernel answers for it whoever is elected"
			c.Fix = fmt.Sprintf("ip address del %s", a.Addr)
		}
		out = append(out, c)
	}
	for dev := range devices {
		for _, path := range []string{"net/ipv4/conf/" + dev + "/proxy_arp", "net/ipv4/conf/all/proxy_arp"} {
			if sysctl(path) == "1" {
				out = append(out, api.Check{Name: "proxy ARP", Status: warn,
					Detail: strings.ReplaceAll(path, "/", ".") + " = 1: the kernel may answer for addresses that another node announces",
					Fix:    "sysctl " + strings.ReplaceAll(path, "/", ".") + "=0"})
			}
		}
	}
	return out
}

// observedLinks lists the host's links before the speaker runs.
func (n *Node) observedLinks() {
	links, err := announce.Host{}.Links()
	if err != nil {
		n.log.Warn("links not listed", "err", err)
		return
	}
	n.mu.Lock()
	n.links = links
	n.mu.Unlock()
}

// stopAnswering takes back what the kernel answers for by itself, when the
// node leaves: another node takes the addresses over at once.
func (n *Node) stopAnswering() {
	if _, err := announce.Cleanup(context.Background()); err != nil && !os.IsNotExist(err) {
		n.log.Error("external addresses are answered for a few seconds more", "err", err)
	}
}
