package lb

import (
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

type (
	// MatchKnown matches packets of flows that passed before, and those that
	// answer such a flow without belonging to it, such as ICMP errors.
	MatchKnown struct{}
	// Count counts the packets that come this far.
	Count struct{}
)

func (MatchKnown) String() string { return "ct state established,related" }
func (Count) String() string      { return "counter" }

// policyStmt compiles the statements of this file.
func (c *compiler) policyStmt(s Stmt) {
	switch s.(type) {
	case MatchKnown: // [ ct load state => reg 1 ]
		c.add(&expr.Ct{Key: expr.CtKeySTATE, Register: 1})
		c.mask(binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED))
		c.equal(true, 0, 0, 0, 0)
	case Count: // [ counter pkts 0 bytes 0 ]
		c.add(&expr.Counter{})
	}
}
