package announce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the nft table, of family netdev, that is ours alone.
const TableName = "nodenet"

// keepTime is for how long the kernel goes on answering for an address when
// this daemon is not there: longer than a restart takes, and not much longer,
// because what it answers for then is not kept up to date. keepEvery is how
// often the time is set anew.
const (
	keepTime  = 10 * time.Second
	keepEvery = 3 * time.Second
)

// Station is a link with the IPv4 addresses that are answered for on it.
type Station struct {
	Link  Link
	Addrs []netip.Addr
}

// Responder makes the kernel itself answer ARP, so that a restart of the
// daemon leaves no ask without an answer:
//
//	table netdev nodenet {
//		set addrs-2 { type ipv4_addr; flags timeout; elements = { 192.0.2.200 timeout 10s } }
//		chain link-2 {
//			type filter hook ingress device "eth0" priority -500
//			arp operation request arp daddr ip @addrs-2 …   # turned into the reply
//			dup to "eth0" drop
//		}
//	}
//
// The elements' timeout is what keeps a dead daemon from answering against
// the node that took over. Asks that the rule answers reach no socket. What it
// leaves to the daemon: claims of others, neighbour discovery (in which a
// reply is not a request with fields exchanged), and everything on kernels
// without nft_dup_netdev.
//
// Not safe for concurrent use.
type Responder struct {
	conn  *nftables.Conn
	table *nftables.Table
	now   []Station // what the kernel has; nil: not known
	time  time.Duration
}

// OpenResponder opens the nftables of the calling thread's network namespace.
func OpenResponder() (*Responder, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Responder{conn: c, table: &nftables.Table{Family: nftables.TableFamilyNetdev, Name: TableName}, time: keepTime}, nil
}

// Close leaves the rules as they are.
func (r *Responder) Close() error { return r.conn.CloseLasting() }

func setName(index int) string   { return "addrs-" + strconv.Itoa(index) }
func chainName(index int) string { return "link-" + strconv.Itoa(index) }

// Kept lists the addresses that the kernel answers for now.
func (r *Responder) Kept() ([]netip.Addr, error) {
	tables, err := r.conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list netdev tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }) {
		return nil, nil
	}
	sets, err := r.conn.GetSets(r.table)
	if err != nil {
		return nil, fmt.Errorf("list sets of table netdev %s: %w", TableName, err)
	}
	var out []netip.Addr
	for _, s := range sets {
		elems, err := r.conn.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", s.Name, err)
		}
		for _, e := range elems {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// Keep makes the kernel answer for exactly these addresses, for keepTime from
// now. Links must be the same, in the same order, for it to be a change of
// elements; otherwise all is replaced in one transaction.
func (r *Responder) Keep(want []Station) error {
	if r.now != nil && slices.EqualFunc(r.now, want, sameStation) {
		if err := r.renew(want); err == nil {
			return nil
		}
		// Somebody flushed the rules, or an element was gone before it was
		// renewed: the machine slept.
	}
	r.now = nil
	if err := r.replace(want); err != nil {
		return fmt.Errorf("make the kernel answer ARP: %w", err)
	}
	r.now = slices.Clone(want)
	if r.now == nil {
		r.now = []Station{}
	}
	return nil
}

func sameStation(a, b Station) bool {
	return a.Link.Index == b.Link.Index && a.Link.Name == b.Link.Name && a.Link.MAC == b.Link.MAC
}

func (r *Responder) renew(want []Station) error {
	for i := range want {
		s := &nftables.Set{Table: r.table, Name: setName(want[i].Link.Index), KeyType: nftables.TypeIPAddr, HasTimeout: true}
		if was := elements(r.now[i].Addrs, 0); len(was) > 0 {
			if err := r.conn.SetDeleteElements(s, was); err != nil {
				return err
			}
		}
		if is := elements(want[i].Addrs, r.time); len(is) > 0 {
			if err := r.conn.SetAddElements(s, is); err != nil {
				return err
			}
		}
	}
	if err := r.conn.Flush(); err != nil {
		return err
	}
	r.now = slices.Clone(want)
	return nil
}

func elements(addrs []netip.Addr, timeout time.Duration) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range addrs {
		if a.Is4() {
			out = append(out, nftables.SetElement{Key: a.AsSlice(), Timeout: timeout})
		}
	}
	return out
}

// replace puts the whole table anew. With nothing to answer for there is none.
func (r *Responder) replace(want []Station) error {
	r.conn.AddTable(r.table) // deleting what is not there is an error
	r.conn.DelTable(r.table)
	if len(want) > 0 {
		r.conn.AddTable(r.table)
	}
	for i := range want {
		l := &want[i].Link
		set := &nftables.Set{Table: r.table, Name: setName(l.Index), KeyType: nftables.TypeIPAddr, HasTimeout: true}
		if err := r.conn.AddSet(set, elements(want[i].Addrs, r.time)); err != nil {
			return err
		}
		early := nftables.ChainPriority(-500)
		chain := r.conn.AddChain(&nftables.Chain{
			Table: r.table, Name: chainName(l.Index), Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: &early, Device: l.Name,
		})
		r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: reply(set, l)})
	}
	return r.conn.Flush()
}

// reply turns an ask for an address of the set into its answer and sends it
// back. Offsets in the ARP packet: 6 operation, 8 sender MAC, 14 sender
// address, 18 target MAC, 24 target address.
func reply(set *nftables.Set, l *Link) []expr.Any {
	const network, link = expr.PayloadBaseNetworkHeader, expr.PayloadBaseLLHeader
	load := func(base expr.PayloadBase, offset, size, reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}
	}
	store := func(base expr.PayloadBase, offset, size, reg uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: base, Offset: offset, Len: size}
	}
	mac := append(l.MAC[:], 0, 0) // registers are filled in words
	return []expr.Any{
		// meta pkttype != other: what a promiscuous interface overhears is not for us.
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.PACKET_OTHERHOST}},
		// The Ethernet type as sent: one of another VLAN on this interface has a tag there.
		load(link, 12, 2, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x08, 0x06}},
		load(network, 0, 8, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append(arpHead[:], 0, 1)},
		// arp saddr ip != @addrs: that is another's claim.
		load(network, 14, 4, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
		load(network, 24, 4, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		load(network, 14, 4, 2),
		load(network, 8, 6, 3),
		store(network, 14, 4, 1),
		store(network, 24, 4, 2),
		store(network, 18, 6, 3),
		store(link, 0, 6, 3),
		&expr.Immediate{Register: 1, Data: mac},
		store(network, 8, 6, 1),
		store(link, 6, 6, 1),
		&expr.Immediate{Register: 1, Data: []byte{0, 2}},
		store(network, 6, 2, 1),
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: nativeWord(l.Index)},
		&expr.Dup{RegDev: 1, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Cleanup deletes the table netdev nodenet of the calling thread's network
// namespace. It returns what it deleted; a table that is not there is no error.
func Cleanup(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := OpenResponder()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	r.conn.DelTable(r.table)
	switch err := r.conn.Flush(); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("delete table netdev %s: %w", TableName, err)
	}
	return []string{"nftables table netdev " + TableName}, nil
}
