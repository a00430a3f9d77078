package state

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/btree"
)

// treeDegree is that of the B-trees: a node of up to 63 pointers. A change
// copies one node a level, three levels for a hundred thousand items.
const treeDegree = 32

// tree is an ordered set that can be had as a copy at no cost: the two share
// all nodes that neither changes. Many may read a tree; put, remove and clone
// need that nobody else does one of these three. The zero tree is empty and
// may only be read.
type tree[T any] struct{ b *btree.BTreeG[T] }

func newTree[T any](compare func(a, b T) int) tree[T] {
	return tree[T]{btree.NewG(treeDegree, func(a, b T) bool { return compare(a, b) < 0 })}
}

// clone returns a tree of its own with the same items.
func (t tree[T]) clone() tree[T] { return tree[T]{t.b.Clone()} }

// put stores x and returns the item that it took the place of.
func (t tree[T]) put(x T) (T, bool) { return t.b.ReplaceOrInsert(x) }

// remove takes out the item that compares equal to x and returns it.
func (t tree[T]) remove(x T) (T, bool) { return t.b.Delete(x) }

// get returns the item that compares equal to x.
func (t tree[T]) get(x T) (item T, ok bool) {
	if t.b == nil {
		return item, false
	}
	return t.b.Get(x)
}

func (t tree[T]) len() int {
	if t.b == nil {
		return 0
	}
	return t.b.Len()
}

// all returns the items in order.
func (t tree[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.b != nil {
			t.b.Ascend(yield)
		}
	}
}

// from returns the items that are not before x, in order.
func (t tree[T]) from(x T) iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.b != nil {
			t.b.AscendGreaterOrEqual(x, yield)
		}
	}
}

// noEndpoint sorts before every endpoint of an owner.
var noEndpoint = &Endpoint{}

// byPlace orders endpoints by network, address, ID; what two nodes call the
// same on networks of their own, by the node.
func byPlace(a, b *EndpointView) int {
	if a == b {
		return 0
	}
	return cmp.Or(
		strings.Compare(a.Network, b.Network), slices.CompareFunc(a.Addrs, b.Addrs, netip.Addr.Compare),
		strings.Compare(a.ID, b.ID), strings.Compare(string(a.Owner), string(b.Owner)), compareBool(a.Lease, b.Lease),
	)
}

// byOwner orders endpoints by owner, ID.
func byOwner(a, b *EndpointView) int {
	if a == b {
		return 0
	}
	return cmp.Or(strings.Compare(string(a.Owner), string(b.Owner)), strings.Compare(a.ID, b.ID), compareBool(a.Lease, b.Lease))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// byServiceKey orders services by "<namespace>/<name>".
func byServiceKey(a, b *ServiceView) int {
	return compareKeys(a.Namespace, a.Name, b.Namespace, b.Name)
}

// compareKeys compares the keys of two services as the joined strings would
// compare, without joining them.
func compareKeys(a, aName, b, bName string) int {
	n := min(len(a), len(b))
	switch d := strings.Compare(a[:n], b[:n]); {
	case d != 0:
		return d
	case len(a) == len(b):
		return strings.Compare(aName, bName)
	case len(a) < len(b):
		return cmp.Or(cmp.Compare('/', b[n]), -1)
	default:
		return cmp.Or(cmp.Compare(a[n], '/'), 1)
	}
}
