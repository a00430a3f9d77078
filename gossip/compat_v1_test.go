package gossip

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// This file is the wire format and the replication of the version before
// heads were signed, frozen: it uses nothing of the packages that it is
// compared with. Never change it to make a test pass.

type v1Mark struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	Seq   uint64 `cbor:"2,keyasint,omitempty"`
}

type v1ID struct {
	Class uint8  `cbor:"1,keyasint"`
	Kind  string `cbor:"2,keyasint"`
	Owner string `cbor:"3,keyasint,omitempty"`
	Key   string `cbor:"4,keyasint"`
}

type v1Version struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	Seq   uint64 `cbor:"2,keyasint,omitempty"`
	HLC   uint64 `cbor:"3,keyasint,omitempty"`
	Gen   uint64 `cbor:"4,keyasint,omitempty"`
	Node  string `cbor:"5,keyasint,omitempty"`
}

type v1Record struct {
	ID      v1ID      `cbor:"1,keyasint"`
	Version v1Version `cbor:"2,keyasint"`
	Deleted bool      `cbor:"3,keyasint,omitempty"`
	Time    int64     `cbor:"4,keyasint,omitempty"`
	Value   []byte    `cbor:"5,keyasint,omitempty"`
}

type v1Head struct {
	Owner string `cbor:"1,keyasint"`
	Mark  v1Mark `cbor:"2,keyasint"`
	Floor v1Mark `cbor:"3,keyasint,omitempty"`
	Hash  []byte `cbor:"4,keyasint,omitempty"`
	Sig   []byte `cbor:"5,keyasint,omitempty"`
}

type v1Delta struct {
	Owner   string     `cbor:"1,keyasint"`
	From    v1Mark     `cbor:"2,keyasint,omitempty"`
	To      v1Mark     `cbor:"3,keyasint"`
	Replace bool       `cbor:"4,keyasint,omitempty"`
	Records []v1Record `cbor:"5,keyasint,omitempty"`
	Floor   v1Mark     `cbor:"7,keyasint,omitempty"`
	Sig     []byte     `cbor:"6,keyasint,omitempty"`
}

type v1Root struct {
	Sum   []byte `cbor:"1,keyasint"`
	Fresh bool   `cbor:"2,keyasint,omitempty"`
}

type v1Same struct {
	Fresh bool `cbor:"1,keyasint,omitempty"`
}

type v1Digest struct {
	Heads   []v1Head `cbor:"1,keyasint"`
	Buckets []uint64 `cbor:"2,keyasint"`
	Answer  bool     `cbor:"3,keyasint,omitempty"`
	More    bool     `cbor:"4,keyasint,omitempty"`
	Fresh   bool     `cbor:"5,keyasint,omitempty"`
}

type v1Deltas struct {
	Deltas  []v1Delta `cbor:"1,keyasint"`
	Partial bool      `cbor:"2,keyasint,omitempty"`
}

type v1Records struct {
	Records []v1Record `cbor:"1,keyasint"`
}

type v1Done struct {
	More  bool `cbor:"1,keyasint,omitempty"`
	Fresh bool `cbor:"2,keyasint,omitempty"`
}

type v1Push struct {
	Deltas  []v1Delta  `cbor:"1,keyasint,omitempty"`
	Records []v1Record `cbor:"2,keyasint,omitempty"`
	Sent    []string   `cbor:"3,keyasint,omitempty"`
}

const (
	v1KindRoot, v1KindSame, v1KindDigest    = 5, 6, 7
	v1KindDeltas, v1KindRecords, v1KindDone = 8, 9, 10
	v1KindPush                              = 11
)

func v1New(kind byte) any {
	switch kind {
	case v1KindRoot:
		return new(v1Root)
	case v1KindSame:
		return new(v1Same)
	case v1KindDigest:
		return new(v1Digest)
	case v1KindDeltas:
		return new(v1Deltas)
	case v1KindRecords:
		return new(v1Records)
	case v1KindDone:
		return new(v1Done)
	case v1KindPush:
		return new(v1Push)
	}
	return nil // skipped
}

func v1Kind(f any) byte {
	for k := byte(0); k < 32; k++ {
		if n := v1New(k); n != nil && fmt.Sprintf("%T", n) == fmt.Sprintf("%T", f) {
			return k
		}
	}
	panic(fmt.Sprintf("%T is no frame", f))
}

func v1Encode(f any) []byte {
	em, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	body, err := em.Marshal(f)
	if err != nil {
		panic(err)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+2))
	return append(append(b, 1, v1Kind(f)), body...)
}

func v1Decode(wire []byte) (any, error) {
	if len(wire) < 6 || int(binary.BigEndian.Uint32(wire)) != len(wire)-4 || wire[4] != 1 {
		return nil, fmt.Errorf("not a frame of version 1: %x", wire[:min(len(wire), 8)])
	}
	f := v1New(wire[5])
	if f == nil {
		return nil, nil
	}
	dm, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 1 << 17, MaxMapPairs: 1 << 10, MaxNestedLevels: 16}.DecMode()
	if err != nil {
		return nil, err
	}
	return f, dm.Unmarshal(wire[6:], f)
}

func (m v1Mark) less(o v1Mark) bool { return m.Epoch < o.Epoch || m.Epoch == o.Epoch && m.Seq < o.Seq }

func (r *v1Record) mark() v1Mark { return v1Mark{r.Version.Epoch, r.Version.Seq} }

// newer reports whether a is newer than b.
func (a v1Version) newer(class uint8, b v1Version) bool {
	switch {
	case class == 1:
		return v1Mark{b.Epoch, b.Seq}.less(v1Mark{a.Epoch, a.Seq})
	case class != 2 && a.Gen != b.Gen:
		return a.Gen > b.Gen
	case a.HLC != b.HLC:
		return a.HLC > b.HLC
	}
	return a.Node > b.Node
}

func (id v1ID) bytes() []byte {
	return fmt.Appendf(nil, "%s\x00%c%s\x00%s", id.Kind, id.Class, id.Owner, id.Key)
}

func (id v1ID) bucket() int {
	h := fnv.New32a()
	h.Write(id.bytes())
	return int(h.Sum32() % 256)
}

func (r *v1Record) hash() uint64 {
	h := fnv.New64a()
	h.Write(r.ID.bytes())
	var b [34]byte
	binary.BigEndian.PutUint64(b[0:], r.Version.Gen)
	binary.BigEndian.PutUint64(b[8:], r.Version.HLC)
	if r.Deleted {
		b[16] = 1
	}
	h.Write(b[:])
	h.Write([]byte(r.Version.Node))
	h.Write(r.Value)
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

// v1Node is a store and a replica of version 1.
type v1Node struct {
	self    string
	mark    v1Mark
	recs    map[v1ID]v1Record
	heads   map[string]v1Head
	budget  int
	more    bool
	pending *v1Delta
	skipped int // frames of unknown kinds
	errs    []error
}

func newV1(self string) *v1Node {
	return &v1Node{self: self, mark: v1Mark{Epoch: 1}, recs: map[v1ID]v1Record{}, heads: map[string]v1Head{}, budget: 1 << 20}
}

// own writes or deletes (nil) an own record.
func (n *v1Node) own(kind, key string, value []byte) {
	n.mark.Seq++
	n.put(v1Record{ID: v1ID{1, kind, n.self, key}, Version: v1Version{Epoch: n.mark.Epoch, Seq: n.mark.Seq},
		Time: 1_700_000_000, Deleted: value == nil, Value: value})
}

func (n *v1Node) put(r v1Record) {
	if r.ID.Class == 1 {
		h := n.heads[r.ID.Owner]
		if h.Owner = r.ID.Owner; h.Mark.less(r.mark()) {
			h.Mark = r.mark()
		}
		n.heads[r.ID.Owner] = h
	}
	n.recs[r.ID] = r
}

// collect drops all tombstones of owners.
func (n *v1Node) collect() {
	for id, r := range n.recs {
		if id.Class == 1 && r.Deleted {
			h := n.heads[id.Owner]
			if h.Floor.less(r.mark()) {
				h.Floor = r.mark()
			}
			n.heads[id.Owner] = h
			delete(n.recs, id)
		}
	}
}

func (n *v1Node) sortedHeads() (out []v1Head) {
	for _, id := range slices.Sorted(maps.Keys(n.heads)) {
		out = append(out, n.heads[id])
	}
	return out
}

func (n *v1Node) buckets() []uint64 {
	b := make([]uint64, 256)
	for id, r := range n.recs {
		if id.Class != 1 {
			b[id.bucket()] ^= r.hash()
		}
	}
	return b
}

func (n *v1Node) root() []byte {
	h := sha256.New()
	for _, hd := range n.sortedHeads() {
		if hd.Mark != (v1Mark{}) {
			b := append([]byte(hd.Owner), 0)
			b = binary.BigEndian.AppendUint64(b, hd.Mark.Epoch)
			h.Write(binary.BigEndian.AppendUint64(b, hd.Mark.Seq))
		}
	}
	var b []byte
	for _, v := range n.buckets() {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	h.Write(b)
	return h.Sum(nil)
}

func (n *v1Node) digest() *v1Digest { return &v1Digest{Heads: n.sortedHeads(), Buckets: n.buckets()} }

func (n *v1Node) delta(owner string, from v1Mark, limit int) v1Delta {
	head := n.heads[owner]
	d := v1Delta{Owner: owner, From: from, To: head.Mark}
	if from.less(head.Floor) {
		d.Replace, d.From, d.Floor, from, limit = true, v1Mark{}, head.Floor, v1Mark{}, 0
	}
	for id, r := range n.recs {
		if id.Class == 1 && id.Owner == owner && from.less(r.mark()) &&
			!(d.Replace && r.Deleted && !head.Floor.less(r.mark())) {
			d.Records = append(d.Records, r)
		}
	}
	slices.SortFunc(d.Records, func(a, b v1Record) int {
		if a.mark().less(b.mark()) {
			return -1
		}
		return 1
	})
	if limit > 0 && len(d.Records) > limit {
		d.Records = d.Records[:limit]
		d.To = d.Records[limit-1].mark()
	}
	return d
}

func (n *v1Node) mergeDelta(d v1Delta) (gap bool) {
	head := n.heads[d.Owner]
	if !head.Mark.less(d.To) {
		return false
	}
	if !d.Replace && head.Mark.less(d.From) {
		return true
	}
	keep := map[v1ID]bool{}
	for _, r := range d.Records {
		if r.ID.Class != 1 || r.ID.Owner != d.Owner {
			n.errs = append(n.errs, fmt.Errorf("record %v does not belong", r.ID))
			return false
		}
		keep[r.ID] = true
		if old, ok := n.recs[r.ID]; !ok || r.Version.newer(1, old.Version) {
			n.put(r)
		}
	}
	if d.Replace {
		for id, r := range n.recs {
			if id.Class == 1 && id.Owner == d.Owner && !keep[id] && !d.To.less(r.mark()) {
				n.recs[id] = v1Record{ID: id, Version: r.Version, Time: r.Time, Deleted: true}
			}
		}
	}
	h := n.heads[d.Owner]
	h.Owner, h.Mark = d.Owner, d.To
	if d.Replace && h.Floor.less(d.Floor) {
		h.Floor = d.Floor
	}
	n.heads[d.Owner] = h
	return false
}

func (n *v1Node) merge(recs []v1Record) {
	for _, r := range recs {
		if old, ok := n.recs[r.ID]; !ok || r.Version.newer(r.ID.Class, old.Version) {
			n.put(r)
		}
	}
}

func v1Size(recs []v1Record) (n int) {
	for _, r := range recs {
		n += len(r.Value) + len(r.ID.Key) + 128
	}
	return n
}

func (n *v1Node) missing(d *v1Digest) (out []any, more bool) {
	theirs := map[string]v1Mark{}
	for _, h := range d.Heads {
		theirs[h.Owner] = h.Mark
	}
	total := 0
	for _, h := range n.sortedHeads() {
		for from := theirs[h.Owner]; from.less(h.Mark); {
			if total >= n.budget {
				return out, true
			}
			part := n.delta(h.Owner, from, 512)
			size := v1Size(part.Records)
			for limit := 512; size > 256<<10 && limit > 1 && !part.Replace; {
				limit = max(1, min(limit/2, len(part.Records)/2))
				part = n.delta(h.Owner, from, limit)
				size = v1Size(part.Records)
			}
			total += size + 64
			rest := part.Records
			for part.Replace && v1Size(rest) > 256<<10 {
				p := part
				p.Records, rest = rest[:len(rest)/2], rest[len(rest)/2:]
				out = append(out, &v1Deltas{Deltas: []v1Delta{p}, Partial: true})
			}
			part.Records = rest
			out = append(out, &v1Deltas{Deltas: []v1Delta{part}})
			from = part.To
		}
	}
	ours := n.buckets()
	var recs []v1Record
	for id, r := range n.recs {
		if id.Class != 1 && len(d.Buckets) == len(ours) && d.Buckets[id.bucket()] != ours[id.bucket()] {
			recs = append(recs, r)
		}
	}
	for part := range slices.Chunk(recs, 500) {
		out = append(out, &v1Records{Records: part})
	}
	return out, more
}

func (n *v1Node) start() any { return &v1Root{Sum: n.root()} }

func (n *v1Node) handle(f any) (reply []any) {
	switch f := f.(type) {
	case nil:
		n.skipped++
	case *v1Root:
		if bytes.Equal(n.root(), f.Sum) {
			return []any{&v1Same{}}
		}
		return []any{n.digest()}
	case *v1Digest:
		reply, more := n.missing(f)
		if f.Answer {
			return append(reply, &v1Done{More: more})
		}
		d := n.digest()
		d.Answer, d.More, n.more = true, more, more
		return append(reply, d)
	case *v1Done:
		again := f.More || n.more
		n.more = false
		if again {
			return []any{n.start()}
		}
	case *v1Deltas:
		if p := n.pending; p != nil && (len(f.Deltas) != 1 || !f.Deltas[0].Replace || f.Deltas[0].Owner != p.Owner ||
			f.Deltas[0].To != p.To || f.Deltas[0].Floor != p.Floor) {
			n.pending = nil
			n.errs = append(n.errs, fmt.Errorf("merge replacement of %s: its end did not come", p.Owner))
		}
		if n.pending != nil || f.Partial {
			if len(f.Deltas) != 1 || !f.Deltas[0].Replace {
				n.errs = append(n.errs, fmt.Errorf("merge replacement: not a part of one"))
				return nil
			}
			if n.pending == nil {
				n.pending = &f.Deltas[0]
			} else {
				n.pending.Records = append(n.pending.Records, f.Deltas[0].Records...)
			}
			if f.Partial {
				return nil
			}
			n.mergeDelta(*n.pending)
			n.pending = nil
			return nil
		}
		for _, d := range f.Deltas {
			n.mergeDelta(d)
		}
	case *v1Records:
		n.merge(f.Records)
	case *v1Push:
		gap := false
		for _, d := range f.Deltas {
			gap = n.mergeDelta(d) || gap
		}
		n.merge(f.Records)
		if gap {
			return []any{n.start()}
		}
	}
	return reply
}
