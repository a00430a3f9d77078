package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nowhere is an Ethernet address that nobody has. A permanent neighbour entry
// with it sends all that is meant for a node into the void: no error comes
// back, as when a cable between two switches is cut.
var nowhere = net.HardwareAddr{0x02, 0, 0, 0, 0xde, 0xad}

// Cut is a connection that does not carry packets. To is empty when the
// node's cable is out.
type Cut struct {
	From string `json:"from"`
	To   string `json:"to,omitempty"`
}

// Cut drops what a and b send each other over the LAN; with oneWay only what
// a sends to b. An empty b pulls a's cable out: its interface loses carrier.
func (l *Lab) Cut(a, b string, oneWay bool) error {
	rec, err := l.read()
	if err != nil {
		return err
	}
	na, err := rec.node(a)
	if err != nil {
		return err
	}
	if b == "" {
		return setPort(rec, na.Name, false)
	}
	nb, err := rec.node(b)
	if err != nil {
		return err
	}
	if na == nb {
		return fmt.Errorf("cut %s from itself: want two nodes", a)
	}
	if err := lose(na, nb.Addr); err != nil || oneWay {
		return err
	}
	return lose(nb, na.Addr)
}

// Heal undoes Cut, in both directions. An empty b heals all of a's cuts;
// both empty: every cut of the lab.
func (l *Lab) Heal(a, b string) error {
	rec, err := l.read()
	if err != nil {
		return err
	}
	for _, name := range []string{a, b} {
		if name != "" {
			if _, err := rec.node(name); err != nil {
				return err
			}
		}
	}
	cuts, err := l.Cuts()
	if err != nil {
		return err
	}
	for _, c := range cuts {
		if !healed(c, a, b) {
			continue
		}
		from, err := rec.node(c.From)
		if err != nil {
			return err
		}
		if c.To == "" {
			err = setPort(rec, c.From, true)
		} else if to, e := rec.node(c.To); e != nil {
			err = e
		} else {
			err = find(from, to.Addr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// healed reports whether Heal(a, b) undoes a cut.
func healed(c Cut, a, b string) bool {
	switch {
	case a == "":
		return true
	case b == "":
		return c.From == a || c.To == a
	}
	return c.From == a && c.To == b || c.From == b && c.To == a
}

// Cuts returns the cuts that the kernel holds, sorted as the nodes are.
func (l *Lab) Cuts() ([]Cut, error) {
	rec, err := l.read()
	if err != nil {
		return nil, err
	}
	byAddr := map[netip.Addr]string{}
	for _, n := range rec.Nodes {
		byAddr[n.Addr] = n.Name
	}
	down := map[string]bool{}
	err = inNetns(rec.Netns[0], func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list LAN ports: %w", err)
		}
		for _, link := range links {
			down[link.Attrs().Name] = link.Attrs().Flags&net.FlagUp == 0
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var cuts []Cut
	for _, n := range rec.Nodes {
		if down[n.Name] {
			cuts = append(cuts, Cut{From: n.Name})
		}
		err := inNetns(n.Netns, func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return fmt.Errorf("find eth0 of %s: %w", n.Name, err)
			}
			neighs, err := netlink.NeighList(eth0.Attrs().Index, unix.AF_INET)
			if err != nil {
				return fmt.Errorf("list neighbours of %s: %w", n.Name, err)
			}
			for _, nb := range neighs {
				addr, _ := netip.AddrFromSlice(nb.IP)
				if to := byAddr[addr.Unmap()]; to != "" && bytes.Equal(nb.HardwareAddr, nowhere) {
					cuts = append(cuts, Cut{From: n.Name, To: to})
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return cuts, nil
}

func neighbour(to netip.Addr) (*netlink.Neigh, error) {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("find eth0: %w", err)
	}
	return &netlink.Neigh{
		LinkIndex:    eth0.Attrs().Index,
		Family:       unix.AF_INET,
		State:        unix.NUD_PERMANENT,
		IP:           to.AsSlice(),
		HardwareAddr: nowhere,
	}, nil
}

func lose(from *Node, to netip.Addr) error {
	return inNetns(from.Netns, func() error {
		nb, err := neighbour(to)
		if err == nil {
			err = netlink.NeighSet(nb)
		}
		if err != nil {
			return fmt.Errorf("cut %s from %s: %w", from.Name, to, err)
		}
		return nil
	})
}

func find(from *Node, to netip.Addr) error {
	return inNetns(from.Netns, func() error {
		nb, err := neighbour(to)
		if err == nil {
			err = netlink.NeighDel(nb)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("heal %s to %s: %w", from.Name, to, err)
		}
		return nil
	})
}

// setPort sets a node's port of the LAN up or down.
func setPort(rec *record, port string, up bool) error {
	return inNetns(rec.Netns[0], func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return fmt.Errorf("find LAN port %s: %w", port, err)
		}
		set, word := netlink.LinkSetDown, "down"
		if up {
			set, word = netlink.LinkSetUp, "up"
		}
		if err := set(link); err != nil {
			return fmt.Errorf("set LAN port %s %s: %w", port, word, err)
		}
		return nil
	})
}
