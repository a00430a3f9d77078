package state

import (
	"fmt"
	"sync"
)

const (
	// keptViews is how many of the newest views the deriver holds, for
	// snapshots that are a little older than the newest.
	keptViews = 4
	// keptEdits bounds the changes remembered for views to come: beyond that
	// one is better off with a derivation from scratch.
	keptEdits = 16384
)

// edit is one change of a record: what was there before, nil for nothing, and
// what is now.
type edit struct{ old, new *Record }

// deriver makes the views of one Store. It holds the last few and what was
// written since, so that a view costs what changed. A snapshot that is older
// than all of them, or too much newer, gets one that is derived from scratch:
// the two ways agree, since the second is the first with every record new.
type deriver struct {
	mu    sync.Mutex // held while a view is made
	views []*View    // oldest first

	logMu sync.Mutex
	log   []revision // what was written after floor, oldest first
	floor uint64
	edits int // in log
}

// revision is what one revision changed.
type revision struct {
	rev   uint64
	edits []edit
}

// note remembers what a revision changed. Revisions come in order.
func (d *deriver) note(rev uint64, edits []edit) {
	d.logMu.Lock()
	defer d.logMu.Unlock()
	d.edits += len(edits)
	if d.edits > keptEdits {
		d.log, d.edits, d.floor = nil, 0, rev
		return
	}
	if len(edits) > 0 {
		d.log = append(d.log, revision{rev, edits})
	}
}

// between returns the changes after one revision up to and including another.
// It reports false when they are not remembered.
func (d *deriver) between(after, to uint64) ([]edit, bool) {
	d.logMu.Lock()
	defer d.logMu.Unlock()
	if after < d.floor {
		return nil, false
	}
	var out []edit
	for _, r := range d.log {
		if r.rev > after && r.rev <= to {
			out = append(out, r.edits...)
		}
	}
	return out, true
}

// forget drops the changes up to a revision.
func (d *deriver) forget(rev uint64) {
	d.logMu.Lock()
	defer d.logMu.Unlock()
	n := 0
	for n < len(d.log) && d.log[n].rev <= rev {
		d.edits -= len(d.log[n].edits)
		d.log[n] = revision{}
		n++
	}
	d.log, d.floor = d.log[n:], max(d.floor, rev)
}

// view returns the view of a snapshot.
func (d *deriver) view(sn *Snapshot) *View {
	if sn.base != nil {
		// Inside a Write: what its caller sees beyond the published is nobody
		// else's yet, and may never be.
		base := sn.base.View()
		d.mu.Lock()
		defer d.mu.Unlock()
		return base.next(sn, sn.pending)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := len(d.views) - 1; i >= 0; i-- {
		base := d.views[i]
		if base.Rev > sn.rev {
			continue
		}
		if edits, ok := d.between(base.Rev, sn.rev); ok {
			v := base.next(sn, edits)
			v.deriver = d
			if i == len(d.views)-1 {
				d.keep(v)
			}
			return v
		}
		break
	}
	v := derive(sn)
	v.deriver = d
	if n := len(d.views); n == 0 || d.views[n-1].Rev < sn.rev {
		d.views = nil
		d.keep(v)
	}
	return v
}

// keep makes v the newest view of the chain.
func (d *deriver) keep(v *View) {
	d.views = append(d.views, v)
	if len(d.views) > keptViews {
		d.views = append([]*View(nil), d.views[1:]...)
	}
	d.forget(d.views[0].Rev)
}

// CheckView derives the newest view from scratch and compares it with the one
// that was kept up to date. When the two differ, which is a fault of this
// program, the error says in what, and the next change brings a view from
// scratch. It costs as much as a start: call it seldom.
func (s *Store) CheckView() error {
	sn := s.Snapshot()
	c := derive(sn).compare(sn.View())
	if c.None() {
		return nil
	}
	s.deriver.mu.Lock()
	s.deriver.views = nil
	s.deriver.mu.Unlock()
	return fmt.Errorf("view of revision %d is not what its records say (%d endpoints, %d services, %d policies, nodes %t, networks %t, published ports %t, names %t, conflicts %t): please report this",
		sn.rev, len(c.Endpoints), len(c.Services), len(c.Policies), c.Nodes, c.Networks, c.Publishes, c.Names, c.Conflicts)
}
