package state

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// selector is a service under the one label of its selector by which its
// endpoints are found.
type selector struct{ namespace, label, value, name string }

func compareSelectors(a, b selector) int {
	return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.label, b.label),
		strings.Compare(a.value, b.value), strings.Compare(a.name, b.name))
}

// claim is a service that wants an address.
type claim struct {
	addr            netip.Addr
	namespace, name string
}

func compareClaims(a, b claim) int {
	return cmp.Or(a.addr.Compare(b.addr), compareKeys(a.namespace, a.name, b.namespace, b.name))
}

// compareDeclared orders declarations of services by key; of one service,
// those by Nodefiles come before those by command, among them the lowest node
// ID: the same choice on every node.
func compareDeclared(a, b *Record) int {
	if d := strings.Compare(a.ID.Key, b.ID.Key); d != 0 {
		return d
	}
	if (a.ID.Owner == "") != (b.ID.Owner == "") {
		if a.ID.Owner == "" {
			return 1
		}
		return -1
	}
	return cmp.Or(strings.Compare(string(a.ID.Owner), string(b.ID.Owner)), cmp.Compare(a.ID.Class, b.ID.Class))
}

// declare brings one declaration into the order of declarations.
func (d *derivation) declare(e edit) {
	if s, ok := valueOf[Service](e.new); ok && s.Key() == e.new.ID.Key {
		d.declared.put(e.new)
	} else {
		d.declared.remove(e.new)
	}
}

// declarations returns those of a service, the one that counts first.
func (d *derivation) declarations(key string) iter.Seq[*Record] {
	return declarationsIn(d.declared, key, d.nodeByID)
}

// declarationsIn returns those with a key of nodes that there are.
func declarationsIn(declared tree[*Record], key string, nodes map[NodeID]*NodeView) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		// No node ID is before "!": what has no owner comes last.
		for r := range declared.from(&Record{ID: ID{Key: key, Owner: "!"}}) {
			if r.ID.Key != key {
				return
			}
			if (r.ID.Class != Owner || nodes[r.ID.Owner] != nil) && !yield(r) {
				return
			}
		}
	}
}

// servicesStep looks again at the services that are noted, then at the
// addresses that those want or wanted.
func (d *derivation) servicesStep() {
	if len(d.services) == 0 {
		return
	}
	d.View.services, d.View.selectors, d.View.claims = d.old.services.clone(), d.old.selectors.clone(), d.old.claims.clone()
	for key := range d.services {
		namespace, name, ok := strings.Cut(key, "/")
		if !ok {
			continue
		}
		was := d.old.service(namespace, name)
		is, differ := d.service(key)
		d.serviceConflicts = setConflict(d.serviceConflicts, namespace, name, differ)
		d.index(was, is)
		switch {
		case is == nil && was == nil:
		case is == nil:
			d.View.services.remove(was)
		default:
			d.View.services.put(is)
		}
	}
	for a := range d.vips {
		d.settle(a)
	}
	for key := range d.services {
		was, is := d.old.Service(key), d.View.Service(key)
		if was != nil && is != nil && was.equal(is) {
			d.View.services.put(was) // nothing that anybody could see
		} else if was != nil || is != nil {
			d.changed.services = append(d.changed.services, key)
		}
	}
	d.contested = d.contested || !slices.Equal(d.serviceConflicts, d.old.serviceConflicts) || !slices.Equal(d.vipConflicts, d.old.vipConflicts) ||
		!slices.Equal(d.vip6Conflicts, d.old.vip6Conflicts)
}

// service resolves one service, with what its declarations disagree on; nil:
// nobody declares it.
func (d *derivation) service(key string) (*ServiceView, *Conflict) {
	first, differ := d.winner(key)
	id := ID{Kind: KindService, Key: key}
	if first == nil {
		d.refuse(id, "", nil)
		return nil, nil
	}
	s := first.val.(*Service)
	sv := &ServiceView{Service: *s}
	sv.Ports = slices.Clone(sv.Ports)
	var allocated netip.Addr
	if a, ok := Lookup[VIP](d.sn, ID{Class: Cluster, Kind: KindVIP, Key: key}); ok && sv.External == "" {
		allocated = a.Addr
		for i := range sv.Ports {
			p := &sv.Ports[i]
			if p.NodePort == 0 && sv.NodePorts {
				p.NodePort = a.NodePorts[fmt.Sprintf("%d/%s", p.Port, p.Protocol)]
			}
		}
	}
	d.addresses(sv, allocated)
	d.backends(sv)
	return sv, differ
}

// winner returns the declaration of a service that counts, or nil, and the
// first other one that says something else. What only labels of endpoints
// declare comes after all that somebody wrote down.
func (d *derivation) winner(key string) (*Record, *Conflict) {
	var first *Record
	for r := range d.declarations(key) {
		if first == nil || byLabels(first) && !byLabels(r) {
			first = r
		}
		if !byLabels(first) {
			break
		}
	}
	for r := range d.declarations(key) {
		if r != first && !sameService(first.val.(*Service), r.val.(*Service)) {
			return first, &Conflict{
				What: "service " + first.val.(*Service).FullName(), Winner: d.declarer(first), Loser: d.declarer(r),
				Detail: "declared differently: make the declarations agree",
			}
		}
	}
	return first, nil
}

// byLabels reports whether a declaration is a service that labels declare.
func byLabels(r *Record) bool {
	s, ok := r.val.(*Service)
	return ok && s.Source == SourceLabel
}

// SourceLabel is the Source of a service that labels of endpoints declare.
const SourceLabel = "label"

// sameService reports whether two declarations agree. That endpoints' labels
// say what is written elsewhere too is no difference.
func sameService(a, b *Service) bool {
	if a.Source == SourceLabel || b.Source == SourceLabel {
		x, y := *a, *b
		x.Source, y.Source = "", ""
		return sameValue(&x, &y)
	}
	return sameValue(a, b)
}

func (d *derivation) declarer(r *Record) string {
	id, what := r.ID.Owner, "Nodefile of "
	if id == "" {
		return "command"
	}
	if byLabels(r) {
		what = "labels on "
	}
	if n := d.nodeByID[id]; n != nil {
		return what + n.Name
	}
	return what + id.Short()
}

// selected returns the endpoints that a service selects, in their order, and
// notes in the service by which label it found them.
func (d *derivation) selected(sv *ServiceView) iter.Seq[*EndpointView] {
	return func(yield func(*EndpointView) bool) {
		if len(sv.Selector) == 0 {
			return
		}
		sv.by = d.rarest(sv)
		for e := range d.withLabel(sv.Namespace, sv.by, sv.Selector[sv.by]) {
			if len(e.Addrs) > 0 && matches(sv.Selector, e.Labels) && !yield(e) {
				return
			}
		}
	}
}

// rarest returns the label of a selector that the fewest endpoints have, near
// enough: it counts no further than four times that.
func (d *derivation) rarest(sv *ServiceView) string {
	labels := slices.Sorted(maps.Keys(sv.Selector))
	if len(labels) == 1 {
		return labels[0]
	}
	for limit := 16; ; limit *= 4 {
		for _, label := range labels {
			n := 0
			for range d.withLabel(sv.Namespace, label, sv.Selector[label]) {
				if n++; n == limit {
					break
				}
			}
			if n < limit {
				return label
			}
		}
	}
}

// withLabel returns the endpoints of a namespace that have a label.
func (d *derivation) withLabel(namespace, label, value string) iter.Seq[*EndpointView] {
	return func(yield func(*EndpointView) bool) {
		probe := &EndpointView{Endpoint: &Endpoint{Namespace: namespace, Labels: map[string]string{label: value}}}
		for e := range d.View.labels.from(labelled{label, probe}) {
			if e.Namespace != namespace || e.label != label || e.Labels[label] != value || !yield(e.EndpointView) {
				return
			}
		}
	}
}

func matches(selector, labels map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// target finds the port of an endpoint that a service port means. A target
// named but not there is 0: that endpoint does not serve this port.
func target(p ServicePort, ports []Port) uint16 {
	if p.Target != 0 {
		return p.Target
	}
	name := cmp.Or(p.TargetName, p.Name)
	for _, ep := range ports {
		if name != "" && ep.Name == name && ep.Protocol == p.Protocol {
			return ep.Port
		}
	}
	if p.TargetName != "" {
		return 0
	}
	return p.Port
}

// index brings a service's label and its claim up to date, and notes the
// addresses whose claims changed or may have been settled otherwise.
func (d *derivation) index(was, is *ServiceView) {
	if was != nil && was.by != "" {
		d.View.selectors.remove(selector{was.Namespace, was.by, was.Selector[was.by], was.Name})
	}
	if is != nil && is.by != "" {
		d.View.selectors.put(selector{is.Namespace, is.by, is.Selector[is.by], is.Name})
	}
	d.claim(was, is)
}

// equal reports whether one view of a service can stand for another.
func (s *ServiceView) equal(o *ServiceView) bool {
	return s.claims == o.claims && s.by == o.by && s.shows(o)
}

// shows reports whether two views of a service show the same.
func (s *ServiceView) shows(o *ServiceView) bool {
	return s.VIP == o.VIP && s.VIP6 == o.VIP6 && slices.EqualFunc(s.Backends, o.Backends, func(a, b BackendOf) bool {
		return a.Addr == b.Addr && a.Hostname == b.Hostname && a.Endpoint == b.Endpoint && a.Node == b.Node &&
			a.Ready == b.Ready && a.Why == b.Why && a.Weight == b.Weight && a.Draining == b.Draining && a.Failed == b.Failed && slices.Equal(a.Targets, b.Targets) &&
			a.Key == b.Key && a.Declared == b.Declared && a.Step == b.Step && a.By == b.By
	}) && sameValue(&s.Service, &o.Service)
}
