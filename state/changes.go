package state

import (
	"reflect"
	"slices"
)

// Changes says in what two views differ. With All the difference is not
// known: compare everything. Nodes and the other booleans say that the slice
// of that name differs.
type Changes struct {
	All                                          bool
	Nodes, Networks, Publishes, Names, Conflicts bool
	Endpoints                                    []Change[EndpointView] // sorted by owner, ID
	Services                                     []Change[ServiceView]  // sorted by key
}

// Change is one item before and after. Nil: it was not or is no longer there.
// What differs may be no more than what it shows of others: an endpoint whose
// node died has another Serving.
type Change[T any] struct{ Old, New *T }

// None reports that nothing changed.
func (c *Changes) None() bool {
	return !c.All && !c.Nodes && !c.Networks && !c.Publishes && !c.Names && !c.Conflicts && len(c.Endpoints) == 0 && len(c.Services) == 0
}

// Since returns what differs from an older view of the same tables. Its cost
// is that of the changes between the two. When old is nil, or too old for the
// changes to be remembered still, everything may differ (Changes.All).
func (v *View) Since(old *View) *Changes {
	if old == v {
		return &Changes{}
	}
	if old == nil {
		return &Changes{All: true}
	}
	return v.compare(old)
}

// compare finds what differs by looking at everything.
func (v *View) compare(old *View) *Changes {
	return &Changes{
		Nodes:     !reflect.DeepEqual(old.Nodes, v.Nodes),
		Networks:  !reflect.DeepEqual(old.Networks, v.Networks),
		Publishes: !slices.Equal(old.Publishes, v.Publishes),
		Names:     !slices.Equal(old.Names, v.Names),
		Conflicts: !slices.Equal(old.Conflicts, v.Conflicts),
		Endpoints: compareTrees(old.byOwner, v.byOwner, byOwner),
		Services:  compareTrees(old.services, v.services, byServiceKey),
	}
}

// compareTrees walks two trees of one order side by side.
func compareTrees[T any](old, now tree[*T], compare func(a, b *T) int) []Change[T] {
	var out []Change[T]
	a, b := slices.Collect(old.all()), slices.Collect(now.all())
	for len(a) > 0 || len(b) > 0 {
		d := 0
		switch {
		case len(a) == 0:
			d = 1
		case len(b) == 0:
			d = -1
		default:
			d = compare(a[0], b[0])
		}
		switch {
		case d < 0:
			out, a = append(out, Change[T]{Old: a[0]}), a[1:]
		case d > 0:
			out, b = append(out, Change[T]{New: b[0]}), b[1:]
		default:
			if a[0] != b[0] && !reflect.DeepEqual(a[0], b[0]) {
				out = append(out, Change[T]{a[0], b[0]})
			}
			a, b = a[1:], b[1:]
		}
	}
	return out
}
