package node

import (
	"cmp"
	"hash/fnv"
	"maps"
	"net/netip"
	"strings"
	"time"

	"nodenet/node/check"
	"nodenet/state"
)

// Keys of duties: whose record the result is, then the record's key.
const (
	ownHealth    = "own "
	sharedHealth = "shared "
)

// healthID is the record that a duty's result is kept in.
func (n *Node) healthID(key string) state.ID {
	if k, ok := strings.CutPrefix(key, ownHealth); ok {
		return state.ID{Class: state.Owner, Kind: state.KindHealth, Owner: n.self, Key: k}
	}
	return state.ID{Class: state.Cluster, Kind: state.KindHealth, Key: strings.TrimPrefix(key, sharedHealth)}
}

// duties is what this node has to check. An endpoint is checked by its own
// node. While that is suspect, or dead and its backends are still in use, one
// other node checks in its stead: the next one alive in the order of IDs. An
// explicit backend is checked by the node alive whose ID and its key together
// hash highest. Nodes that see different ones alive may both check for a
// moment: their results are one record, and the last word stays.
type duties struct {
	self state.NodeID
	dir  string                           // see checkDir
	view *state.View                      // of of
	of   map[string]map[string]check.Duty // by service, then by key
}

func newDuties(self state.NodeID) *duties {
	return &duties{self: self, dir: checkDir, of: map[string]map[string]check.Duty{}}
}

// update brings the duties up to a view and reports whether they changed.
func (d *duties) update(v *state.View) bool {
	c := v.Since(d.view)
	d.view = v
	changed := false
	set := func(key string, s *state.ServiceView) {
		was := len(d.of[key])
		if now := d.ofService(v, s); len(now) > 0 {
			d.of[key] = now
		} else {
			delete(d.of, key)
		}
		changed = changed || was > 0 || len(d.of[key]) > 0
	}
	if c.All || c.Nodes {
		for key := range d.of {
			if v.Service(key) == nil {
				set(key, nil)
			}
		}
		for s := range v.Services() {
			set(s.Key(), s)
		}
		return changed
	}
	for _, s := range c.Services {
		set(cmp.Or(s.New, s.Old).Key(), s.New)
	}
	return changed
}

func (d *duties) all() map[string]check.Duty {
	out := map[string]check.Duty{}
	for _, m := range d.of {
		maps.Copy(out, m)
	}
	return out
}

// has reports whether there is a duty with a key.
func (d *duties) has(key string) bool {
	_, service, _ := strings.Cut(key, " ")
	parts := strings.SplitN(service, "/", 3)
	if len(parts) < 3 {
		return false
	}
	_, ok := d.of[parts[0]+"/"+parts[1]][key]
	return ok
}

// ofService lists this node's duties of one service.
func (d *duties) ofService(v *state.View, s *state.ServiceView) map[string]check.Duty {
	if s == nil || s.Check == "" && s.SlowStart == 0 {
		return nil
	}
	out := map[string]check.Duty{}
	seen := map[string]bool{} // an endpoint of both IP versions is asked by its IPv4 address, which comes first
	for i := range s.Backends {
		b := &s.Backends[i]
		if seen[b.Key] {
			continue
		}
		seen[b.Key] = true
		shared := sharedHealth + s.Key() + "/" + b.Key
		switch {
		case b.Node == d.self:
			if duty := dutyOf(v, s, b, d.dir); duty.Probe.Type != "" || duty.SlowStart > 0 {
				out[ownHealth+s.Key()+"/"+b.Endpoint] = duty
			}
		case s.Check == state.CheckExec: // a program here says nothing about a backend there
		case b.Node == "" && explicitChecker(v, shared) == d.self:
			out[shared] = dutyOf(v, s, b, d.dir)
		case b.Node != "" && s.Check != "" && standsIn(v, b.Node) == d.self:
			duty := dutyOf(v, s, b, d.dir)
			duty.SlowStart, duty.Always = 0, true // how far its slow start is, its own node has said
			if duty.Probe.Type != "" {
				out[shared] = duty
			}
		}
	}
	return out
}

// dutyOf is what there is to check of a backend, whoever does it.
func dutyOf(v *state.View, s *state.ServiceView, b *state.BackendOf, dir string) check.Duty {
	d := check.Duty{SlowStart: time.Duration(s.SlowStart) * time.Millisecond, Ready: true}
	if e := v.Endpoint(b.Node, b.Endpoint); e != nil {
		d.Ready, d.Created = e.Serving, time.Unix(e.Created, 0)
		if e.Created == 0 {
			d.Created = time.Time{}
		}
	}
	if s.Check == "" {
		return d
	}
	p := state.Probe{}
	if s.Probe != nil {
		p = *s.Probe
	}
	d.Interval, d.Timeout = time.Duration(p.Interval)*time.Millisecond, time.Duration(p.Timeout)*time.Millisecond
	d.Rise, d.Fall = p.Rise, p.Fall
	port := checkPort(s, b, p.Port)
	if port == 0 && s.Check != state.CheckExec {
		return d // no port of it can be asked: see config.Service.Check
	}
	d.Probe = check.Probe{
		Type: s.Check, Addr: netip.AddrPortFrom(b.Addr, port), Path: p.Path, Host: p.Host, Command: p.Command,
		Service: s.FullName(), Endpoint: b.Endpoint,
	}
	if s.Check == state.CheckExec {
		d.Probe.Dir = dir
	}
	return d
}

// checkPort is the port of a backend that a check asks: the one that it names,
// else the target of the first port of its protocol.
func checkPort(s *state.ServiceView, b *state.BackendOf, port uint16) uint16 {
	if port != 0 {
		return port
	}
	proto := "tcp"
	if s.Check == state.CheckUDP || s.Check == state.CheckDNS {
		proto = "udp"
	}
	for i, p := range s.Ports {
		if p.Protocol == proto && b.Targets[i] != 0 {
			return b.Targets[i]
		}
	}
	return 0
}

// standsIn is the node that checks the backends of another in its stead; "":
// nobody has to.
func standsIn(v *state.View, id state.NodeID) state.NodeID {
	nv := v.NodeByID(id)
	if nv == nil || !nv.Serving || nv.State != state.Suspect && nv.State != state.Dead {
		return ""
	}
	var next, lowest state.NodeID
	for _, o := range v.Nodes {
		if o.State != state.Alive || o.ID == id {
			continue
		}
		if lowest == "" || o.ID < lowest {
			lowest = o.ID
		}
		if o.ID > id && (next == "" || o.ID < next) {
			next = o.ID
		}
	}
	return cmp.Or(next, lowest)
}

// explicitChecker is the node that checks an explicit backend.
func explicitChecker(v *state.View, key string) state.NodeID {
	var best state.NodeID
	var highest uint64
	for _, o := range v.Nodes {
		if o.State != state.Alive {
			continue
		}
		h := fnv.New64a()
		h.Write([]byte(o.ID))
		h.Write([]byte(key))
		if sum := h.Sum64(); best == "" || sum > highest || sum == highest && o.ID < best {
			best, highest = o.ID, sum
		}
	}
	return best
}
