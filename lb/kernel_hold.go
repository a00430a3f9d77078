package lb

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// HoldName is the name of the two tables, in the families inet and bridge,
// that keep flows alive while the daemon runs and somebody flushes all rules.
const HoldName = "nodenet-hold"

// hold is the tables inet and bridge nodenet-hold. With the last NAT chain of a
// network namespace the kernel stops to translate packets of the flows that it
// has, and with the last rule that asks conntrack it stops to track: after `nft
// flush ruleset` a server would answer the next packet of a translated TCP flow
// with a reset. The first table has a NAT chain on each hook and one rule that
// asks conntrack, none of which does anything to a packet.
//
// The second one lifts the answers of backends as table bridge nodenet does,
// after it, by copies of its maps. An answer that is switched to a client on the
// same bridge instead reaches one that never heard of the backend's address:
// it sends the backend a reset, and since the client's address was kept, that
// ends the backend's connection.
//
// Their flag "owner" (NFT_TABLE_F_OWNER, Linux 5.12) makes `flush ruleset` of
// everybody else pass over them, and the kernel removes them when the socket
// that made them closes, however the daemon ends: nothing is left to clean up.
// It is not safe for concurrent use.
type hold struct {
	conn *nftables.Conn
	sets []Set // of table bridge, without elements
}

// openHold makes the tables in the calling thread's network namespace. Without
// the kernel's support it is an error that wraps errNotSupported.
func openHold() (*hold, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	h := &hold{conn: c, sets: heldSets((&Table{}).liftSets())}
	err = h.make()
	if errors.Is(err, unix.EOPNOTSUPP) {
		// The kernel gives an owner to a table that is being made only. One
		// without came from a saved listing of the rules, and is anybody's to
		// delete.
		for _, f := range []string{"inet", "bridge"} {
			t := holdTable(f, 0)
			c.AddTable(t) // so that it is there to be deleted
			c.DelTable(t)
		}
		if err = c.Flush(); err == nil {
			err = h.make()
		}
	}
	if err != nil {
		_ = c.CloseLasting()
		if errors.Is(err, unix.EINVAL) { // what a kernel before 5.12 says of a flag that it does not know
			err = fmt.Errorf("%w: %w", errNotSupported, err)
		}
		return nil, fmt.Errorf("add tables %s: %w", HoldName, explain(err))
	}
	return h, nil
}

func holdTable(of string, flags nftables.TableFlags) *nftables.Table {
	return &nftables.Table{Name: HoldName, Family: family(of), Flags: flags}
}

// heldSets are those of table bridge that are copied.
func heldSets(sets []Set) []Set {
	return slices.DeleteFunc(slices.Clone(sets), func(s Set) bool { return !held(s.Name) })
}

// held reports whether a set of table bridge is copied. Errors, fragments and
// policies wait for the repair: what is lost of them meanwhile ends no flow.
func held(name string) bool { return name == "backends" || name == "backends6" }

// make adds both tables in one transaction.
func (h *hold) make() error {
	c := h.conn
	t := c.AddTable(holdTable("inet", nftables.TableFlagOwner))
	for _, b := range holdChains {
		c.AddChain(&nftables.Chain{Table: t, Name: b.name, Type: nftables.ChainTypeNAT, Hooknum: b.hook, Priority: b.priority})
	}
	// No packet gets to a chain without a hook to which nobody jumps.
	tracked := c.AddChain(&nftables.Chain{Table: t, Name: "tracked"})
	c.AddRule(&nftables.Rule{Table: t, Chain: tracked, Exprs: compile(t.Family, Rule{MatchDNAT{}, accept})})

	t = c.AddTable(holdTable("bridge", nftables.TableFlagOwner))
	for i := range h.sets {
		if err := c.AddSet(kernelSet(t, &h.sets[i]), nil); err != nil {
			return fmt.Errorf("add set %s: %w", h.sets[i].Name, err)
		}
	}
	lift := c.AddChain(kernelChain(t, &Chain{Name: "lift", Type: "filter", Hook: "prerouting", Priority: 1})) // after ours
	for _, r := range answerRules() {
		c.AddRule(&nftables.Rule{Table: t, Chain: lift, Exprs: compile(t.Family, r)})
	}
	return c.Flush()
}

// fill makes the copies equal to the sets of table bridge.
func (h *hold) fill(sets []Set) error {
	var ops []SetOp
	for _, s := range heldSets(sets) {
		ops = append(ops, SetOp{Family: "bridge", Set: s, Flush: true, Add: s.Elems})
	}
	return h.apply(ops)
}

// ofHeld are the operations on sets that are copied.
func ofHeld(ops []SetOp) (out []SetOp) {
	for _, o := range ops {
		if o.Family == "bridge" && held(o.Set.Name) {
			out = append(out, o)
		}
	}
	return out
}

// apply makes changes to the copies, in one transaction.
func (h *hold) apply(ops []SetOp) error {
	t := holdTable("bridge", nftables.TableFlagOwner)
	for i := range ops {
		s := kernelSet(t, &ops[i].Set)
		if ops[i].Flush {
			h.conn.FlushSet(s)
		}
		if err := h.conn.SetDeleteElements(s, toKernel(&ops[i].Set, ops[i].Del)); err != nil {
			return fmt.Errorf("delete elements of set %s: %w", s.Name, err)
		}
	}
	for i := range ops {
		s := kernelSet(t, &ops[i].Set)
		if err := h.conn.SetAddElements(s, toKernel(&ops[i].Set, ops[i].Add)); err != nil {
			return fmt.Errorf("add elements to set %s: %w", s.Name, err)
		}
	}
	return explain(h.conn.Flush())
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

// close removes the tables, which disturbs no flow while ours are there. A nil
// hold has none.
func (h *hold) close() {
	if h != nil {
		_ = h.conn.CloseLasting()
	}
}

// errUnknown says that it is not known what the copies lack.
var errUnknown = errors.New("all copies are made anew")

// keepHold makes the copies follow a transaction that is done, or all of them
// anew where the book is. What goes wrong is no error: they serve in a moment that
// may never come.
//
// The generation that this makes is not taken for ours: filling empty copies
// with nothing makes none, and then the next one is somebody else's. The watch
// tells that it touched nothing of ours.
func (b *LB) keepHold(now *book, ops Ops) {
	changes := ofHeld(ops.Sets)
	if b.hold == nil || now == b.book && len(changes) == 0 {
		return
	}
	err := errUnknown
	if now == b.book {
		err = b.hold.apply(changes)
	}
	if err != nil {
		t := Table{LocalBackends: now.localBackends()}
		err = b.hold.fill(t.liftSets())
	}
	if err != nil {
		b.log.Warn("connections between workloads of one bridge may be reset when somebody flushes all rules", "table", "bridge "+HoldName, "err", err)
	}
}
