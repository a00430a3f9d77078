package lb

import (
	"errors"
	"fmt"
	"strings"
)

var (
	errNoPermission = errors.New("not permitted")
	errNotSupported = errors.New("not supported by this kernel")
)

// Kernel is the system's nftables, or a test's stand-in. Its methods are
// called from one goroutine at a time.
type Kernel interface {
	// Observe lists our tables that exist. With elements false it lists no
	// elements, and costs the same however many there are.
	Observe(elements bool) ([]Observed, error)
	// Describe gives the shape that a table would be observed with.
	Describe(TableSpec) Shape
	// Apply performs all operations in one transaction, or none of them.
	Apply(Ops) error
	// Generation is a number that every transaction of anybody raises by one.
	Generation() (uint32, error)
	Close() error
}

// Shape is a table without its elements, in a form to compare.
type Shape struct {
	Table  string            // flags
	Sets   map[string]string // name → type, flags
	Chains map[string]string // name → hook and rules
}

// Equal reports whether two shapes are the same.
func (s Shape) Equal(o Shape) bool { return s.Diff(o) == "" }

// Diff names the first difference of two shapes, for the log; empty: none.
func (s Shape) Diff(o Shape) string {
	if s.Table != o.Table {
		return fmt.Sprintf("table flags %s, want %s", o.Table, s.Table)
	}
	if d := diffNames("set", s.Sets, o.Sets); d != "" {
		return d
	}
	return diffNames("chain", s.Chains, o.Chains)
}

func diffNames(what string, want, have map[string]string) string {
	for n, w := range want {
		if h, ok := have[n]; !ok {
			return what + " " + n + " is missing"
		} else if h != w {
			return what + " " + n + " differs"
		}
	}
	for n := range have {
		if _, ok := want[n]; !ok {
			return what + " " + n + " is not ours"
		}
	}
	return ""
}

// Observed is a table as the kernel has it.
type Observed struct {
	Family string
	Shape  Shape
	Elems  map[string][]Elem // by set, sorted by key; nil when not asked for
}

// Ops is one transaction.
type Ops struct {
	Replace []TableSpec // deleted if there, then made with all elements
	Chains  []ChainOp   // made, before elements are added
	Sets    []SetOp
}

// ChainOp makes a chain.
type ChainOp struct {
	Family string
	Chain  Chain
	Flush  bool // it is there, with other rules
}

// SetOp changes the elements of a set: first Flush, then Del, then Add.
type SetOp struct {
	Family   string
	Set      Set // without elements
	Flush    bool
	Del, Add []Elem
}

// Empty reports whether there is nothing to do.
func (o Ops) Empty() bool { return o.Count() == 0 }

// Count returns how many objects are made or changed.
func (o Ops) Count() int {
	n := len(o.Chains)
	for _, t := range o.Replace {
		n += 1 + len(t.Chains) + len(t.Sets)
		for i := range t.Sets {
			n += len(t.Sets[i].Elems)
		}
	}
	for _, s := range o.Sets {
		n += len(s.Del) + len(s.Add)
		if s.Flush {
			n++
		}
	}
	return n
}

// String prints the transaction like a shell transcript.
func (o Ops) String() string {
	var b strings.Builder
	for _, t := range o.Replace {
		fmt.Fprintf(&b, "replace table %s %s\n", t.Family, t.Name)
	}
	for _, c := range o.Chains {
		what := "add"
		if c.Flush {
			what = "flush"
		}
		fmt.Fprintf(&b, "%s chain %s %s %s\n", what, c.Family, TableName, c.Chain.Name)
	}
	for _, s := range o.Sets {
		if s.Flush {
			fmt.Fprintf(&b, "flush set %s %s %s\n", s.Family, TableName, s.Set.Name)
		}
		for _, e := range s.Del {
			fmt.Fprintf(&b, "delete element %s %s %s { %s }\n", s.Family, TableName, s.Set.Name, s.Set.text(e))
		}
		for _, e := range s.Add {
			fmt.Fprintf(&b, "add element %s %s %s { %s }\n", s.Family, TableName, s.Set.Name, s.Set.text(e))
		}
	}
	return b.String()
}
