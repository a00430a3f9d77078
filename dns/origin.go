package dns

import (
	"fmt"
	"slices"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/state"
)

// sourcesOf finds the records of the cluster that a name of the zone comes
// from. It derives every source again and looks which of them make the name:
// its cost is that of building the zone, and it is for people who ask why.
func (z *Zone) sourcesOf(v *state.View, name string) (out []plugin.Source) {
	add := func(s plugin.Source) {
		for _, o := range out {
			if o == s {
				return
			}
		}
		out = append(out, s)
	}
	n := z.names.get(name)
	if n == nil {
		return nil
	}
	visible := n.sets[:n.shown]
	d := &draft{zone: z, edits: make(map[string]*edit), only: name}
	b := newSources(d, z, v, 1)
	made := func() []op { // by the source in hand
		e := d.edits[name]
		if e == nil {
			return nil
		}
		delete(d.edits, name)
		var data []op
		for _, o := range e.ops {
			// Not what another source's records hide, see layer; nor a pin.
			if slices.ContainsFunc(visible, func(s rrset) bool { return s.qtype == o.qtype && s.layer == o.layer }) {
				data = append(data, o)
			}
		}
		return data
	}
	for _, origin := range z.origins {
		if b.apex(origin); len(made()) > 0 {
			add(plugin.Source{Kind: "zone", Key: origin})
		}
	}
	for s := range v.Services() {
		b.service(s, nil)
		ops := made()
		if len(ops) == 0 {
			continue
		}
		add(plugin.Source{Kind: string(state.KindService), Key: s.Namespace + "/" + s.Name})
		c := choose(s)
		for i := range s.Backends {
			be := &s.Backends[i]
			if be.Endpoint == "" || !c.uses(be) {
				continue
			}
			qtype, data := addressData(be.Addr)
			for _, o := range ops {
				if o.qtype == qtype && o.data == data {
					add(plugin.Source{Kind: string(state.KindEndpoint), Key: be.Endpoint, Owner: string(be.Node)})
				}
			}
		}
	}
	for e := range v.Endpoints() {
		if b.endpoint(e); len(made()) == 0 {
			continue
		}
		kind := state.KindEndpoint
		if e.Lease {
			kind = state.KindLease
		}
		add(plugin.Source{Kind: string(kind), Key: e.ID, Owner: string(e.Owner)})
	}
	for i := range v.Nodes {
		if b.node(&v.Nodes[i]); len(made()) > 0 {
			add(plugin.Source{Kind: string(state.KindNode), Key: v.Nodes[i].Name, Owner: string(v.Nodes[i].ID)})
		}
	}
	for i := range v.Names {
		if b.static(&v.Names[i]); len(made()) > 0 {
			add(plugin.Source{Kind: string(state.KindName), Key: v.Names[i].Name + " " + v.Names[i].Type + " " + v.Names[i].Target})
		}
	}
	return out
}

// record tells where the answer to a traced question comes from.
func (c *cluster) record(q *plugin.Query, z *Zone, a *Answer) {
	v := c.view.Load()
	if q.Trace == nil || v == nil {
		return
	}
	step := plugin.Step{Plugin: "cluster", Decision: "looked up", Rcode: wire.RcodeToString[a.Rcode], Origin: fmt.Sprintf("zone %s, revision %d", a.Zone, z.rev)}
	names := []string{q.Name}
	for _, rr := range a.Answer {
		// Of a chain of CNAMEs each name.
		if n := wire.CanonicalName(rr.Header().Name); n != names[len(names)-1] {
			names = append(names, n)
		}
	}
	for _, n := range names {
		found := z.sourcesOf(v, n)
		if len(found) == 0 && z.pod(a.Zone, n) != nil {
			found = []plugin.Source{{Kind: "address in the name", Key: n}}
		}
		step.Sources = append(step.Sources, found...)
	}
	q.Record(step)
}
