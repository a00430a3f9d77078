package state

import (
	"slices"
	"strings"
)

func byPolicyKey(a, b *Policy) int { return strings.Compare(a.Key(), b.Key()) }

// Policy returns the policy with a key, "<namespace>/<name>", or nil.
func (v *View) Policy(key string) *Policy {
	if i, found := v.findPolicy(key); found {
		return v.Policies[i]
	}
	return nil
}

func (v *View) findPolicy(key string) (int, bool) {
	return slices.BinarySearchFunc(v.Policies, key, func(p *Policy, k string) int { return strings.Compare(p.Key(), k) })
}

// policiesStep looks again at the policies that are noted: of the declarations
// of one, that of a Nodefile counts before that of a command, among those the
// one of the lowest node ID, as with services.
func (d *derivation) policiesStep() {
	if len(d.policies) == 0 {
		return
	}
	d.View.Policies = slices.Clone(d.View.Policies) // the view before shows its own
	for key := range d.policies {
		namespace, name, ok := strings.Cut(key, "/")
		if !ok {
			continue
		}
		is, differ := d.policy(key)
		d.policyConflicts = setConflict(d.policyConflicts, namespace, name, differ)
		i, found := d.findPolicy(key)
		switch {
		case is == nil && !found:
			continue
		case is == nil:
			d.View.Policies = slices.Delete(d.View.Policies, i, i+1)
		case !found:
			d.View.Policies = slices.Insert(d.View.Policies, i, is)
		case sameValue(d.View.Policies[i], is):
			continue // the same pointer as before
		default:
			d.View.Policies[i] = is
		}
		d.changed.policies = append(d.changed.policies, key)
	}
	d.contested = d.contested || !slices.Equal(d.policyConflicts, d.old.policyConflicts)
}

// policy merges the declarations of one policy, with what they disagree on.
func (d *derivation) policy(key string) (*Policy, *Conflict) {
	var first *Record
	for r := range declarationsIn(d.View.declaredPolicies, key, d.nodeByID) {
		if first == nil {
			first = r
			continue
		}
		// Whether a Nodefile or a command says it makes no difference.
		p, other := *first.val.(*Policy), *r.val.(*Policy)
		p.Source, other.Source = "", ""
		if !sameValue(&p, &other) {
			return first.val.(*Policy), &Conflict{
				What: "policy " + p.FullName(), Winner: d.declarer(first), Loser: d.declarer(r),
				Detail: "declared differently: make the declarations agree",
			}
		}
	}
	if first == nil {
		return nil, nil
	}
	return first.val.(*Policy), nil
}

// declarePolicy brings one declaration into the order of declarations.
func (d *derivation) declarePolicy(e edit) {
	if p, ok := valueOf[Policy](e.new); ok && p.Key() == e.new.ID.Key {
		d.View.declaredPolicies.put(e.new)
	} else {
		d.View.declaredPolicies.remove(e.new)
	}
}
