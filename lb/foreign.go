package lb

import (
	"fmt"
	"slices"
	"strings"
)

// ForwardDrop is a base chain of somebody else's that drops what it does not
// know: Docker's, ufw's, or an administrator's own.
type ForwardDrop struct {
	Family, Table, Chain string
	Firewall             string // whose it is, if nodenet knows it: see Integrate
	Reject               bool   // the policy accepts, but the last rule drops or rejects
}

func (d ForwardDrop) String() string { return d.Family + " " + d.Table + " " + d.Chain }

// only6 reports whether it sees packets of IPv6 alone.
func (d ForwardDrop) only6() bool { return d.Family == "ip6" }

// Fix is what lets the packets of our devices through.
func (d ForwardDrop) Fix() string {
	iptables := "iptables"
	if d.only6() {
		iptables = "ip6tables"
	}
	switch {
	case d.Firewall == Docker:
		return fmt.Sprintf("nodectl firewall integrate docker; or by hand: %[1]s -I DOCKER-USER -i nn-+ -j ACCEPT; %[1]s -I DOCKER-USER -o nn-+ -j ACCEPT", iptables)
	case d.Firewall == UFW:
		return "nodectl firewall integrate ufw; or by hand: ufw route allow in on nn-pods; ufw route allow out on nn-pods"
	case d.Firewall == Firewalld:
		return "nodectl firewall integrate firewalld; or by hand: firewall-cmd --permanent --zone=trusted --add-interface=nn-+ --add-interface=nv-+; firewall-cmd --reload"
	case d.Family != "inet" && d.Table == "filter" && d.Chain == "FORWARD":
		return fmt.Sprintf("%[1]s -I FORWARD -i nn-+ -j ACCEPT; %[1]s -I FORWARD -o nn-+ -j ACCEPT", iptables)
	}
	return fmt.Sprintf(`nft insert rule %[1]s iifname "nn-*" accept; nft insert rule %[1]s oifname "nn-*" accept`, d)
}

// forwardDrops is what a Kernel can do beside programming ours.
type forwardDrops interface {
	ForwardDrops(devices []string) ([]ForwardDrop, error)
}

// lookAround notes who would drop our workloads' packets. It is called when
// the ruleset changed and on the slow tick.
func (b *LB) lookAround() {
	b.holdFirewalls()
	k, ok := b.opt.Kernel.(forwardDrops)
	if !ok || b.book == nil {
		return
	}
	var devices []string
	dual := false
	for _, br := range b.book.frame.Bridges {
		devices = append(devices, br.Name)
		dual = dual || br.Prefix6.IsValid()
	}
	var drops []ForwardDrop
	if len(devices) > 0 {
		var err error
		if drops, err = k.ForwardDrops(devices); err != nil {
			b.log.Debug("other firewalls not looked at", "err", err)
			return
		}
		if !dual {
			drops = slices.DeleteFunc(drops, ForwardDrop.only6) // no workload has IPv6
		}
	}
	b.mu.Lock()
	was := len(b.drops)
	b.drops = drops
	b.mu.Unlock()
	switch {
	case was == 0 && len(drops) > 0:
		b.log.Error("another firewall drops forwarded "+packets(drops)+", those of workloads too", "chain", drops[0].String(), "fix", drops[0].Fix())
	case was > 0 && len(drops) == 0:
		b.log.Info("no other firewall drops workloads' packets any more")
	}
}

// blame adds to a status who drops our packets.
func blame(s *Status, drops []ForwardDrop) {
	if len(drops) == 0 || s.Error != "" {
		return
	}
	var chains []string
	for _, d := range drops {
		chains = append(chains, d.String())
	}
	s.OK = false
	s.Error = fmt.Sprintf("another firewall drops forwarded %s, those of workloads too: chain %s drops what it does not know and has no rule for our devices", packets(drops), strings.Join(chains, ", "))
	s.Fix = drops[0].Fix()
}

// packets says which are hit.
func packets(drops []ForwardDrop) string {
	if slices.ContainsFunc(drops, func(d ForwardDrop) bool { return !d.only6() }) {
		return "packets"
	}
	return "IPv6 packets (IPv4 is not hit)"
}
