package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Inspect reads our tables from the kernel, elements included, and returns
// them as a ruleset to print or to Trace. It lists everything, for a person
// who asks; a table that somebody changed is an error that says what differs.
// It uses a netlink socket of its own, in the calling thread's network
// namespace.
func (b *LB) Inspect() (Ruleset, error) {
	b.mu.Lock()
	w := b.desired
	b.mu.Unlock()
	if w == nil {
		return Ruleset{}, errors.New("nothing is programmed yet: the node is starting")
	}
	k, err := OpenKernel()
	if err != nil {
		return Ruleset{}, err
	}
	defer k.Close()
	return inspect(k, w)
}

func inspect(k Kernel, w *wish) (Ruleset, error) {
	have, err := k.Observe(true)
	if err != nil {
		return Ruleset{}, fmt.Errorf("list tables nodenet: %w", err)
	}
	// The rules are ours if their shape is; what is in the sets is the kernel's.
	t := newScope(w.v, w.l).frame(w.v.Rev)
	t.made = slotsObserved(have).made
	rs := t.Ruleset()
	for i := range rs.Tables {
		spec := &rs.Tables[i]
		at := slices.IndexFunc(have, func(o Observed) bool { return o.Family == spec.Family })
		if at < 0 {
			return Ruleset{}, fmt.Errorf("table %s %s is missing: it comes back within a second", spec.Family, spec.Name)
		}
		if d := k.Describe(*spec).Diff(have[at].Shape); d != "" {
			return Ruleset{}, fmt.Errorf("table %s %s was changed from outside: %s: it is put right within a second", spec.Family, spec.Name, d)
		}
		for j := range spec.Sets {
			spec.Sets[j].Elems = have[at].Elems[spec.Sets[j].Name]
		}
	}
	return rs, nil
}

// Arrival returns the device by which packets of an address reach the node,
// for Packet.In: its bridge if it is one of our workloads', empty for the
// node's own, else "eth0" for whatever leads outside.
func (r Ruleset) Arrival(src netip.Addr) string {
	if slices.Contains(r.Addrs, src) {
		return ""
	}
	return (&tracer{rs: r}).device(src)
}
