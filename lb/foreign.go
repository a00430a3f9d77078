package lb

import (
	"fmt"
	"strings"
)

// ForwardDrop is a base chain of somebody else's that drops what it does not
// know: Docker's, ufw's, or an administrator's own.
type ForwardDrop struct {
	Family, Table, Chain string
	Docker               bool // the table has a chain DOCKER-USER for such rules
}

func (d ForwardDrop) String() string { return d.Family + " " + d.Table + " " + d.Chain }

// Fix is what lets the packets of our devices through.
func (d ForwardDrop) Fix() string {
	if d.Family == "ip" && d.Table == "filter" && d.Chain == "FORWARD" {
		chain := d.Chain
		if d.Docker {
			chain = "DOCKER-USER"
		}
		return fmt.Sprintf("iptables -I %[1]s -i nn-+ -j ACCEPT; iptables -I %[1]s -o nn-+ -j ACCEPT (with ufw: ufw route allow in on nn-pods, and out)", chain)
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
	k, ok := b.opt.Kernel.(forwardDrops)
	if !ok || b.book == nil {
		return
	}
	var devices []string
	for _, br := range b.book.frame.Bridges {
		devices = append(devices, br.Name)
	}
	var drops []ForwardDrop
	if len(devices) > 0 {
		var err error
		if drops, err = k.ForwardDrops(devices); err != nil {
			b.log.Debug("other firewalls not looked at", "err", err)
			return
		}
	}
	b.mu.Lock()
	was := len(b.drops)
	b.drops = drops
	b.mu.Unlock()
	switch {
	case was == 0 && len(drops) > 0:
		b.log.Error("another firewall drops forwarded packets, those of workloads too", "chain", drops[0].String(), "fix", drops[0].Fix())
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
	s.Error = fmt.Sprintf("another firewall drops forwarded packets, those of workloads too: chain %s has policy drop and no rule for our devices", strings.Join(chains, ", "))
	s.Fix = drops[0].Fix()
}
