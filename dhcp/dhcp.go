// Package dhcp is a DHCPv4 server for the machines on a network's bridge: VMs
// on taps and physical ports, which nobody attaches with a command.
//
//	bridge ─► AF_PACKET ─► parse ─► handle (RFC 2131 §4.3) ─► reply ─► AF_PACKET ─► bridge
//	                                  │
//	                                Leases: Book ─► state (lease records, replicated) ─► DNS names
//
// The server has a packet socket on each bridge, because a client without an
// address can be answered by unicast at layer 2 only (RFC 2131 §4.1), and
// because the interface a request came in on decides its network. Leases are
// replicated records, so any node can renew any lease.
package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Scope is what the server hands out on one bridge.
type Scope struct {
	Network string // name of the network
	Device  string // the bridge; it may appear later than the scope
	// ServerID is the server's address on the link (option 54), as a rule
	// the gateway. A scope without one is an error.
	ServerID netip.Addr
	Routers  []netip.Addr // option 3, where the lease does not name a router; empty: none
	DNS      []netip.Addr // option 6
	NTP      []netip.Addr // option 42
	// Prefix gives the mask (option 1) where the lease does not bring its
	// own, and is the range that a requested address must be in.
	Prefix netip.Prefix
	// Links holds further subnets of the same link, each with its own router:
	// other blocks that the node has opened.
	Links []Link
	// Routes are sent as option 121 to clients that ask for it, together
	// with the default route, because such clients ignore option 3 (RFC 3442).
	Routes    []Route
	Domain    string        // option 15
	Search    []string      // option 119
	MTU       int           // option 26; 0: not sent
	LeaseTime time.Duration // 0: one hour
	Namespace string        // of the endpoints that leases become; not used by the server itself
	// NonAuthoritative keeps the server silent about leases that it does not
	// know, for a segment with another DHCP server. The zero value answers
	// them with a DHCPNAK, so that a client that moved here starts anew at once.
	NonAuthoritative bool
	// RapidCommit answers a DISCOVER that carries option 80 with an ACK (RFC 4039).
	RapidCommit bool
}

// Link is a subnet on a scope's link.
type Link struct {
	Prefix netip.Prefix
	Router netip.Addr // invalid: the scope's
}

// Route is a static route for clients. Via may be 0.0.0.0: on-link.
type Route struct {
	Prefix netip.Prefix
	Via    netip.Addr
}

// Scopes is the desired state of a Server.
type Scopes struct {
	Rev  uint64
	List []Scope
}

// Client is what a request says about who sent it.
type Client struct {
	MAC       net.HardwareAddr
	ID        []byte     // option 61; nil: the MAC identifies the client
	Hostname  string     // a valid DNS label in lower case, or empty
	Requested netip.Addr // option 50; invalid: none
	GIAddr    netip.Addr // the relay; invalid: on the link
	// OnLink holds the subnets of the client's link: it cannot use any other
	// address. Empty: not known.
	OnLink []netip.Prefix
}

// canUse reports whether an address is of use where the client is.
func (c *Client) canUse(a netip.Addr) bool {
	return len(c.OnLink) == 0 || slices.ContainsFunc(c.OnLink, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Lease is an address as a client gets it.
type Lease struct {
	Addr netip.Addr
	// Prefix is the subnet of Addr; invalid: the scope's.
	Prefix netip.Prefix
	// Router is the way out; invalid: the scope's.
	Router  netip.Addr
	Expires time.Time
}

// Answers of Leases by which the server branches. Wrap them with the reason.
var (
	// ErrNotYours says that the address belongs to another client, or can
	// not be used here: the server sends a DHCPNAK.
	ErrNotYours = errors.New("address is not this client's")
	// ErrUnknown says that there is no lease or offer for the client: a
	// DHCPNAK from an authoritative server, else silence.
	ErrUnknown = errors.New("no such lease")
	// ErrExhausted says that no address is left: silence, so that another
	// server may answer.
	ErrExhausted = errors.New("no address left")
)

// Leases decides about addresses. A method that grants returns only when the
// grant would survive a crash. Its methods are called concurrently. Book is
// the implementation on the cluster's tables.
type Leases interface {
	// Offer picks an address and holds it for a short while. The same client
	// gets the same address.
	Offer(ctx context.Context, network string, c Client) (Lease, error)
	// Commit grants or prolongs a lease on addr for d. ErrNotYours,
	// ErrUnknown and ErrExhausted are answers, other errors are faults:
	// the client is left without a reply and asks again.
	Commit(ctx context.Context, network string, c Client, addr netip.Addr, d time.Duration) (Lease, error)
	// Release ends the client's lease on addr. The invalid address withdraws
	// only what was offered to the client: it took another server's offer.
	Release(ctx context.Context, network string, c Client, addr netip.Addr) error
	// Decline takes an address that the client found in use out of service.
	Decline(ctx context.Context, network string, c Client, addr netip.Addr) error
	// Lookup returns the client's lease that has not expired.
	Lookup(ctx context.Context, network string, c Client) (Lease, bool)
}

// Status is the state of a Server.
type Status struct {
	Desired, Applied uint64 // revisions of Scopes; Applied trails while a bridge is missing
	OK               bool
	Detail           string // one line for people
	Error, Fix       string
}

// DefaultLeaseTime is the lease time of a scope that names none.
const DefaultLeaseTime = time.Hour

func (s *Scope) leaseTime() time.Duration {
	if s.LeaseTime > 0 {
		return s.LeaseTime
	}
	return DefaultLeaseTime
}

// onLink reports whether a is an address of the scope's link.
func (s *Scope) onLink(a netip.Addr) bool {
	return s.Prefix.Contains(a) || slices.ContainsFunc(s.Links, func(l Link) bool { return l.Prefix.Contains(a) })
}

// subnets lists the prefixes of the scope's link.
func (s *Scope) subnets() []netip.Prefix {
	out := []netip.Prefix{s.Prefix}
	for _, l := range s.Links {
		out = append(out, l.Prefix)
	}
	return out
}

// subnet returns prefix and routers of an address that comes without.
func (s *Scope) subnet(a netip.Addr) (netip.Prefix, []netip.Addr) {
	for _, l := range s.Links {
		if l.Prefix.Contains(a) && l.Router.IsValid() {
			return l.Prefix, []netip.Addr{l.Router}
		} else if l.Prefix.Contains(a) {
			return l.Prefix, s.Routers
		}
	}
	return s.Prefix, s.Routers
}

func (s *Scope) validate() error {
	switch {
	case s.Device == "":
		return errors.New("scope names no device")
	case !s.ServerID.Is4() || s.ServerID.IsUnspecified():
		return errors.New("scope has no IPv4 server address: give the network a gateway")
	case !s.Prefix.IsValid() || !s.Prefix.Addr().Is4():
		return errors.New("scope has no IPv4 prefix")
	}
	return nil
}

func (s *Scope) equal(o *Scope) bool {
	return s.Network == o.Network && s.Device == o.Device && s.ServerID == o.ServerID &&
		slices.Equal(s.Routers, o.Routers) && slices.Equal(s.DNS, o.DNS) && slices.Equal(s.NTP, o.NTP) &&
		s.Prefix == o.Prefix && slices.Equal(s.Links, o.Links) && slices.Equal(s.Routes, o.Routes) &&
		s.Domain == o.Domain && slices.Equal(s.Search, o.Search) && s.MTU == o.MTU && s.LeaseTime == o.LeaseTime &&
		s.Namespace == o.Namespace && s.NonAuthoritative == o.NonAuthoritative && s.RapidCommit == o.RapidCommit
}
