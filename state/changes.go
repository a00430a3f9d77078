package state

import (
	"reflect"
	"slices"
)

// Changes says in what two views differ. With All the difference is not
// known: compare everything. Nodes and the other booleans say that the slice
// of that name differs, Conflicts that it or Refusals does.
type Changes struct {
	All                                          bool
	Nodes, Networks, Publishes, Names, Conflicts bool
	Endpoints                                    []Change[EndpointView] // sorted by owner, ID
	Services                                     []Change[ServiceView]  // sorted by key
	Policies                                     []Change[Policy]       // sorted by key
}

// Change is one item before and after. Nil: it was not or is no longer there.
// What differs may be no more than what it shows of others: an endpoint whose
// node died has another Serving.
type Change[T any] struct{ Old, New *T }

// None reports that nothing changed.
func (c *Changes) None() bool {
	return !c.All && !c.Nodes && !c.Networks && !c.Publishes && !c.Names && !c.Conflicts && len(c.Endpoints) == 0 && len(c.Services) == 0 && len(c.Policies) == 0
}

// Since returns what differs from an older view of the same tables. Its cost
// is that of the changes between the two. When old is nil, or too old for the
// changes to be remembered still, everything may differ (Changes.All). Views
// that NewView made are compared as a whole.
func (v *View) Since(old *View) *Changes {
	switch {
	case old == v:
		return &Changes{}
	case old != nil && old.deriver == nil && v.deriver == nil:
		return v.compare(old)
	case old == nil || old.deriver != v.deriver:
		return &Changes{All: true}
	}
	// Back to the view that both came from: what neither changed since is equal.
	i, j := len(v.steps), len(old.steps)
	for at, was := v.Rev, old.Rev; at != was; {
		switch {
		case at > was && i > 0:
			i--
			at = v.steps[i].from
		case at < was && j > 0:
			j--
			was = old.steps[j].from
		default:
			return &Changes{All: true}
		}
	}
	c := &Changes{}
	endpoints, services, policies := map[endpointRef]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range slices.Concat(v.steps[i:], old.steps[j:]) {
		c.Nodes, c.Networks, c.Publishes = c.Nodes || s.Nodes, c.Networks || s.Networks, c.Publishes || s.Publishes
		c.Names, c.Conflicts = c.Names || s.Names, c.Conflicts || s.Conflicts
		for _, ref := range s.endpoints {
			if was, is := old.find(ref), v.find(ref); was != is && !endpoints[ref] {
				endpoints[ref] = true
				c.Endpoints = append(c.Endpoints, Change[EndpointView]{was, is})
			}
		}
		for _, key := range s.services {
			if was, is := old.Service(key), v.Service(key); was != is && !services[key] {
				services[key] = true
				c.Services = append(c.Services, Change[ServiceView]{was, is})
			}
		}
		for _, key := range s.policies {
			if was, is := old.Policy(key), v.Policy(key); was != is && !policies[key] {
				policies[key] = true
				c.Policies = append(c.Policies, Change[Policy]{was, is})
			}
		}
	}
	slices.SortFunc(c.Endpoints, func(a, b Change[EndpointView]) int { return byOwner(a.either(), b.either()) })
	slices.SortFunc(c.Services, func(a, b Change[ServiceView]) int { return byServiceKey(a.either(), b.either()) })
	slices.SortFunc(c.Policies, func(a, b Change[Policy]) int { return byPolicyKey(a.either(), b.either()) })
	return c
}

func (c Change[T]) either() *T {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

const (
	// keptSteps and keptRefs bound what a view remembers of its past.
	keptSteps = 256
	keptRefs  = 16384
)

// step is what changed from one view to the next, by name.
type step struct {
	from, to                                     uint64
	Nodes, Networks, Publishes, Names, Conflicts bool
	endpoints                                    []endpointRef
	services                                     []string
	policies                                     []string
}

// addStep returns the steps with one more, as many of the last as are kept.
func addStep(steps []*step, s *step) []*step {
	out := append(slices.Clone(steps[max(0, len(steps)-keptSteps+1):]), s)
	refs := 0
	for i := len(out) - 1; i >= 0; i-- {
		if refs += len(out[i].endpoints) + len(out[i].services) + len(out[i].policies); refs > keptRefs {
			return slices.Clone(out[i+1:])
		}
	}
	return out
}

// compare finds what differs by looking at everything.
func (v *View) compare(old *View) *Changes {
	return &Changes{
		Nodes:     !reflect.DeepEqual(old.Nodes, v.Nodes),
		Networks:  !reflect.DeepEqual(old.Networks, v.Networks),
		Publishes: !slices.Equal(old.Publishes, v.Publishes),
		Names:     !slices.Equal(old.Names, v.Names),
		Conflicts: !slices.Equal(old.Conflicts, v.Conflicts) || !slices.Equal(old.Refusals, v.Refusals),
		Endpoints: compareTrees(old.byOwner, v.byOwner, byOwner, func(a, b *EndpointView) bool { return reflect.DeepEqual(a, b) }),
		Services:  compareTrees(old.services, v.services, byServiceKey, (*ServiceView).shows),
		Policies:  compareSorted(old.Policies, v.Policies, byPolicyKey, func(a, b *Policy) bool { return sameValue(a, b) }),
	}
}

// compareTrees walks two trees of one order side by side.
func compareTrees[T any](old, now tree[*T], compare func(a, b *T) int, equal func(a, b *T) bool) []Change[T] {
	return compareSorted(slices.Collect(old.all()), slices.Collect(now.all()), compare, equal)
}

// compareSorted walks two lists of one order side by side.
func compareSorted[T any](a, b []*T, compare func(a, b *T) int, equal func(a, b *T) bool) []Change[T] {
	var out []Change[T]
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
			if a[0] != b[0] && !equal(a[0], b[0]) {
				out = append(out, Change[T]{a[0], b[0]})
			}
			a, b = a[1:], b[1:]
		}
	}
	return out
}
