package state

import (
	"encoding/binary"
	"errors"
	"hash/fnv"

	"github.com/hashicorp/go-memdb"
)

// One table holds all records under two unique indexes. "id" orders them by
// kind, so that a kind is a prefix scan; "sync" orders owner-scoped records by
// owner and version and all others by bucket, which is what replication asks for.
const (
	table     = "record"
	indexID   = "id"
	indexSync = "sync"
)

func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		table: {
			Name: table,
			Indexes: map[string]*memdb.IndexSchema{
				indexID:   {Name: indexID, Unique: true, Indexer: byID{}},
				indexSync: {Name: indexSync, Unique: true, Indexer: bySync{}},
			},
		},
	}}
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

func kindPrefix(k Kind) []byte { return append([]byte(k), 0) }

func ownerPrefix(owner NodeID) []byte {
	b := make([]byte, 0, len(owner)+18)
	b = append(b, 'o')
	b = append(b, owner...)
	return append(b, 0)
}

func ownerKey(owner NodeID, m Mark) []byte {
	b := ownerPrefix(owner)
	b = binary.BigEndian.AppendUint64(b, m.Epoch)
	return binary.BigEndian.AppendUint64(b, m.Seq)
}

func bucketPrefix(i int) []byte { return []byte{'b', byte(i)} }

type byID struct{}

func (byID) FromObject(o any) (bool, []byte, error) { return true, o.(*Record).ID.Bytes(), nil }
func (byID) FromArgs(a ...any) ([]byte, error)      { return rawArg(a) }
func (byID) PrefixFromArgs(a ...any) ([]byte, error) {
	return rawArg(a)
}

type bySync struct{}

func (bySync) FromObject(o any) (bool, []byte, error) {
	r := o.(*Record)
	if r.ID.Class == Owner {
		return true, ownerKey(r.ID.Owner, r.Version.mark()), nil
	}
	return true, append(bucketPrefix(BucketOf(r.ID)), r.ID.Bytes()...), nil
}
func (bySync) FromArgs(a ...any) ([]byte, error)       { return rawArg(a) }
func (bySync) PrefixFromArgs(a ...any) ([]byte, error) { return rawArg(a) }

func rawArg(a []any) ([]byte, error) {
	if len(a) == 1 {
		if b, ok := a[0].([]byte); ok {
			return b, nil
		}
	}
	return nil, errors.New("index argument: want one []byte")
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
