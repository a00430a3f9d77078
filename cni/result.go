package cni

import (
	"encoding/json"
	"net/netip"

	"nodenet/api"
)

// result10 is the result of 0.3.0 and later. In 1.0.0 an address lost its
// version; in 1.1.0 an interface got its MTU.
type result10 struct {
	CNIVersion string            `json:"cniVersion"`
	Interfaces []json.RawMessage `json:"interfaces,omitempty"`
	IPs        []ip10            `json:"ips,omitempty"`
	Routes     []json.RawMessage `json:"routes,omitempty"`
	DNS        dnsConf           `json:"dns"`
}

type interface10 struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	MTU     int    `json:"mtu,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
}

type ip10 struct {
	Version   string     `json:"version,omitempty"`
	Interface *int       `json:"interface,omitempty"`
	Address   string     `json:"address"`
	Gateway   netip.Addr `json:"gateway,omitzero"`
}

// result02 is the result of 0.1.0 and 0.2.0: one address of each version.
type result02 struct {
	CNIVersion string  `json:"cniVersion"`
	IP4        *ip02   `json:"ip4,omitempty"`
	IP6        *ip02   `json:"ip6,omitempty"`
	DNS        dnsConf `json:"dns"`
}

type ip02 struct {
	IP      string      `json:"ip"`
	Gateway netip.Addr  `json:"gateway,omitzero"`
	Routes  []ipamRoute `json:"routes,omitempty"`
}

// versionResult answers VERSION.
type versionResult struct {
	CNIVersion        string   `json:"cniVersion"`
	SupportedVersions []string `json:"supportedVersions"`
}

// makeResult says what the container got, in the version asked for. What an
// earlier plugin of the chain did comes first.
func makeResult(version string, r *request, at *api.Attachment, prev json.RawMessage) (any, error) {
	routes, routes6 := r.routes, defaultRoute("::/0", at.Gateway6, r)
	if routes == nil {
		routes = defaultRoute("0.0.0.0/0", at.Gateway, r)
	}
	dns := r.dns
	if dns.empty() && r.Mode != "ipam" {
		dns = dnsOf(at.DNS)
	}
	if !atLeast(version, "0.3.0") {
		out := result02{CNIVersion: version, DNS: dns,
			IP4: &ip02{IP: at.Addr.String(), Gateway: at.Gateway, Routes: routes}}
		if at.Addr6.IsValid() {
			out.IP6 = &ip02{IP: at.Addr6.String(), Gateway: at.Gateway6, Routes: routes6}
		}
		return out, nil
	}

	out := result10{CNIVersion: version}
	if !isZero(prev) {
		if err := json.Unmarshal(prev, &out); err != nil {
			return nil, faultf(codeDecode, "prevResult: %v", err)
		}
		out.CNIVersion = version
	}
	if out.DNS.empty() {
		out.DNS = dns
	}
	var inside *int // an IPAM call knows of no interface
	if r.Mode != "ipam" {
		ifs := interfaces(at, r.Netns, atLeast(version, "1.1.0"))
		for _, i := range ifs {
			b, err := json.Marshal(i)
			if err != nil {
				return nil, err
			}
			out.Interfaces = append(out.Interfaces, b)
		}
		last := len(out.Interfaces) - 1
		inside = &last
	}
	for _, ip := range []ip10{
		{Version: "4", Interface: inside, Address: at.Addr.String(), Gateway: at.Gateway},
		{Version: "6", Interface: inside, Address: at.Addr6.String(), Gateway: at.Gateway6},
	} {
		if ip.Version == "6" && !at.Addr6.IsValid() {
			continue
		}
		if atLeast(version, "1.0.0") {
			ip.Version = ""
		}
		out.IPs = append(out.IPs, ip)
	}
	for _, rt := range append(routes, routes6...) {
		b, err := json.Marshal(rt)
		if err != nil {
			return nil, err
		}
		out.Routes = append(out.Routes, b)
	}
	return out, nil
}

// defaultRoute is the route to everything by a gateway; nil: the container has
// none.
func defaultRoute(dst string, gw netip.Addr, r *request) []ipamRoute {
	if !gw.IsValid() || r.NoDefaultRoute {
		return nil
	}
	return []ipamRoute{{Dst: dst, GW: gw.String()}}
}

// interfaces lists bridge, host side and container side, the last one last.
func interfaces(at *api.Attachment, netns string, mtu bool) []interface10 {
	var ifs []interface10
	if at.Bridge != "" {
		ifs = append(ifs, interface10{Name: at.Bridge, MAC: at.BridgeMAC})
	}
	if at.HostIf != "" {
		ifs = append(ifs, interface10{Name: at.HostIf, MAC: at.HostMAC})
	}
	in := interface10{Name: at.IfName, MAC: at.MAC, Sandbox: netns}
	if mtu {
		in.MTU = at.MTU
	}
	return append(ifs, in)
}

// prevAddrs returns the addresses of a previous result.
func prevAddrs(prev json.RawMessage) ([]netip.Prefix, error) {
	var out result10
	if err := json.Unmarshal(prev, &out); err != nil {
		return nil, faultf(codeDecode, "prevResult: %v", err)
	}
	var addrs []netip.Prefix
	for _, ip := range out.IPs {
		p, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, faultf(codeDecode, "prevResult: ips: %q is not an address with a prefix length", ip.Address)
		}
		addrs = append(addrs, p)
	}
	return addrs, nil
}
