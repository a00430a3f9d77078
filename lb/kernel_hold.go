package lb

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// HoldName is the table that keeps the kernel's address translation alive
// while the daemon runs.
const HoldName = "nodenet-hold"

// hold is the table inet nodenet-hold. With the last NAT chain of a network
// namespace the kernel stops to translate packets of the flows that it has, and
// with the last rule that asks conntrack it stops to track: after `nft flush
// ruleset` a server would answer the next packet of a translated TCP flow with
// a reset. This table has a NAT chain on each hook and one rule that asks
// conntrack, none of which does anything to a packet.
//
// Its flag "owner" (NFT_TABLE_F_OWNER, Linux 5.12) makes `flush ruleset` of
// everybody else pass over it, and the kernel removes it when the socket that
// made it closes, however the daemon ends: nothing is left to clean up.
type hold struct {
	conn *nftables.Conn
}

// openHold makes the table in the calling thread's network namespace. Without
// the kernel's support it is an error that wraps errNotSupported.
func openHold() (*hold, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	err = addHold(c)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// The kernel gives an owner to a table that is being made only. One
		// without came from a saved listing of the rules, and is anybody's to
		// delete.
		c.DelTable(holdTable(0))
		if err = c.Flush(); err == nil {
			err = addHold(c)
		}
	}
	if err != nil {
		_ = c.CloseLasting()
		if errors.Is(err, unix.EINVAL) { // what a kernel before 5.12 says of a flag that it does not know
			err = fmt.Errorf("%w: %w", errNotSupported, err)
		}
		return nil, fmt.Errorf("add table inet %s: %w", HoldName, explain(err))
	}
	return &hold{c}, nil
}

func holdTable(flags nftables.TableFlags) *nftables.Table {
	return &nftables.Table{Name: HoldName, Family: nftables.TableFamilyINet, Flags: flags}
}

// addHold makes the table in one transaction.
func addHold(c *nftables.Conn) error {
	t := c.AddTable(holdTable(nftables.TableFlagOwner))
	for _, b := range holdChains {
		c.AddChain(&nftables.Chain{Table: t, Name: b.name, Type: nftables.ChainTypeNAT, Hooknum: b.hook, Priority: b.priority})
	}
	// No packet gets to a chain without a hook to which nobody jumps.
	tracked := c.AddChain(&nftables.Chain{Table: t, Name: "tracked"})
	c.AddRule(&nftables.Rule{Table: t, Chain: tracked, Exprs: compile(t.Family, Rule{MatchDNAT{}, accept})})
	return c.Flush()
}

// The priorities are those at which everybody has such chains. An empty one
// leaves the decision to the others of its hook, before or after it.
var holdChains = []struct {
	name     string
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
}{
	{"prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest},
	{"input", nftables.ChainHookInput, nftables.ChainPriorityNATSource},
	{"output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest},
	{"postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource},
}

// close removes the table, which disturbs no flow while there is another NAT
// chain. A nil hold has none.
func (h *hold) close() {
	if h != nil {
		_ = h.conn.CloseLasting()
	}
}
