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

// Station is a link with the addresses that are answered for on it.
type Station struct {
	Link  Link
	Addrs []netip.Addr
}

// Responder makes the kernel itself answer ARP and neighbour discovery, so that
// a restart of the daemon leaves no ask without an answer:
//
//	table netdev nodenet {
//		set addrs-2 { type ipv4_addr; flags timeout; elements = { 192.0.2.200 timeout 10s } }
//		set addrs6-2 { type ipv6_addr; flags timeout; elements = { 2001:db8::200 timeout 10s } }
//		chain link-2 {
//			type filter hook ingress device "eth0" priority -500
//			arp operation request arp daddr ip @addrs-2 …   # turned into the reply
//			dup to "eth0" drop
//			icmpv6 type nd-neighbor-solicit icmpv6 taddr @addrs6-2 …
//			dup to "eth0" drop
//		}
//	}
//
// The elements' timeout is what keeps a dead daemon from answering against
// the node that took over. Asks that a rule answers reach no socket. What it
// leaves to the daemon: claims of others, solicitations without the one option
// that they usually have, and everything on kernels without nft_dup_netdev.
// Set and rule for IPv6 exist where a link has such an address.
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
func setName6(index int) string  { return "addrs6-" + strconv.Itoa(index) }
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
		return fmt.Errorf("make the kernel answer for addresses: %w", err)
	}
	r.now = slices.Clone(want)
	if r.now == nil {
		r.now = []Station{}
	}
	return nil
}

// sameStation reports whether two stations have the same sets and rules.
func sameStation(a, b Station) bool {
	six := a.has6()
	return a.Link.Index == b.Link.Index && a.Link.Name == b.Link.Name && a.Link.MAC == b.Link.MAC &&
		six == b.has6() && (!six || a.Link.Local == b.Link.Local)
}

func (s Station) has6() bool { return slices.ContainsFunc(s.Addrs, netip.Addr.Is6) }

// sets are those of a station: for IPv4, and for IPv6 where it has such addresses.
func (r *Responder) sets(s *Station) []*nftables.Set {
	out := []*nftables.Set{{Table: r.table, Name: setName(s.Link.Index), KeyType: nftables.TypeIPAddr, HasTimeout: true}}
	if s.has6() {
		out = append(out, &nftables.Set{Table: r.table, Name: setName6(s.Link.Index), KeyType: nftables.TypeIP6Addr, HasTimeout: true})
	}
	return out
}

func (r *Responder) renew(want []Station) error {
	for i := range want {
		for _, s := range r.sets(&want[i]) {
			if was := elements(s, r.now[i].Addrs, 0); len(was) > 0 {
				if err := r.conn.SetDeleteElements(s, was); err != nil {
					return err
				}
			}
			if is := elements(s, want[i].Addrs, r.time); len(is) > 0 {
				if err := r.conn.SetAddElements(s, is); err != nil {
					return err
				}
			}
		}
	}
	if err := r.conn.Flush(); err != nil {
		return err
	}
	r.now = slices.Clone(want)
	return nil
}

// elements are the addresses of the set's IP version.
func elements(s *nftables.Set, addrs []netip.Addr, timeout time.Duration) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range addrs {
		if a.Is4() == (s.KeyType == nftables.TypeIPAddr) {
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
		sets := r.sets(&want[i])
		for _, set := range sets {
			if err := r.conn.AddSet(set, elements(set, want[i].Addrs, r.time)); err != nil {
				return err
			}
		}
		early := nftables.ChainPriority(-500)
		chain := r.conn.AddChain(&nftables.Chain{
			Table: r.table, Name: chainName(l.Index), Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: &early, Device: l.Name,
		})
		r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: reply(sets[0], l)})
		if len(sets) > 1 {
			r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: advertise(sets[1], l)})
		}
	}
	return r.conn.Flush()
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
