package state

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Labels of an endpoint that mean something to services.
const (
	// LabelWeight is its share as a backend, 1 to 256; anything else: 1.
	LabelWeight = "nodenet.io/weight"
	// LabelService makes a service of this name in the endpoint's namespace.
	LabelService = "nodenet.io/service"
	// LabelServicePort are the ports of that service, as the Nodefile's `port`
	// has them without a name, separated by commas or blanks.
	LabelServicePort = "nodenet.io/service-port"
	// LabelServiceCheck is its check, as the Nodefile's `check` has it.
	LabelServiceCheck = "nodenet.io/service-check"
	// LabelServiceFamilies are its IP versions, as the Nodefile's `families` has
	// them, separated by commas or blanks.
	LabelServiceFamilies = "nodenet.io/service-families"
)

// MaxWeight bounds the weight of a backend.
const MaxWeight = 256

// Steps is in how many steps a backend that starts slowly gets to its whole
// share; see Health.Step.
const Steps = 8

// BackendKey is by what the records of a service's operator and checks know an
// explicit backend: its address, with its port if it has one.
func BackendKey(a netip.Addr, port uint16) string {
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// EndpointKey is by what they know an endpoint. IDs are unique on one node
// only; that of a lease, which any node may renew, says which lease it is.
func EndpointKey(owner NodeID, id string) string {
	if strings.HasPrefix(id, leaseID) {
		return id
	}
	return id + "@" + string(owner)
}

// backends resolves a service's selector and its explicit backends. Of two
// with one address and port the first stays. What the check says, then what
// an operator said, then what its node's liveness says is laid upon each.
func (d *derivation) backends(sv *ServiceView) {
	seen := map[netip.AddrPort]bool{}
	add := func(b BackendOf, port uint16) {
		if k := netip.AddrPortFrom(b.Addr, port); !seen[k] && sv.Serves(b.Addr) {
			seen[k] = true
			sv.Backends = append(sv.Backends, b)
		}
	}
	for e := range d.selected(sv) {
		b := d.backend(sv, e)
		add(b, 0)
		if b.Addr = e.twin(); b.Addr.IsValid() {
			b.Targets = slices.Clone(b.Targets)
			add(b, 0) // one backend to operators and checks, by its key
		}
	}
	explicit := func(x *Backend) {
		b := BackendOf{Key: BackendKey(x.Addr, x.Port), Addr: x.Addr, Hostname: x.Hostname, Ready: true, Weight: weight(x.Weight), Targets: make([]uint16, len(sv.Ports))}
		for i, p := range sv.Ports {
			b.Targets[i] = cmp.Or(x.Port, p.Target, p.Port)
		}
		d.checked(sv, &b)
		add(b, x.Port)
	}
	for i := range sv.Service.Backends {
		explicit(&sv.Service.Backends[i])
	}
	for r := range d.sn.tables.scan(ID{Class: Cluster, Kind: KindBackend, Key: sv.Key() + "/"}) {
		if b, ok := valueOf[Backend](r); ok && b.Namespace == sv.Namespace && b.Service == sv.Name {
			explicit(b)
		}
	}
	d.administer(sv)
	d.damp(sv)
	slowStart(sv)
	slices.SortFunc(sv.Backends, compareBackends)
}

func compareBackends(a, b BackendOf) int {
	return cmp.Or(a.Addr.Compare(b.Addr), slices.Compare(a.Targets, b.Targets), strings.Compare(a.Endpoint, b.Endpoint), strings.Compare(a.Hostname, b.Hostname))
}

// backend is what an endpoint is to a service.
func (d *derivation) backend(sv *ServiceView, e *EndpointView) BackendOf {
	b := BackendOf{
		Key: EndpointKey(e.Owner, e.ID), Addr: e.Addrs[0], Hostname: cmp.Or(e.Hostname, e.Name), Endpoint: e.ID, Node: e.Owner,
		Ready: e.Serving, Weight: labelWeight(e.Labels), Targets: make([]uint16, len(sv.Ports)),
	}
	switch n := d.nodeByID[e.Owner]; {
	case e.Serving:
	case n != nil && n.Refused != "":
		b.Why = n.Name + " is not what it says: see `nodectl conflicts`"
	case n != nil && !n.Serving:
		b.Why = n.Name + " is " + n.State.String()
	case !e.Ready:
		b.Why = cmp.Or(e.Why, "endpoint is not ready")
	case e.Refused != "":
		b.Why = e.Refused
	default:
		b.Why = "its network is local to " + n.Name
	}
	for i, p := range sv.Ports {
		b.Targets[i] = target(p, e.Ports)
	}
	d.checked(sv, &b)
	return b
}

// checked lays upon a backend what its check says, and how far it is in its
// slow start.
func (d *derivation) checked(sv *ServiceView, b *BackendOf) {
	if sv.Check == "" && sv.SlowStart == 0 {
		return
	}
	h, by := d.View.healthRecord(d.sn, sv.Key(), b)
	b.By = by
	if sv.SlowStart > 0 {
		// Whoever checks it writes a record at once: until then, the first step.
		b.Step = 1
		if h != nil {
			b.Step = h.Step
		}
	}
	if sv.Check == "" || h == nil || h.OK || !b.Ready {
		return
	}
	b.Ready, b.Why = false, h.Why
	// A node that looks from afar cannot tell a dead backend from a path that
	// is cut for it alone: flows stay.
	b.Failed = by == "" || b.Node == ""
}

// healthRecord returns the result that counts for a backend of a service, or
// nil, and the node whose it is if that is not the backend's own.
//
//   - An endpoint: the record of its own node. While that node is suspect, or
//     dead and not yet out, the record that another node keeps in its stead
//     counts where there is one.
//   - An explicit backend has no node: the one record that whoever checks it
//     keeps counts.
func (v *View) healthRecord(sn *Snapshot, service string, b *BackendOf) (*Health, NodeID) {
	if n := v.nodeByID[b.Node]; b.Node == "" || n != nil && (n.State == Suspect || n.State == Dead) {
		r := sn.tables.get(ID{Class: Cluster, Kind: KindHealth, Key: service + "/" + b.Key})
		if h, ok := valueOf[Health](r); ok {
			return h, r.Version.Node
		}
	}
	if b.Node == "" {
		return nil, ""
	}
	h, _ := Lookup[Health](sn, ID{Class: Owner, Kind: KindHealth, Owner: b.Node, Key: service + "/" + b.Endpoint})
	return h, ""
}

// HealthOf returns what counts of the checks of a backend, or nil before its
// first record. The snapshot must be the view's.
func (v *View) HealthOf(sn *Snapshot, s *ServiceView, b *BackendOf) *Health {
	h, _ := v.healthRecord(sn, s.Key(), b)
	return h
}

// administer lays upon the backends what an operator said of them. One that
// drains and would not be ready otherwise is not draining: it gets nothing.
func (d *derivation) administer(sv *ServiceView) {
	for r := range d.sn.tables.scan(ID{Class: Cluster, Kind: KindAdmin, Key: sv.Key() + "/"}) {
		a, ok := valueOf[Admin](r)
		if !ok || a.Key() != r.ID.Key {
			continue
		}
		for i := range sv.Backends {
			b := &sv.Backends[i]
			if b.Key != a.Backend {
				continue
			}
			if a.Weight > 0 {
				b.Weight = weight(a.Weight)
			}
			switch {
			case !a.Drain:
			case a.Ended:
				b.Ready, b.Failed, b.Why = false, true, "drained"
			case b.Ready:
				b.Ready, b.Draining, b.Why = false, true, "draining"
			}
		}
	}
}

// slowStart gives each backend its part of its share. Weights are whole
// numbers, so all of a service are scaled up while one of them starts.
func slowStart(sv *ServiceView) {
	starts, highest := false, uint16(1)
	for i := range sv.Backends {
		b := &sv.Backends[i]
		b.Declared = b.Weight
		starts = starts || b.Step > 0
		highest = max(highest, b.Weight)
	}
	if !starts {
		return
	}
	scale := max(1, min(Steps, MaxWeight/int(highest)))
	for i := range sv.Backends {
		b := &sv.Backends[i]
		w := int(b.Weight) * scale
		if b.Step > 0 {
			w = max(1, w*int(min(b.Step, Steps))/Steps)
		}
		b.Weight = weight(w)
	}
}

// weight bounds a weight to 1 … MaxWeight.
func weight(w int) uint16 { return uint16(min(max(w, 1), MaxWeight)) }

// labelWeight is the weight that an endpoint's labels give it.
func labelWeight(labels map[string]string) uint16 {
	if text, ok := labels[LabelWeight]; ok {
		if w, err := strconv.Atoi(text); err == nil {
			return weight(w)
		}
	}
	return 1
}
