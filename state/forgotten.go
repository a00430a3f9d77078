package state

// Forgotten says that a node was given up: its address ranges have another
// owner, and what it wrote up to Epoch counts no longer. A node that comes back
// writes with a higher epoch, and counts again from its first record on. One
// Cluster record a node, key: its ID.
type Forgotten struct {
	By    NodeID `cbor:"1,keyasint"`
	At    int64  `cbor:"2,keyasint"` // Unix seconds
	Epoch uint64 `cbor:"3,keyasint"` // the highest that anybody knew of
	Name  string `cbor:"4,keyasint,omitempty"`
	// Forced: without the consent of a majority.
	Forced bool `cbor:"5,keyasint,omitempty"`
}

// Gone says what of the tables counts no longer because its node was
// forgotten. Of the node's own records it never says that: whoever wrote them
// knows what it still uses. The zero value says it of nothing. It is immutable.
type Gone struct {
	epochs map[NodeID]uint64
	nodes  map[NodeID]bool // not back yet
}

// Gone returns what the forgotten nodes have left behind.
func (sn *Snapshot) Gone() Gone {
	var g Gone
	for r, f := range All[Forgotten](sn) {
		if g.epochs == nil {
			g.epochs, g.nodes = map[NodeID]uint64{}, map[NodeID]bool{}
		}
		id := NodeID(r.ID.Key)
		if id == sn.self {
			continue
		}
		g.epochs[id] = f.Epoch
		n, ok := sn.Get(ID{Class: Owner, Kind: KindNode, Owner: id, Key: "self"})
		g.nodes[id] = !ok || n.Version.Epoch <= f.Epoch
	}
	return g
}

// WasForgotten returns the highest epoch in which what this node wrote does
// not count for others, 0 when it was never forgotten.
func (sn *Snapshot) WasForgotten() uint64 {
	f, ok := Lookup[Forgotten](sn, ID{Class: Cluster, Kind: KindForgotten, Key: string(sn.self)})
	if !ok {
		return 0
	}
	return f.Epoch
}

// Node reports that a node is forgotten and has not come back.
func (g Gone) Node(id NodeID) bool { return g.nodes[id] }

// Record reports that an owner-scoped record was written before its node was
// forgotten. A node that comes back writes those anew that it may keep.
func (g Gone) Record(r *Record) bool {
	if r.ID.Class != Owner {
		return false
	}
	e, ok := g.epochs[r.ID.Owner]
	return ok && r.Version.Epoch <= e
}
