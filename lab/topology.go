package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

const lanBridge = "lan0"

// build makes the namespaces and the links between them.
func (l *Lab) build(rec *record, services netip.Prefix) error {
	if err := shareNetnsDir(); err != nil {
		return err
	}
	for _, ns := range rec.netns() {
		if err := addNetns(ns); err != nil {
			return err
		}
	}
	lan, router, outside := rec.Netns[0], rec.Netns[1], rec.Netns[2]
	if err := inNetns(lan, func() error { return addBridge(lanBridge) }); err != nil {
		return err
	}
	if err := plug(lan, nsRouter, router, "eth0", netip.PrefixFrom(routerAddr, lanPrefix.Bits()), netip.Addr{}); err != nil {
		return err
	}
	if err := addVeth(router, "eth1", outside, "eth0"); err != nil {
		return err
	}
	if err := setUp(router, "eth1", netip.PrefixFrom(outsideRouter, outsidePrefix.Bits()), netip.Addr{}); err != nil {
		return err
	}
	if err := setUp(outside, "eth0", netip.PrefixFrom(outsideAddr, outsidePrefix.Bits()), outsideRouter); err != nil {
		return err
	}
	for _, n := range rec.Nodes {
		if err := plug(lan, n.Name, n.Netns, "eth0", netip.PrefixFrom(n.Addr, lanPrefix.Bits()), routerAddr); err != nil {
			return err
		}
	}
	return inNetns(router, func() error {
		// Answers to a client of a VIP may take another way than its questions.
		for _, s := range []struct{ key, value string }{
			{"net/ipv4/ip_forward", "1"},
			{"net/ipv4/conf/all/rp_filter", "0"},
			{"net/ipv4/conf/eth0/rp_filter", "0"},
			{"net/ipv4/conf/eth1/rp_filter", "0"},
			{"net/ipv4/conf/all/send_redirects", "0"},
			{"net/ipv4/conf/eth0/send_redirects", "0"},
		} {
			if err := os.WriteFile(filepath.Join("/proc/sys", s.key), []byte(s.value), 0o644); err != nil {
				return fmt.Errorf("set sysctl in the router's namespace: %w", err)
			}
		}
		return addRoute(services, rec.Nodes[0].Addr)
	})
}

// plug connects a namespace to the LAN: a port of the bridge on this side, an
// interface with an address on the other.
func plug(lan, port, netns, ifName string, addr netip.Prefix, gateway netip.Addr) error {
	if err := addVeth(lan, port, netns, ifName); err != nil {
		return err
	}
	err := inNetns(lan, func() error {
		br, err := netlink.LinkByName(lanBridge)
		if err != nil {
			return fmt.Errorf("find the LAN's bridge: %w", err)
		}
		link, err := netlink.LinkByName(port)
		if err != nil {
			return fmt.Errorf("find LAN port %s: %w", port, err)
		}
		if err := netlink.LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("put LAN port %s into the bridge: %w", port, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set LAN port %s up: %w", port, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return setUp(netns, ifName, addr, gateway)
}

func addBridge(name string) error {
	la := netlink.NewLinkAttrs()
	la.Name = name
	br := &netlink.Bridge{LinkAttrs: la}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("set bridge %s up: %w", name, err)
	}
	return nil
}

// addVeth makes a cable whose ends are born in their namespaces, so that
// neither shows up anywhere else for a moment.
func addVeth(nsA, nameA, nsB, nameB string) error {
	b, err := os.Open(nsB)
	if err != nil {
		return fmt.Errorf("connect %s: %w", nsB, err)
	}
	defer b.Close()
	return inNetns(nsA, func() error {
		la := netlink.NewLinkAttrs()
		la.Name = nameA
		v := &netlink.Veth{LinkAttrs: la, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.Fd()))}
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("connect %s in %s to %s in %s: %w", nameA, nsA, nameB, nsB, err)
		}
		return nil
	})
}

// setUp gives an interface its address and sets it up; a valid gateway
// becomes the default route.
func setUp(netns, ifName string, addr netip.Prefix, gateway netip.Addr) error {
	return inNetns(netns, func() error {
		link, err := netlink.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", ifName, netns, err)
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
			return fmt.Errorf("add address %s to %s in %s: %w", addr, ifName, netns, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up in %s: %w", ifName, netns, err)
		}
		if gateway.IsValid() {
			return addRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway)
		}
		return nil
	})
}

func addRoute(dst netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route %s via %s: %w", dst, via, err)
	}
	return nil
}

// ipNet turns a prefix into what the netlink package asks for.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
