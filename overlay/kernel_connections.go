package overlay

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connection is a tracked connection whose destination was translated on this host.
type Connection struct {
	Proto  uint8
	Dest   netip.AddrPort // as the client has it
	Target netip.AddrPort // who answers
}

// Translated lists the connections whose destination this host translated and
// that are not over: TCP and SCTP that neither side has closed, and whatever else
// has ports. It dumps the whole table (ctnetlink knows no filter for
// who answers), so it is for questions of people, not for the hot path.
func (Conntrack) Translated() ([]Connection, error) {
	var out []Connection
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := eachFlow(family, func(msg []byte) {
			if c, ok := parseFlow(msg, 0); ok && c.Dest != c.Target && !over(msg) {
				out = append(out, c)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list conntrack: %w", err)
		}
	}
	return out, nil
}

// Attributes inside of those that nl names (nfnetlink_conntrack.h).
const (
	ctaState        = 1 // CTA_PROTOINFO_TCP_STATE, CTA_PROTOINFO_SCTP_STATE
	sctpClosed      = 1 // SCTP_CONNTRACK_CLOSED
	sctpShutdownAck = 7 // SCTP_CONNTRACK_SHUTDOWN_ACK_SENT
)

// parseFlow reads where a flow's first packet was sent and who answers; false:
// it is of another protocol than proto, or has no ports. With proto 0, all that
// have are wanted. The library reads ports of TCP and UDP only.
func parseFlow(msg []byte, proto uint8) (c Connection, ok bool) {
	for typ, tuple := range attributes(msg[nfgenLen:]) {
		if typ != nl.CTA_TUPLE_ORIG && typ != nl.CTA_TUPLE_REPLY {
			continue
		}
		t := parseTuple(tuple)
		if proto != 0 && t.proto != proto {
			return c, false
		}
		if c.Proto = t.proto; typ == nl.CTA_TUPLE_ORIG {
			c.Dest = t.dst
		} else {
			c.Target = t.src
		}
	}
	return c, c.Dest.Port() != 0 && c.Target.Port() != 0 && c.Dest.Addr().IsValid() && c.Target.Addr().IsValid()
}

// tuple is one direction of a flow.
type tuple struct {
	proto    uint8
	src, dst netip.AddrPort
}

func parseTuple(b []byte) (t tuple) {
	var src, dst netip.Addr
	var sport, dport uint16
	for typ, part := range attributes(b) {
		for attr, v := range attributes(part) {
			switch {
			case typ == nl.CTA_TUPLE_IP && (attr == nl.CTA_IP_V4_DST || attr == nl.CTA_IP_V6_DST):
				dst, _ = netip.AddrFromSlice(v)
			case typ == nl.CTA_TUPLE_IP:
				src, _ = netip.AddrFromSlice(v)
			case typ == nl.CTA_TUPLE_PROTO && attr == nl.CTA_PROTO_NUM && len(v) == 1:
				t.proto = v[0]
			case typ == nl.CTA_TUPLE_PROTO && attr == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				sport = binary.BigEndian.Uint16(v)
			case typ == nl.CTA_TUPLE_PROTO && attr == nl.CTA_PROTO_DST_PORT && len(v) == 2:
				dport = binary.BigEndian.Uint16(v)
			}
		}
	}
	t.src, t.dst = netip.AddrPortFrom(src.Unmap(), sport), netip.AddrPortFrom(dst.Unmap(), dport)
	return t
}

// over reports a TCP connection or an SCTP association that is closed and only
// remembered.
func over(msg []byte) bool {
	for typ, info := range attributes(msg[nfgenLen:]) {
		if typ != nl.CTA_PROTOINFO {
			continue
		}
		for proto, attrs := range attributes(info) {
			for attr, v := range attributes(attrs) {
				if attr == ctaState && len(v) == 1 {
					return ended(proto, v[0])
				}
			}
		}
	}
	return false
}

func ended(proto uint16, state uint8) bool {
	switch proto {
	case nl.CTA_PROTOINFO_TCP:
		return state == nl.TCP_CONNTRACK_LAST_ACK || state == nl.TCP_CONNTRACK_TIME_WAIT || state == nl.TCP_CONNTRACK_CLOSE
	case nl.CTA_PROTOINFO_SCTP:
		return state == sctpClosed || state == sctpShutdownAck
	}
	return false
}

// attributes walks netlink attributes, whose type is given without its flags.
// What is cut short ends it.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(len(b), (n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}
