package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nodenet/api"
	"nodenet/state"
)

// A snapshot file is a line that says what it is, and then parts: four bytes
// of length, big endian, and that much CBOR. The first part is the header,
// then come records, a thousand or so a part; the last part is the SHA-256 of
// all that is before it, so that a file cut short is noticed.
const snapshotMagic = "nodenet-snapshot 1\n"

const (
	snapshotRecords = 1000     // in a part
	snapshotPart    = 64 << 20 // bytes, for who reads one
)

// snapshotHeader is the first part. Secret and Key are there only on request.
type snapshotHeader struct {
	Created   int64          `cbor:"1,keyasint"` // Unix seconds
	Cluster   string         `cbor:"2,keyasint"`
	ClusterID string         `cbor:"3,keyasint"`
	RingID    string         `cbor:"4,keyasint"`
	Bootstrap bool           `cbor:"5,keyasint,omitempty"` // the node made the cluster
	Node      string         `cbor:"6,keyasint"`
	NodeID    state.NodeID   `cbor:"7,keyasint"`
	Epoch     uint64         `cbor:"8,keyasint"` // of the node, when it was saved
	Revision  uint64         `cbor:"9,keyasint"`
	Records   int            `cbor:"10,keyasint"`
	Heads     [][]state.Head `cbor:"11,keyasint,omitempty"` // in lists that can be decoded
	Version   string         `cbor:"12,keyasint,omitempty"`
	Secret    []byte         `cbor:"13,keyasint,omitempty"`
	Key       []byte         `cbor:"14,keyasint,omitempty"` // the node's, PEM
}

// saveSnapshot returns the state as one file: what one revision holds.
func (n *Node) saveSnapshot(_ context.Context, q api.SnapshotRequest) (*api.Snapshot, error) {
	sn := n.store.Snapshot()
	c := n.gossip.Cluster()
	recs := allRecords(sn)
	h := snapshotHeader{
		Created: time.Now().Unix(), Cluster: c.Name, ClusterID: c.ID, RingID: c.RingID, Bootstrap: c.Bootstrap,
		Node: n.cfg.Node.Name, NodeID: n.self, Epoch: n.store.Epoch(), Revision: sn.Rev(), Records: len(recs), Version: n.opts.Version,
		Heads: slices.Collect(slices.Chunk(sn.Heads(), snapshotRecords)),
	}
	if q.Secret {
		var err error
		h.Secret = n.gossip.Secret()
		if h.Key, err = os.ReadFile(filepath.Join(n.dir, "node.key")); err != nil {
			return nil, fmt.Errorf("read node key: %w", err)
		}
	}
	data, err := encodeSnapshot(h, recs)
	if err != nil {
		return nil, err
	}
	return &api.Snapshot{Data: data, Revision: sn.Rev(), Records: len(recs)}, nil
}

// allRecords returns every record of a snapshot, tombstones included.
func allRecords(sn *state.Snapshot) []state.Record {
	var out []state.Record
	for _, h := range sn.Heads() {
		// From the floor on: what lies below it has been collected.
		out = append(out, sn.Delta(h.Owner, state.Mark{}, 0).Records...)
	}
	for i := range state.NumBuckets {
		out = append(out, sn.Bucket(i)...)
	}
	return out
}

func encodeSnapshot(h snapshotHeader, recs []state.Record) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(snapshotMagic)
	put := func(v any) error {
		p, err := state.Encode(v)
		if err != nil {
			return fmt.Errorf("encode snapshot: %w", err)
		}
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		b.Write(p)
		return nil
	}
	if err := put(h); err != nil {
		return nil, err
	}
	for part := range slices.Chunk(recs, snapshotRecords) {
		if err := put(part); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(b.Bytes())
	if err := put(sum[:]); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decodeSnapshot is encodeSnapshot's inverse. It believes nothing of a file
// whose sum is not right.
func decodeSnapshot(data []byte) (h snapshotHeader, recs []state.Record, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(snapshotMagic))
	if !ok {
		if bytes.HasPrefix(data, []byte("nodenet-snapshot ")) {
			return h, nil, errors.New("snapshot of another version of nodenet: restore it with that one")
		}
		return h, nil, errors.New("no snapshot of nodenet")
	}
	var parts [][]byte
	for len(rest) > 0 {
		if len(rest) < 4 {
			return h, nil, errors.New("snapshot is cut short")
		}
		size := binary.BigEndian.Uint32(rest)
		if size > snapshotPart || uint64(size) > uint64(len(rest)-4) {
			return h, nil, errors.New("snapshot is cut short or damaged")
		}
		parts = append(parts, rest[4:4+size])
		rest = rest[4+size:]
	}
	if len(parts) < 2 {
		return h, nil, errors.New("snapshot is cut short")
	}
	last := parts[len(parts)-1]
	var sum []byte
	if err := state.Decode(last, &sum); err != nil {
		return h, nil, errors.New("snapshot is cut short: it does not end with its sum")
	}
	if want := sha256.Sum256(data[:len(data)-len(last)-4]); !bytes.Equal(sum, want[:]) {
		return h, nil, errors.New("snapshot is damaged: its sum is not right")
	}
	if err := state.Decode(parts[0], &h); err != nil {
		return h, nil, fmt.Errorf("header of the snapshot: %w", err)
	}
	for _, p := range parts[1 : len(parts)-1] {
		var list []state.Record
		if err := state.Decode(p, &list); err != nil {
			return h, nil, fmt.Errorf("records of the snapshot: %w", err)
		}
		recs = append(recs, list...)
	}
	if len(recs) != h.Records {
		return h, nil, fmt.Errorf("snapshot holds %d records, its header says %d", len(recs), h.Records)
	}
	return h, recs, nil
}
