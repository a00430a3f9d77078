package lb

import (
	"fmt"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

type (
	// MatchPriority compares the packet's priority with a number that a map gave.
	MatchPriority struct{ N uint32 }
	// MatchKnown matches packets of flows that passed before, and those that
	// answer such a flow without belonging to it, such as ICMP errors.
	MatchKnown struct{}
	// Count counts the packets that come this far.
	Count struct{}
)

func (s MatchPriority) String() string {
	return fmt.Sprintf("meta priority %x:%x", s.N>>16, s.N&0xffff)
}
func (MatchKnown) String() string { return "ct state established,related" }
func (Count) String() string      { return "counter" }

// policyStmt compiles the statements of this file.
func (c *compiler) policyStmt(s Stmt) {
	switch s := s.(type) {
	case MatchPriority: // [ meta load priority => reg 1 ] [ cmp eq reg 1 0x00000001 ]
		c.load(priority)
		c.equal(false, binaryutil.NativeEndian.PutUint32(s.N)...)
	case MatchKnown: // [ ct load state => reg 1 ]
		c.add(&expr.Ct{Key: expr.CtKeySTATE, Register: 1})
		c.mask(binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED))
		c.equal(true, 0, 0, 0, 0)
	case Count: // [ counter pkts 0 bytes 0 ]
		c.add(&expr.Counter{})
	}
}
