package lb

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A host behind a link of 1500 bytes asks its peers for segments that a tunnel
// cannot carry whole: a client outside, or a workload whose interface kept an
// older MTU. Path MTU discovery (RFC 1191, RFC 8201) would find that out, where
// nobody on the way drops the ICMP errors. So the maximum segment size that a
// SYN asks for is lowered on its way into the tunnel.
type (
	// MatchSyn matches TCP segments that open a connection, the answering
	// SYN+ACK too: both carry the option (RFC 9293 section 3.7.1). A match of
	// the protocol comes before it.
	MatchSyn struct{}
	// ClampMSS lowers the maximum segment size, if the packet has the option,
	// to what the MTUs of the routes to its destination and back to its source
	// allow; the kernel never raises it (nft_exthdr_tcp_set_eval).
	ClampMSS struct{}
)

func (MatchSyn) String() string { return "tcp flags & (syn | rst) == syn" }
func (ClampMSS) String() string { return "tcp option maxseg size set rt mtu" }

// clampRule is the rule of chain forward. Connections of the node itself need
// none: whoever answers them through a tunnel sends by its own link's MTU.
func clampRule() Rule {
	return Rule{fullTCP, MatchSyn{}, MatchSet{Fields: []Field{oif}, Set: "tunnels"}, ClampMSS{}}
}

// mssStmt compiles the statements of this file.
func (c *compiler) mssStmt(s Stmt) {
	switch s.(type) {
	case MatchSyn: // [ payload load 1b @ transport header + 13 => reg 1 ] [ bitwise reg 1 = ( reg 1 & 0x00000006 ) ^ 0x00000000 ]
		c.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1})
		c.mask([]byte{synFlag | rstFlag})
		c.equal(false, synFlag)
	case ClampMSS: // [ rt load tcpmss => reg 1 ] [ byteorder reg 1 = hton(reg 1, 2, 2) ] [ exthdr write tcpopt reg 1 => 2b @ 2 + 2 ]
		const maxseg = 2 // the option's kind
		c.add(&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: unix.NFT_BYTEORDER_HTON, Len: 2, Size: 2},
			&expr.Exthdr{SourceRegister: 1, Type: maxseg, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt})
	}
}

// Bits of the fourteenth byte of a TCP header.
const synFlag, rstFlag = 1 << 1, 1 << 2
