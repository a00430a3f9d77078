package state

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// node makes the view of one node, or reports that it is not to be seen.
func (d *derivation) node(id NodeID) (NodeView, bool) {
	n, ok := valueOf[Node](d.sn.tables.get(ID{Class: Owner, Kind: KindNode, Owner: id, Key: "self"}))
	if !ok {
		return NodeView{}, false
	}
	live, known := d.sn.live[id]
	nv := NodeView{ID: id, Node: *n, State: live.State, Since: live.Since, Serving: live.Serving, Flapping: live.Flapping, Refused: d.judged.node(id)}
	switch {
	case id == d.Self:
		nv.Self, nv.State, nv.Serving = true, Alive, true
	case n.Left || live.State == Left || d.View.gone.Node(id):
		return NodeView{}, false
	case !known:
		// Nothing heard since start: what was saved holds until told otherwise.
		nv.Serving = true
	}
	for r := range d.sn.tables.scan(ID{Class: Owner, Kind: KindBlock, Owner: id}) {
		if b, ok := valueOf[Block](r); ok && nv.Refused == "" && !d.View.gone.Record(r) && d.judged.block(r.ID) {
			nv.Blocks = append(nv.Blocks, *b)
		}
	}
	slices.SortFunc(nv.Blocks, func(a, b Block) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return nv, true
}

// nodesStep looks again at the nodes that are noted.
func (d *derivation) nodesStep() {
	changed := map[NodeID]*NodeView{} // nil: no longer there
	for id := range d.nodes {
		was := d.old.nodeByID[id]
		is, there := d.node(id)
		switch {
		case !there && was == nil, there && was != nil && reflect.DeepEqual(*was, is):
			continue
		case !there:
			changed[id] = nil
		default:
			changed[id] = &is
		}
		if !there || was == nil || was.Name != is.Name {
			d.renamed(id)
		}
		if !there || was == nil {
			d.servers[id] = true
		}
		if !there || was == nil || was.Name != is.Name || was.State != is.State || was.Serving != is.Serving || was.Flapping != is.Flapping || was.Refused != is.Refused {
			d.owners[id] = true
		}
		if id == d.Self {
			d.networks = true // its blocks
		}
	}
	if len(changed) == 0 {
		return
	}
	d.changed.Nodes = true
	nodes := make([]NodeView, 0, len(d.Nodes)+len(changed))
	for _, n := range d.Nodes {
		is, ok := changed[n.ID]
		switch {
		case !ok:
			nodes = append(nodes, n)
		case is != nil:
			nodes = append(nodes, *is)
		}
		delete(changed, n.ID)
	}
	for _, n := range changed {
		nodes = append(nodes, *n)
	}
	slices.SortFunc(nodes, func(a, b NodeView) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	d.Nodes, d.nodeByID, d.nodeConflicts = nodes, make(map[NodeID]*NodeView, len(nodes)), nil
	for i := range nodes {
		n := &nodes[i]
		d.nodeByID[n.ID] = n
		if i > 0 && n.Name == nodes[i-1].Name {
			d.nodeConflicts = append(d.nodeConflicts, Conflict{
				What: "node " + n.Name, Winner: nodes[i-1].ID.Short(), Loser: n.ID.Short(),
				Detail: "two nodes have the same name: set `node { name … }` on one of them",
			})
		}
	}
	d.contested = d.contested || !slices.Equal(d.nodeConflicts, d.old.nodeConflicts)
}

// renamed notes what shows the name of a node that came, went or has another.
func (d *derivation) renamed(id NodeID) {
	d.networks = true
	for r := range d.sn.tables.scan(ID{Class: Owner, Kind: KindService, Owner: id}) {
		d.services[r.ID.Key] = true
	}
	for r := range d.sn.tables.scan(ID{Class: Owner, Kind: KindPolicy, Owner: id}) {
		d.policies[r.ID.Key] = true
	}
}

// networksStep makes the networks of this node anew, with where the others'
// definitions differ and the namespace of each network's leases. Networks are
// few, and they rarely change.
func (d *derivation) networksStep() {
	if !d.networks {
		return
	}
	own := map[string]*NetworkView{}
	namespace := map[string]string{}
	for r, n := range allOf[Network](d.sn) {
		if r.ID.Owner == d.Self {
			own[n.Name] = &NetworkView{Network: *n}
		}
		if namespace[n.Name] == "" || r.ID.Owner == d.Self {
			namespace[n.Name] = cmp.Or(n.Namespace, "default")
		}
	}
	d.networkConflicts = nil
	for r, n := range allOf[Network](d.sn) {
		mine := own[n.Name]
		peer := d.nodeByID[r.ID.Owner]
		if mine == nil || peer == nil || peer.Self || n.Local() && mine.Local() {
			continue
		}
		if why := networkDiff(&mine.Network, n); why != "" {
			d.networkConflicts = append(d.networkConflicts, Conflict{
				What: "network " + n.Name, Winner: "this node's definition", Loser: peer.Name,
				Detail: why + ": make the Nodefiles agree",
			})
		}
	}
	d.contested = d.contested || !slices.Equal(d.networkConflicts, d.old.networkConflicts)

	var list []NetworkView
	self := d.nodeByID[d.Self]
	for _, name := range slices.Sorted(maps.Keys(own)) {
		n := own[name]
		if n.Local() {
			n.Own = []netip.Prefix{n.Prefix}
		} else if self != nil {
			for _, b := range self.Blocks {
				if b.Network == name {
					n.Own = append(n.Own, b.Prefix)
				}
			}
		}
		list = append(list, *n)
	}
	if !reflect.DeepEqual(list, d.Networks) {
		d.Networks, d.changed.Networks = list, true
	}
	// A lease has the namespace of its network.
	for _, m := range []map[string]string{d.namespace, namespace} {
		for name := range m {
			if d.namespace[name] == namespace[name] {
				continue
			}
			for r := range d.sn.tables.scan(ID{Class: Lease, Kind: KindLease, Key: name + "/"}) {
				if l, ok := valueOf[LeaseValue](r); ok {
					d.endpoints[endpointRef{l.Server, r.ID.Key, true}] = true
				}
			}
		}
	}
	d.namespace = namespace
}

func orNone(p netip.Prefix) string {
	if !p.IsValid() {
		return "none"
	}
	return p.String()
}

// networkDiff names the first thing in which two definitions cannot work together.
func networkDiff(a, b *Network) string {
	switch {
	case a.Prefix != b.Prefix:
		return fmt.Sprintf("prefix %s here, %s there", a.Prefix, b.Prefix)
	case a.Prefix6 != b.Prefix6:
		return fmt.Sprintf("IPv6 prefix %s here, %s there", orNone(a.Prefix6), orNone(b.Prefix6))
	case a.Overlay != b.Overlay:
		return fmt.Sprintf("overlay %s here, %s there", a.Overlay, b.Overlay)
	case a.VNI != b.VNI:
		return fmt.Sprintf("VNI %d here, %d there", a.VNI, b.VNI)
	case a.Port != b.Port:
		return fmt.Sprintf("VXLAN port %d here, %d there", a.Port, b.Port)
	case a.Block != b.Block:
		return fmt.Sprintf("block /%d here, /%d there", a.Block, b.Block)
	}
	return ""
}
