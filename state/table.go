package state

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"iter"
	"strings"
)

// tables holds all records in three orders: ids by kind, class, owner and key,
// so that a kind, or what a node has of it, is one stretch; owned and shared
// are what replication asks for, owner-scoped records by owner and version,
// all others by bucket.
type tables struct {
	ids, owned, shared tree[*Record]
}

func newTables() tables {
	return tables{newTree(compareIDs), newTree(compareMarks), newTree(compareBuckets)}
}

// clone returns tables of their own; the two share all that neither changes.
func (t tables) clone() tables { return tables{t.ids.clone(), t.owned.clone(), t.shared.clone()} }

// put stores a record and returns the one that it took the place of, or nil.
func (t tables) put(r *Record) *Record {
	r.bucket = bucketOf(r)
	old, _ := t.ids.put(r)
	if old != nil {
		t.order(old).remove(old)
	}
	t.order(r).put(r)
	return old
}

func (t tables) remove(r *Record) {
	t.ids.remove(r)
	t.order(r).remove(r)
}

func (t tables) get(id ID) *Record {
	r, _ := t.ids.get(&Record{ID: id})
	return r
}

// order returns the tree by which a record is replicated.
func (t tables) order(r *Record) tree[*Record] {
	if r.ID.Class == Owner {
		return t.owned
	}
	return t.shared
}

// kind returns the records of a kind, sorted by class, owner and key.
func (t tables) kind(k Kind) iter.Seq[*Record] { return t.scan(ID{Kind: k}) }

// scan returns the records that agree with id in kind, and in class and owner
// where it has them, and whose keys begin with its key.
func (t tables) scan(id ID) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		for r := range t.ids.from(&Record{ID: id}) {
			if r.ID.Kind != id.Kind || id.Class != 0 && r.ID.Class != id.Class ||
				id.Owner != "" && r.ID.Owner != id.Owner || !strings.HasPrefix(r.ID.Key, id.Key) || !yield(r) {
				return
			}
		}
	}
}

// history returns the records of an owner from a mark on, oldest first.
func (t tables) history(owner NodeID, from Mark) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		probe := &Record{ID: ID{Class: Owner, Owner: owner}, Version: Version{Epoch: from.Epoch, Seq: from.Seq}}
		for r := range t.owned.from(probe) {
			if r.ID.Owner != owner || !yield(r) {
				return
			}
		}
	}
}

// at returns the record of an owner that has a version, or nil.
func (t tables) at(owner NodeID, m Mark) *Record {
	for r := range t.history(owner, m) {
		if r.Version.mark() == m {
			return r
		}
		break
	}
	return nil
}

// inBucket returns the records of one bucket.
func (t tables) inBucket(i int) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		for r := range t.shared.from(&Record{bucket: uint8(i)}) {
			if int(r.bucket) != i || !yield(r) {
				return
			}
		}
	}
}

func compareIDs(a, b *Record) int {
	x, y := &a.ID, &b.ID
	if d := strings.Compare(string(x.Kind), string(y.Kind)); d != 0 {
		return d
	}
	if d := cmp.Compare(x.Class, y.Class); d != 0 {
		return d
	}
	if d := strings.Compare(string(x.Owner), string(y.Owner)); d != 0 {
		return d
	}
	return strings.Compare(x.Key, y.Key)
}

func compareMarks(a, b *Record) int {
	if d := strings.Compare(string(a.ID.Owner), string(b.ID.Owner)); d != 0 {
		return d
	}
	if d := Compare(Owner, a.Version, b.Version); d != 0 {
		return d
	}
	return compareIDs(a, b)
}

func compareBuckets(a, b *Record) int {
	if d := cmp.Compare(a.bucket, b.bucket); d != 0 {
		return d
	}
	return compareIDs(a, b)
}

// Bytes returns the ID as one key: kind, NUL, class, owner, NUL, key. It is
// prefix-free for each part, so that a kind is a prefix.
func (id ID) Bytes() []byte {
	b := make([]byte, 0, len(id.Kind)+len(id.Owner)+len(id.Key)+3)
	b = append(b, id.Kind...)
	b = append(b, 0, byte(id.Class))
	b = append(b, id.Owner...)
	b = append(b, 0)
	return append(b, id.Key...)
}

// NumBuckets is how many hash buckets the records of the non-owner classes
// are spread over for comparison between replicas.
const NumBuckets = 256

// BucketOf returns the bucket of a record, equal on every node.
func BucketOf(id ID) int {
	h := fnv.New32a()
	h.Write(id.Bytes())
	return int(h.Sum32() % NumBuckets)
}

// bucketOf is BucketOf for a record; one that replication orders by its owner
// needs none.
func bucketOf(r *Record) uint8 {
	if r.ID.Class == Owner {
		return 0
	}
	return uint8(BucketOf(r.ID))
}

// recordHash covers what replicas must agree on. Bucket hashes are the XOR of
// these, so that a change costs two XORs.
func recordHash(r *Record) uint64 {
	h := fnv.New64a()
	h.Write(r.ID.Bytes())
	var b [34]byte
	binary.BigEndian.PutUint64(b[0:], r.Version.Gen)
	binary.BigEndian.PutUint64(b[8:], uint64(r.Version.HLC))
	if r.Deleted {
		b[16] = 1
	}
	h.Write(b[:])
	h.Write([]byte(r.Version.Node))
	h.Write(r.Value)
	// FNV mixes its last bytes weakly; spread them before XORing.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
