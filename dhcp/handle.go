package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// inbound is a request with what the frame around it tells.
type inbound struct {
	msg *dhcpv4.DHCPv4
	mac net.HardwareAddr // sender of the frame: the client, a relay or a router
	src netip.Addr
}

// destination is where a reply goes. A nil mac is the broadcast address.
type destination struct {
	addr netip.AddrPort
	mac  net.HardwareAddr
}

// action is what came of a request, for counting and tests.
type action string

// Actions with a reply, without, and reasons to drop a request.
const (
	actOffer    action = "offer"
	actAck      action = "ack"
	actNak      action = "nak"
	actRelease  action = "release"
	actDecline  action = "decline"
	actWithdraw action = "withdraw" // the client took another server's offer

	dropMalformed   action = "malformed"
	dropBOOTP       action = "bootp"     // no option 53 (RFC 1534 would allow an answer)
	dropOther       action = "other"     // for another server
	dropUnknown     action = "unknown"   // a lease we do not know, and we are not authoritative
	dropExhausted   action = "exhausted" // no address left
	dropUnsupported action = "unsupported"
	dropFault       action = "fault" // the tables could not be written
	dropNoScope     action = "no-scope"
	dropRate        action = "rate"
	dropBusy        action = "busy"
)

// outcome is the result of handle. A nil reply means silence.
type outcome struct {
	reply  *dhcpv4.DHCPv4
	to     destination
	action action
	addr   netip.Addr // the address it is about
	err    error      // with dropFault, and why a DHCPNAK
}

const (
	serverPort = 67
	clientPort = 68
	// minLease is the shortest lease that a client may ask for.
	minLease = time.Minute
)

// handle decides about one request on a scope: RFC 2131 §4.3. It does no I/O
// but through l.
func handle(ctx context.Context, s *Scope, l Leases, in *inbound, now time.Time) outcome {
	m := in.msg
	if m.OpCode != dhcpv4.OpcodeBootRequest || !validHardware(m) {
		return outcome{action: dropMalformed}
	}
	x := exchange{ctx: ctx, scope: s, leases: l, in: in, now: now, client: clientOf(m, s), serverID: serverIDFor(s, m)}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return x.discover()
	case dhcpv4.MessageTypeRequest:
		return x.request()
	case dhcpv4.MessageTypeDecline:
		return x.decline()
	case dhcpv4.MessageTypeRelease:
		return x.release()
	case dhcpv4.MessageTypeInform:
		return x.inform()
	case dhcpv4.MessageTypeNone:
		return outcome{action: dropBOOTP}
	}
	return outcome{action: dropUnsupported}
}

// exchange is one request being handled.
type exchange struct {
	ctx      context.Context
	scope    *Scope
	leases   Leases
	in       *inbound
	now      time.Time
	client   Client
	serverID netip.Addr
}

// duration is the lease time to grant: what the client asks for, within bounds.
func (x *exchange) duration() time.Duration {
	d := x.scope.leaseTime()
	if b := x.in.msg.Options.Get(dhcpv4.OptionIPAddressLeaseTime); len(b) == 4 {
		want := time.Duration(binary.BigEndian.Uint32(b)) * time.Second
		d = min(d, max(want, minLease))
	}
	return d
}

// discover answers with an offer (§4.3.1).
func (x *exchange) discover() outcome {
	lease, err := x.leases.Offer(x.ctx, x.scope.Network, x.client)
	switch {
	case errors.Is(err, ErrExhausted), errors.Is(err, ErrNotYours), errors.Is(err, ErrUnknown):
		return outcome{action: dropExhausted, err: err}
	case err != nil:
		return outcome{action: dropFault, err: fmt.Errorf("offer to %s: %w", x.client.MAC, err)}
	}
	if x.scope.RapidCommit && x.in.msg.Options.Has(optRapidCommit) {
		lease, err := x.leases.Commit(x.ctx, x.scope.Network, x.client, lease.Addr, x.duration())
		if err != nil {
			return outcome{action: dropFault, err: fmt.Errorf("grant %s to %s: %w", lease.Addr, x.client.MAC, err)}
		}
		out := x.granted(lease)
		out.reply.Options[optRapidCommit.Code()] = nil
		return out
	}
	m := x.newReply(dhcpv4.MessageTypeOffer)
	m.YourIPAddr = lease.Addr.AsSlice()
	x.leaseOptions(m, &lease, x.duration())
	return x.send(m, actOffer, lease.Addr)
}

// request tells the client's state from the message (§4.3.2, table 4).
func (x *exchange) request() outcome {
	m := x.in.msg
	ciaddr := addr4(m.ClientIPAddr)
	server, hasServer := option4(m, dhcpv4.OptionServerIdentifier)
	want := x.client.Requested
	switch {
	case hasServer && server != x.serverID:
		// SELECTING, and another server was selected.
		if err := x.leases.Release(x.ctx, x.scope.Network, x.client, netip.Addr{}); err != nil {
			return outcome{action: dropFault, err: fmt.Errorf("withdraw the offer to %s: %w", x.client.MAC, err)}
		}
		return outcome{action: actWithdraw}
	case ciaddr.IsValid():
		// RENEWING or REBINDING; some clients send our identifier along.
		want = ciaddr
	case !want.IsValid():
		return outcome{action: dropMalformed}
	}
	// What is left of SELECTING and INIT-REBOOT differs only in what Leases
	// knows: an offer or a lease.
	lease, err := x.leases.Commit(x.ctx, x.scope.Network, x.client, want, x.duration())
	switch {
	case err == nil:
		return x.granted(lease)
	case errors.Is(err, ErrUnknown):
		// An address of another link is wrong whoever gave it (§4.3.2,
		// INIT-REBOOT); about others only an authoritative server speaks.
		if x.scope.NonAuthoritative && x.scope.onLink(want) && !hasServer {
			return outcome{action: dropUnknown, addr: want}
		}
		return x.nak(want, err)
	case errors.Is(err, ErrNotYours), errors.Is(err, ErrExhausted):
		return x.nak(want, err)
	}
	return outcome{action: dropFault, err: fmt.Errorf("grant %s to %s: %w", want, x.client.MAC, err)}
}

// granted makes the DHCPACK of a lease.
func (x *exchange) granted(lease Lease) outcome {
	m := x.newReply(dhcpv4.MessageTypeAck)
	m.ClientIPAddr = ip4(addr4(x.in.msg.ClientIPAddr))
	m.YourIPAddr = lease.Addr.AsSlice()
	d := x.duration()
	if left := lease.Expires.Sub(x.now); !lease.Expires.IsZero() && left < d {
		d = max(left, time.Second)
	}
	x.leaseOptions(m, &lease, d)
	return x.send(m, actAck, lease.Addr)
}

// nak refuses (§4.3.2): no address, no lease, no parameters (table 3).
func (x *exchange) nak(addr netip.Addr, why error) outcome {
	m := x.newReply(dhcpv4.MessageTypeNak)
	msg := why.Error()
	m.Options[dhcpv4.OptionMessage.Code()] = []byte(msg[:min(len(msg), 255)])
	out := x.send(m, actNak, addr)
	out.err = why
	return out
}

// decline takes the address out of service (§4.3.3).
func (x *exchange) decline() outcome {
	if server, ok := option4(x.in.msg, dhcpv4.OptionServerIdentifier); ok && server != x.serverID {
		return outcome{action: dropOther}
	}
	if !x.client.Requested.IsValid() {
		return outcome{action: dropMalformed}
	}
	err := x.leases.Decline(x.ctx, x.scope.Network, x.client, x.client.Requested)
	return x.silent(actDecline, x.client.Requested, err)
}

// release ends a lease (§4.3.4).
func (x *exchange) release() outcome {
	if server, ok := option4(x.in.msg, dhcpv4.OptionServerIdentifier); ok && server != x.serverID {
		return outcome{action: dropOther}
	}
	ciaddr := addr4(x.in.msg.ClientIPAddr)
	if !ciaddr.IsValid() {
		return outcome{action: dropMalformed}
	}
	err := x.leases.Release(x.ctx, x.scope.Network, x.client, ciaddr)
	return x.silent(actRelease, ciaddr, err)
}

func (x *exchange) silent(a action, addr netip.Addr, err error) outcome {
	switch {
	case err == nil:
		return outcome{action: a, addr: addr}
	case errors.Is(err, ErrUnknown), errors.Is(err, ErrNotYours):
		return outcome{action: dropUnknown, addr: addr}
	}
	return outcome{action: dropFault, err: fmt.Errorf("%s of %s by %s: %w", a, addr, x.client.MAC, err)}
}

// inform gives parameters to a host with an address of its own (§4.3.5):
// neither an address nor lease times.
func (x *exchange) inform() outcome {
	ciaddr := addr4(x.in.msg.ClientIPAddr)
	if !ciaddr.IsValid() {
		// Some clients leave it out; the datagram's source tells as well.
		ciaddr = x.in.src
	}
	if !ciaddr.Is4() || ciaddr.IsUnspecified() {
		return outcome{action: dropMalformed}
	}
	m := x.newReply(dhcpv4.MessageTypeAck)
	m.ClientIPAddr = ciaddr.AsSlice()
	x.parameters(m, &Lease{Addr: ciaddr})
	return x.send(m, actAck, ciaddr)
}

// newReply fills in what every reply has in common (§4.3.1, table 3). Options
// 61 (RFC 6842) and 82 (RFC 3046) go back unchanged.
func (x *exchange) newReply(t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	req := x.in.msg
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: req.HWType, TransactionID: req.TransactionID, Flags: req.Flags,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: req.GatewayIPAddr,
		ClientHWAddr: req.ClientHWAddr, Options: make(dhcpv4.Options, 16),
	}
	m.Options[dhcpv4.OptionDHCPMessageType.Code()] = []byte{byte(t)}
	m.Options[dhcpv4.OptionServerIdentifier.Code()] = x.serverID.AsSlice()
	for _, o := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation} {
		if v, ok := req.Options[o.Code()]; ok {
			m.Options[o.Code()] = bytes.Clone(v)
		}
	}
	return m
}

// send decides where a reply goes (§4.1).
func (x *exchange) send(m *dhcpv4.DHCPv4, a action, addr netip.Addr) outcome {
	x.fit(m)
	out := outcome{reply: m, action: a, addr: addr}
	broadcast := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)
	giaddr, ciaddr := x.client.GIAddr, addr4(m.ClientIPAddr)
	switch {
	case giaddr.IsValid():
		if a == actNak {
			// The relay has to broadcast it: the client's address is wrong.
			m.SetBroadcast()
		}
		out.to = destination{netip.AddrPortFrom(giaddr, serverPort), x.in.mac}
	case a == actNak:
		out.to = destination{addr: broadcast}
	case ciaddr.IsValid():
		out.to = destination{netip.AddrPortFrom(ciaddr, clientPort), x.in.mac}
	case m.IsBroadcast() || len(m.ClientHWAddr) != 6:
		out.to = destination{addr: broadcast}
	default:
		// The client cannot answer ARP yet: its address goes straight into
		// the frame.
		out.to = destination{netip.AddrPortFrom(addr, clientPort), m.ClientHWAddr}
	}
	return out
}

// validHardware refuses addresses that no client can have.
func validHardware(m *dhcpv4.DHCPv4) bool {
	mac := m.ClientHWAddr
	if len(mac) == 0 {
		return m.Options.Has(dhcpv4.OptionClientIdentifier)
	}
	return len(mac) != 6 || mac[0]&1 == 0 && !bytes.Equal(mac, make([]byte, 6))
}

// clientOf reads who sent a message.
func clientOf(m *dhcpv4.DHCPv4, s *Scope) Client {
	c := Client{MAC: m.ClientHWAddr, GIAddr: addr4(m.GatewayIPAddr), Hostname: hostnameOf(m), OnLink: s.subnets()}
	// RFC 2132 §9.14: at least two bytes. A shorter one identifies nobody.
	if id := m.Options.Get(dhcpv4.OptionClientIdentifier); len(id) >= 2 {
		c.ID = id
	}
	if a, ok := option4(m, dhcpv4.OptionRequestedIPAddress); ok && !a.IsUnspecified() {
		c.Requested = a
	}
	return c
}

// serverIDFor is our address towards the client, unless a relay wants to stand
// in for us (RFC 5107).
func serverIDFor(s *Scope, m *dhcpv4.DHCPv4) netip.Addr {
	if a := relayAddr(m, dhcpv4.ServerIdentifierOverrideSubOption); a.IsValid() {
		return a
	}
	return s.ServerID
}

// subnetOf is the address that chooses the scope of a relayed request: the
// link selection sub-option (RFC 3527) or else the relay's address. It is
// invalid for a request that came from the link itself.
func subnetOf(m *dhcpv4.DHCPv4) netip.Addr {
	gi := addr4(m.GatewayIPAddr)
	if !gi.IsValid() {
		return netip.Addr{}
	}
	if a := relayAddr(m, dhcpv4.LinkSelectionSubOption); a.IsValid() {
		return a
	}
	return gi
}

func relayAddr(m *dhcpv4.DHCPv4, sub dhcpv4.OptionCode) netip.Addr {
	b := m.Options.Get(dhcpv4.OptionRelayAgentInformation)
	if b == nil {
		return netip.Addr{}
	}
	o := make(dhcpv4.Options)
	if o.FromBytes(b) != nil {
		return netip.Addr{}
	}
	v := o.Get(sub)
	if len(v) != 4 {
		return netip.Addr{}
	}
	return addr4(v)
}

// option4 reads an option that holds one IPv4 address.
func option4(m *dhcpv4.DHCPv4, o dhcpv4.OptionCode) (netip.Addr, bool) {
	v := m.Options.Get(o)
	if len(v) != 4 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(v)), true
}

// addr4 converts; the unspecified address becomes the invalid one.
func addr4(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	// net.IP holds 0.0.0.0 in a 16-byte form too.
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func ip4(a netip.Addr) net.IP {
	if !a.IsValid() {
		return net.IPv4zero
	}
	return a.AsSlice()
}
