package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// register returns the number of the register at a four-byte index. The
// kernel reports multiples of four by their old names, so those are used.
func register(i int) uint32 {
	if i%4 == 0 {
		return uint32(unix.NFT_REG_1 + i/4)
	}
	return uint32(unix.NFT_REG32_00 + i)
}

// compiler turns the statements of one rule into expressions.
type compiler struct {
	family nftables.TableFamily
	out    []expr.Any
	only   [len(versions)]bool // the rule already matches this version only
}

// compile returns a rule's expressions. Each case is preceded by what
// `nft --debug=netlink` prints for it.
func compile(f nftables.TableFamily, r Rule) []expr.Any {
	c := &compiler{family: f}
	for _, s := range r {
		c.stmt(s)
	}
	return c.out
}

func (c *compiler) add(e ...expr.Any) { c.out = append(c.out, e...) }

// need restricts the rule to a version before it reads that version's header.
func (c *compiler) need(v Version) {
	if c.only[v] {
		return
	}
	c.only[v] = true
	if c.family == nftables.TableFamilyBridge {
		// [ meta load protocol => reg 1 ] [ cmp eq reg 1 0x00000008 ]
		ethertype := [...]uint16{V4: unix.ETH_P_IP, V6: unix.ETH_P_IPV6}[v]
		c.add(&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(ethertype)})
		return
	}
	// [ meta load nfproto => reg 1 ] [ cmp eq reg 1 0x00000002 ]
	c.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(nfproto(v))}})
}

// nfproto is the number that nf_tables has for a version.
func nfproto(v Version) uint32 {
	return [...]uint32{V4: unix.NFPROTO_IPV4, V6: unix.NFPROTO_IPV6}[v]
}

// header loads an address of the network header.
// [ payload load 4b @ network header + 12 => reg 1 ]
func header(reg uint32, f Field) *expr.Payload {
	p := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if f.V == V6 {
		p.Offset, p.Len = 8, 16
	}
	if f.ID == FieldDaddr { // after the source's
		p.Offset += p.Len
	}
	return p
}

// load puts fields into registers from the first on.
func (c *compiler) load(fields ...Field) {
	for _, f := range fields {
		if f.versioned() {
			c.need(f.V)
		}
	}
	at := 0
	for _, f := range fields {
		reg := register(at)
		at += f.size() / 4
		switch f.ID {
		case FieldSaddr, FieldDaddr:
			c.add(header(reg, f))
		case FieldProto: // [ meta load l4proto => reg 9 ]
			c.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg})
		case FieldSport: // [ payload load 2b @ transport header + 0 => reg 10 ]
			c.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2})
		case FieldDport:
			c.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
		case FieldIif: // [ meta load iifname => reg 1 ]
			c.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg})
		case FieldOif:
			c.add(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg})
		case FieldOrigDaddr: // [ ct load dst_ip => reg 1 , dir original ]
			c.add(&expr.Ct{Key: [...]expr.CtKey{V4: expr.CtKeyDSTIP, V6: expr.CtKeyDSTIP6}[f.V], Register: reg, Direction: 0})
		case FieldOrigDport: // [ ct load proto_dst => reg 11 , dir original ]
			c.add(&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg, Direction: 0})
		case FieldHash: // [ payload load 4b @ network header + 12 => reg 11 ] [ hash reg 11 = jhash(reg 11, 4, 0x6e6f6465) % mod 2 ]
			from := header(reg, Field{ID: FieldSaddr, V: f.V})
			c.add(from, &expr.Hash{SourceRegister: reg, DestRegister: reg, Length: from.Len, Modulus: f.Mod, Seed: maglevSeed, Type: expr.HashTypeJenkins})
		case FieldPriority: // [ meta load priority => reg 11 ]
			c.add(&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg})
		case FieldSlot: // [ numgen reg 11 = random mod 2 ]
			c.add(&expr.Numgen{Register: reg, Modulus: f.Mod, Type: unix.NFT_NG_RANDOM})
		}
	}
}

// equal compares the first register. [ cmp eq reg 1 0x00003500 ]
func (c *compiler) equal(neg bool, data ...byte) {
	op := expr.CmpOpEq
	if neg {
		op = expr.CmpOpNeq
	}
	c.add(&expr.Cmp{Op: op, Register: 1, Data: data})
}

// mask keeps bits of the first register.
// [ bitwise reg 1 = ( reg 1 & 0x0000f0ff ) ^ 0x00000000 ]
func (c *compiler) mask(m []byte) {
	c.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))})
}

// lookup reads a map into the first register. [ lookup reg 1 set svc dreg 1 ]
func (c *compiler) lookup(fields []Field, name string) {
	c.load(fields...)
	c.add(&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: name})
}

// dynset changes a map whose values are priorities.
func (c *compiler) dynset(fields []Field, d *expr.Dynset) {
	c.load(append(slices.Clip(fields), priority)...)
	at := 0
	for _, f := range fields {
		at += f.size() / 4
	}
	d.SrcRegKey, d.SrcRegData = register(0), register(at)
	c.add(d)
}

// icmpType matches the protocol and loads the message's type.
// [ payload load 1b @ transport header + 0 => reg 1 ]
func (c *compiler) icmpType(v Version) {
	c.stmt(MatchProto{icmp(v)})
	c.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1})
}

func (c *compiler) stmt(s Stmt) {
	switch s := s.(type) {
	case MatchAddr:
		c.load(s.F)
		if !s.Prefix.IsSingleIP() {
			c.mask(maskOf(s.Prefix))
		}
		c.equal(s.Not, s.Prefix.Masked().Addr().AsSlice()...)
	case MatchProto:
		c.load(proto)
		c.equal(false, s.Proto)
	case MatchPort:
		c.load(s.F)
		c.equal(false, binaryutil.BigEndian.PutUint16(s.Port)...)
	case MatchEcho:
		c.need(s.V)
		c.icmpType(s.V)
		c.equal(false, [...]byte{V4: 8, V6: 128}[s.V])
	case MatchNeighbour:
		c.need(V6)
		c.icmpType(V6)
		c.add(&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{133}},
			&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{137}})
	case MatchIPv6:
		c.need(V6)
	case MatchLocal: // [ fib daddr type => reg 1 ] [ cmp eq reg 1 0x00000002 ]
		c.add(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: s.F.ID == FieldDaddr, FlagSADDR: s.F.ID == FieldSaddr})
		c.equal(false, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)...)
	case MatchDNAT: // IPS_DST_NAT
		c.add(&expr.Ct{Key: expr.CtKeySTATUS, Register: 1})
		c.mask(binaryutil.NativeEndian.PutUint32(1 << 5))
		c.equal(true, 0, 0, 0, 0)
	case MatchState: // [ ct load state => reg 1 ]
		bit := expr.CtStateBitINVALID
		if s.Related {
			bit = expr.CtStateBitRELATED
		}
		c.add(&expr.Ct{Key: expr.CtKeySTATE, Register: 1})
		c.mask(binaryutil.NativeEndian.PutUint32(bit))
		c.equal(true, 0, 0, 0, 0)
	case MatchUnicast: // [ payload load 6b @ link header + 0 => reg 1 ]
		c.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6})
		c.mask([]byte{1, 0, 0, 0, 0, 0})
		c.equal(false, 0, 0, 0, 0, 0, 0)
	case MatchSet: // [ lookup reg 1 set vips 0x0 ]
		c.load(s.Fields...)
		c.add(&expr.Lookup{SourceRegister: 1, SetName: s.Set, Invert: s.Not})
	case SetPriority: // [ meta set priority with reg 1 ]
		c.lookup(s.Fields, s.Map)
		c.add(&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1})
	case ClearPriority: // [ immediate reg 1 0x00000000 ] [ meta set priority with reg 1 ]
		c.add(&expr.Immediate{Register: 1, Data: []byte{0, 0, 0, 0}},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1})
	case PutPriority:
		c.add(&expr.Immediate{Register: 1, Data: []byte(s.Class.elem())},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1})
	case MatchPriority: // [ meta load priority => reg 1 ]
		c.load(priority)
		if s.Mask != ^class(0) {
			c.mask([]byte(s.Mask.elem()))
		}
		c.equal(false, []byte(s.Value.elem())...)
	case Learn: // [ dynset update reg_key 1 set aff sreg_data 2 timeout 10800000ms ]
		c.dynset(s.Fields, &expr.Dynset{SetName: s.Map, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: time.Duration(s.Seconds) * time.Second})
	case Unlearn: // [ dynset delete reg_key 1 set aff sreg_data 2 ]
		const opDelete = 2 // NFT_DYNSET_OP_DELETE
		c.dynset(s.Fields, &expr.Dynset{SetName: s.Map, Operation: opDelete})
	case PriorityVmap: // [ meta load priority => reg 1 ] [ lookup reg 1 set bkt dreg 0 ]
		c.add(&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
			&expr.Lookup{SourceRegister: 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Map})
	case ProtoVmap:
		c.load(proto)
		c.add(&expr.Lookup{SourceRegister: 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Map})
	case DNATMap: // [ nat dnat ip addr_min reg 1 proto_min reg 9 ]
		c.need(s.V) // before the lookup: it uses the first register too
		c.lookup(s.Fields, s.Map)
		nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: nfproto(s.V), RegAddrMin: register(0), RegAddrMax: register(0)}
		if !s.KeepPort {
			nat.RegProtoMin = register(addrKind(s.V).size() / 4)
			nat.RegProtoMax, nat.Specified = nat.RegProtoMin, true
		}
		c.add(nat)
	case DNATAddr: // [ immediate reg 1 0x0a00600a ] [ nat dnat ip addr_min reg 1 ]
		v := versionOf(s.Addr)
		c.need(v)
		c.add(&expr.Immediate{Register: 1, Data: s.Addr.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfproto(v), RegAddrMin: 1, RegAddrMax: 1})
	case Masquerade: // [ masq flags 0x10 ]
		c.add(&expr.Masq{FullyRandom: true})
	case Reject:
		if s.Reset {
			c.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
			return
		}
		c.need(s.V)
		// Port or protocol unreachable: RFC 792, RFC 4443 §3.1.
		code := [...]uint8{V4: 3, V6: 4}[s.V]
		if s.Protocol {
			code = 2
		}
		c.add(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code})
	case Notrack:
		c.add(&expr.Notrack{})
	case Lift: // [ payload write reg 1 => 6b @ link header + 0 ] [ meta set pkttype with reg 1 ]
		c.lookup(s.Fields, s.Map)
		c.add(&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
			&expr.Immediate{Register: 1, Data: []byte{unix.PACKET_HOST}},
			&expr.Meta{Key: expr.MetaKeyPKTTYPE, SourceRegister: true, Register: 1})
	case MatchSyn, ClampMSS:
		c.mssStmt(s)
	case MatchKnown, Count:
		c.policyStmt(s)
	case MatchError, MatchFragment:
		c.bridgeStmt(s)
	case Do:
		c.add(verdict(s))
	default:
		panic(fmt.Sprintf("lb: no compilation of %T", s)) // a statement type was added without its case
	}
}

func verdict(s Do) *expr.Verdict {
	v := &expr.Verdict{Chain: s.Chain}
	switch s.Verb {
	case "accept":
		v.Kind = expr.VerdictAccept
	case "drop":
		v.Kind = expr.VerdictDrop
	case "return":
		v.Kind = expr.VerdictReturn
	case "jump":
		v.Kind = expr.VerdictJump
	case "goto":
		v.Kind = expr.VerdictGoto
	default:
		panic("lb: no verdict " + s.Verb)
	}
	return v
}

func gotoChain(name string) *expr.Verdict { return verdict(Do{"goto", name}) }

func maskOf(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// describeRule prints expressions in a form to compare: their netlink
// encoding, but for set IDs, which mean something only inside a transaction.
func describeRule(f nftables.TableFamily, es []expr.Any) string {
	d := ""
	for _, e := range es {
		switch l := e.(type) {
		case *expr.Lookup:
			c := *l
			c.SetID = 0
			e = &c
		case *expr.Dynset: // the library does not read the register of the value
			c := *l
			c.SetID, c.SrcRegData = 0, 0
			e = &c
		case *expr.Rt, *expr.Byteorder: // nor these at all; what follows them is read
			continue
		}
		if _, ok := e.(*expr.Counter); ok {
			e = &expr.Counter{} // whatever it has counted
		}
		b, err := expr.Marshal(byte(f), e)
		if err != nil {
			return d + "?" + err.Error()
		}
		d += fmt.Sprintf("%x,", b)
	}
	return d + ";"
}
