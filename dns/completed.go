package dns

import (
	"time"

	wire "github.com/miekg/dns"
)

// Completed answers are for one namespace's clients. The first question of a
// path names that namespace, so its answers can be given again in the receive
// loop, to clients of that namespace alone: for some seconds, and only until
// anything in the cluster changes.

// learnCompleted takes over what a walk has led to. clients are those of before
// the walk: the zones have changed with them or are newer.
func (p *plan) learnCompleted(q *query, reply *wire.Msg, msg []byte, whole bool, now time.Time, clients *clientIndex) {
	if p.completed == nil || clients == nil || q.Source != "search" {
		return
	}
	kind, target := p.search.kind(q.Name, clients.namespace(q.Client.Addr()))
	if kind != askedFirst {
		return
	}
	if len(reply.Answer) > 0 {
		c, ok := reply.Answer[0].(*wire.CNAME)
		if !ok {
			return
		}
		target = c.Target
	}
	// What else the node knows may change at any time.
	if b := q.table.match(target); b == nil || b.holds(target) && !b.plan.knows(target) {
		return
	}
	p.completed.store(q, msg, whole, now, clients)
}

// knows reports whether a cluster has a name.
func (p *plan) knows(name string) bool {
	if p == nil {
		return false
	}
	for _, s := range p.steps {
		if z := s.cluster.zoneNow(); z != nil && z.names.get(name) != nil {
			return true
		}
	}
	return false
}

// complete answers the first question of the client's path, if that was
// answered lately.
func (r *responder) complete(name string) int {
	a := r.plan.completed.find(r, name)
	if a == nil || a.clients != r.clients {
		return 0
	}
	return a.write(r, bySearch)
}
