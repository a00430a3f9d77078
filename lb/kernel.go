package lb

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// kernel speaks nf_tables over lasting netlink sockets: closing a socket
// after a deletion waits for the kernel's garbage collection, 12 ms and more.
type kernel struct {
	conn  *nftables.Conn
	batch *batch
}

// OpenKernel opens the nftables of the calling thread's network namespace.
// The handle stays in that namespace whichever thread uses it later.
func OpenKernel() (Kernel, error) {
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	return k, nil
}

func openKernel() (*kernel, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	b, err := openBatch()
	if err != nil {
		_ = c.CloseLasting()
		return nil, fmt.Errorf("open nftables: %w", explain(err))
	}
	return &kernel{c, b}, nil
}

func (k *kernel) Close() error { return errors.Join(k.conn.CloseLasting(), k.batch.close()) }

// explain marks the errors that an operator can do something about.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", errNoPermission, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%w: %w", errNotSupported, err)
	}
	return err
}

func (k *kernel) Generation() (uint32, error) {
	g, err := k.batch.generation()
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", explain(err))
	}
	return g, nil
}

func family(name string) nftables.TableFamily {
	if name == "bridge" {
		return nftables.TableFamilyBridge
	}
	return nftables.TableFamilyINet
}

// tables lists our tables that exist, by family name.
func (k *kernel) tables() (map[string]*nftables.Table, error) {
	out := make(map[string]*nftables.Table)
	for _, f := range []string{"inet", "bridge"} {
		ts, err := k.conn.ListTablesOfFamily(family(f))
		if err != nil {
			return nil, fmt.Errorf("list %s tables: %w", f, explain(err))
		}
		for _, t := range ts {
			if t.Name == TableName {
				out[f] = t
			}
		}
	}
	return out, nil
}

// DeleteTables deletes our tables, all in one transaction.
func (k *kernel) DeleteTables() ([]string, error) {
	ts, err := k.tables()
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, f := range []string{"inet", "bridge"} {
		if t, ok := ts[f]; ok {
			k.conn.DelTable(t)
			gone = append(gone, "nftables table "+f+" "+TableName)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	if err := k.conn.Flush(); err != nil {
		return nil, fmt.Errorf("delete %s: %w", strings.Join(gone, ", "), explain(err))
	}
	return gone, nil
}

func (k *kernel) Observe(elements bool) ([]Observed, error) {
	ts, err := k.tables()
	if err != nil {
		return nil, err
	}
	var out []Observed
	for _, f := range []string{"inet", "bridge"} {
		t, ok := ts[f]
		if !ok {
			continue
		}
		o, err := k.observe(f, t, elements)
		if errors.Is(err, unix.ENOENT) {
			continue // deleted while we looked
		}
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

func (k *kernel) observe(f string, t *nftables.Table, elements bool) (Observed, error) {
	o := Observed{Family: f, Shape: Shape{Table: fmt.Sprint(uint32(t.Flags)), Sets: map[string]string{}, Chains: map[string]string{}}}
	sets, err := k.conn.GetSets(t)
	if err != nil {
		return o, fmt.Errorf("list sets of table %s %s: %w", f, TableName, explain(err))
	}
	if elements {
		o.Elems = make(map[string][]Elem)
	}
	for _, s := range sets {
		o.Shape.Sets[s.Name] = describeSet(s)
		if !elements {
			continue
		}
		if o.Elems[s.Name], err = k.elements(s); err != nil {
			return o, fmt.Errorf("list set %s %s %s: %w", f, TableName, s.Name, explain(err))
		}
	}
	chains, err := k.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return o, fmt.Errorf("list %s chains: %w", f, explain(err))
	}
	for _, c := range chains {
		if c.Table.Name != TableName {
			continue
		}
		o.Shape.Chains[c.Name] = describeChain(c)
	}
	for name := range o.Shape.Chains {
		rules, err := k.conn.GetRules(t, &nftables.Chain{Name: name})
		if err != nil {
			return o, fmt.Errorf("list chain %s %s %s: %w", f, TableName, name, explain(err))
		}
		for _, r := range rules {
			o.Shape.Chains[name] += describeRule(t.Family, r.Exprs)
		}
	}
	return o, nil
}

// elements lists a set. The kernel hands out a hash set in parts, and finds
// the place to go on at by counting; when the hash grows or shrinks between
// two parts, as it does in the milliseconds after many changes, the order is
// another, and what was counted wrongly is missing. As many then came twice,
// and by those we see it (nft_rhash_walk; the dump is not flagged for it).
func (k *kernel) elements(s *nftables.Set) ([]Elem, error) {
	for try := range 10 {
		els, err := k.conn.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		if out := fromKernel(s, els); s.Dynamic || !twice(out) {
			return out, nil
		}
		time.Sleep(time.Millisecond << try)
	}
	return nil, errors.New("its order changed each time while it was listed")
}

// twice reports whether an element is in els, which are in order, more than
// once.
func twice(els []Elem) bool {
	for i := range els {
		if i > 0 && els[i].Key == els[i-1].Key && els[i].End == els[i-1].End {
			return true
		}
	}
	return false
}

func (k *kernel) Describe(t TableSpec) Shape {
	s := Shape{Table: "0", Sets: map[string]string{}, Chains: map[string]string{}}
	nt := &nftables.Table{Name: t.Name, Family: family(t.Family)}
	for i := range t.Sets {
		s.Sets[t.Sets[i].Name] = describeSet(kernelSet(nt, &t.Sets[i]))
	}
	for i := range t.Chains {
		d := describeChain(kernelChain(nt, &t.Chains[i]))
		for _, r := range t.Chains[i].Rules {
			d += describeRule(nt.Family, compile(nt.Family, r))
		}
		s.Chains[t.Chains[i].Name] = d
	}
	return s
}

func describeSet(s *nftables.Set) string {
	d := fmt.Sprintf("%d/%d", s.KeyType.GetNFTMagic(), s.KeyType.Bytes)
	switch {
	case s.IsMap && s.DataType.GetNFTMagic() == nftables.TypeVerdict.GetNFTMagic():
		d += " : verdict"
	case s.IsMap:
		d += fmt.Sprintf(" : %d/%d", s.DataType.GetNFTMagic(), s.DataType.Bytes)
	}
	if s.Interval {
		d += " interval"
	}
	if s.HasTimeout && s.Dynamic && s.Timeout == 0 {
		return d + fmt.Sprintf(" learned %d", s.Size)
	}
	if s.Anonymous || s.HasTimeout || s.Dynamic || s.Constant || s.Size != 0 {
		d += " not as ours"
	}
	return d
}

func describeChain(c *nftables.Chain) string {
	if c.Hooknum == nil || c.Priority == nil {
		return "chain;"
	}
	policy := nftables.ChainPolicyAccept
	if c.Policy != nil {
		policy = *c.Policy
	}
	return fmt.Sprintf("%s %d %d %d;", c.Type, *c.Hooknum, *c.Priority, policy)
}

func kernelChain(t *nftables.Table, c *Chain) *nftables.Chain {
	nc := &nftables.Chain{Name: c.Name, Table: t}
	if c.Type == "" {
		return nc
	}
	nc.Type = nftables.ChainType(c.Type)
	switch c.Hook {
	case "prerouting":
		nc.Hooknum = nftables.ChainHookPrerouting
	case "forward":
		nc.Hooknum = nftables.ChainHookForward
	case "output":
		nc.Hooknum = nftables.ChainHookOutput
	case "postrouting":
		nc.Hooknum = nftables.ChainHookPostrouting
	}
	nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	accept := nftables.ChainPolicyAccept
	nc.Policy = &accept
	return nc
}

func kernelSet(t *nftables.Table, s *Set) *nftables.Set {
	ns := &nftables.Set{Table: t, Name: s.Name, Interval: s.Interval, IsMap: len(s.Val) > 0, Concatenation: len(s.Key) > 1}
	if s.Learned > 0 {
		ns.Dynamic, ns.HasTimeout, ns.Size = true, true, uint32(s.Learned)
	}
	ns.KeyType = datatype(s.Key)
	if len(s.Key) == 1 && s.Key[0] == KindIfname {
		ns.KeyByteOrder = binaryutil.NativeEndian // else nft lists the names as empty
	}
	if ns.IsMap {
		ns.DataType = datatype(s.Val)
	}
	return ns
}

func datatype(kinds []Kind) nftables.SetDatatype {
	ts := make([]nftables.SetDatatype, len(kinds))
	for i, k := range kinds {
		switch k {
		case KindAddr:
			ts[i] = nftables.TypeIPAddr
		case KindAddr6:
			ts[i] = nftables.TypeIP6Addr
		case KindProto:
			ts[i] = nftables.TypeInetProto
		case KindPort:
			ts[i] = nftables.TypeInetService
		case KindSlot:
			ts[i] = nftables.TypeMark // a number of four bytes in host order
		case KindClass:
			ts[i] = nftables.TypeClassID
		case KindIfname:
			ts[i] = nftables.TypeIFName
		case KindEther:
			ts[i] = nftables.TypeEtherAddr
		case KindVerdict:
			ts[i] = nftables.TypeVerdict
		}
	}
	if len(ts) == 1 {
		return ts[0]
	}
	return nftables.MustConcatSetType(ts...) // at most four, five fit
}

// Apply performs o in one transaction. Deletions come first, since a key can
// be added again in the same transaction only after its deletion.
func (k *kernel) Apply(o Ops) error {
	if k.batch.takes(&o) {
		return k.batch.apply(o.Sets)
	}
	if err := k.compose(o); err != nil {
		return err
	}
	return explain(k.conn.Flush())
}

// compose queues o with google/nftables.
func (k *kernel) compose(o Ops) error {
	c := k.conn
	for i := range o.Replace {
		t := &o.Replace[i]
		nt := &nftables.Table{Name: t.Name, Family: family(t.Family)}
		// Adding first makes the deletion valid whether or not it was there.
		c.AddTable(nt)
		c.DelTable(nt)
		c.AddTable(nt)
		for j := range t.Chains {
			c.AddChain(kernelChain(nt, &t.Chains[j]))
		}
		for j := range t.Sets {
			if err := c.AddSet(kernelSet(nt, &t.Sets[j]), nil); err != nil {
				return fmt.Errorf("add set %s: %w", t.Sets[j].Name, err)
			}
		}
		for j := range t.Sets {
			if err := k.add(nt, &t.Sets[j], t.Sets[j].Elems); err != nil {
				return err
			}
		}
		for j := range t.Chains {
			k.rules(nt, &t.Chains[j])
		}
	}
	for i := range o.Chains {
		nt := &nftables.Table{Name: TableName, Family: family(o.Chains[i].Family)}
		nc := c.AddChain(kernelChain(nt, &o.Chains[i].Chain))
		if o.Chains[i].Flush {
			c.FlushChain(nc)
		}
		k.rules(nt, &o.Chains[i].Chain)
	}
	for i := range o.Sets {
		s := &o.Sets[i]
		nt := &nftables.Table{Name: TableName, Family: family(s.Family)}
		ns := kernelSet(nt, &s.Set)
		if s.Flush {
			c.FlushSet(ns)
		}
		if err := c.SetDeleteElements(ns, toKernel(&s.Set, s.Del)); err != nil {
			return fmt.Errorf("delete elements of set %s: %w", s.Set.Name, err)
		}
	}
	for i := range o.Sets {
		s := &o.Sets[i]
		nt := &nftables.Table{Name: TableName, Family: family(s.Family)}
		if err := k.add(nt, &s.Set, s.Add); err != nil {
			return err
		}
	}
	return nil
}

func (k *kernel) add(t *nftables.Table, s *Set, elems []Elem) error {
	if err := k.conn.SetAddElements(kernelSet(t, s), toKernel(s, elems)); err != nil {
		return fmt.Errorf("add elements to set %s: %w", s.Name, err)
	}
	return nil
}

func (k *kernel) rules(t *nftables.Table, c *Chain) {
	for _, r := range c.Rules {
		k.conn.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: c.Name, Table: t}, Exprs: compile(t.Family, r)})
	}
}
