package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

// allFrames is one of each kind.
func allFrames() []frame {
	const owner = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	rec := state.Record{ID: state.ID{Class: state.Cluster, Kind: "name", Key: "x"}, Version: state.Version{HLC: 1, Node: owner}, Value: []byte{0xa0}}
	d := state.Delta{Owner: owner, From: state.Mark{Epoch: 1}, To: state.Mark{Epoch: 1, Seq: 2}}
	return []frame{
		&hello{Proto: 1, ClusterID: "c", Node: owner, Instance: []byte{1}, Epoch: 3, Held: 4, Addr: "192.0.2.1", SyncPort: 7947},
		&refuse{Code: codeSecret, Reason: "no"},
		&ping{ID: 1}, &pong{ID: 1},
		&root{Sum: []byte{1, 2}}, &same{Fresh: true},
		&digest{Heads: []state.Head{{Owner: owner, Mark: state.Mark{Epoch: 1, Seq: 9}}}, Buckets: make([]uint64, 256), Answer: true},
		&deltas{Deltas: []state.Delta{d}, Partial: true},
		&records{Records: []state.Record{rec}},
		&done{More: true},
		&push{Deltas: []state.Delta{d}, Records: []state.Record{rec}, Sent: []state.NodeID{owner}},
		&request{ID: 1, Method: "m", Body: []byte("b"), Timeout: 5}, &response{ID: 1, Error: "e"},
		&bye{}, &bucket{Index: 3, Horizon: 9, Records: []state.Record{rec}, Partial: true},
		&joinHello{Proto: 1, ClusterID: "c", Code: []byte{1}}, &challenge{CA: []byte{1}}, &proof{MAC: []byte{1}},
		&grant{MAC: []byte{1}, Secret: []byte{2}, ClusterID: "c", RingID: "r", Seeds: []string{"192.0.2.1:7947"}},
	}
}

func TestFrameRoundTrip(t *testing.T) {
	seen := map[kind]bool{}
	for _, f := range allFrames() {
		b, err := encodeFrame(f)
		if err != nil {
			t.Fatalf("%s: %v", f.kind(), err)
		}
		got, n, err := readFrame(bytes.NewReader(b), MaxFrame)
		if err != nil || n != len(b) {
			t.Fatalf("%s: read %d of %d bytes: %v", f.kind(), n, len(b), err)
		}
		if diff := cmp.Diff(f, got, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f.kind(), diff)
		}
		seen[f.kind()] = true
	}
	for k := range kindNames {
		if !seen[k] {
			t.Errorf("no test frame of kind %s", k)
		}
		if newFrame(k) == nil || newFrame(k).kind() != k {
			t.Errorf("newFrame(%s) makes another kind", k)
		}
	}
}

func TestFrameFromAnotherVersion(t *testing.T) {
	unknown := []byte{0, 0, 0, 3, frameVersion, 200, 0xa0}
	if f, n, err := readFrame(bytes.NewReader(unknown), MaxFrame); f != nil || n != 7 || err != nil {
		t.Errorf("unknown kind: %v, %d, %v: want it skipped", f, n, err)
	}
	field := []byte{0, 0, 0, 7, frameVersion, byte(kindPing), 0xa2, 0x01, 0x05, 0x18, 0x63} // {1: 5, 99: …
	field = append(field, 0x01)
	field[3] = 8
	if f, _, err := readFrame(bytes.NewReader(field), MaxFrame); err != nil || f.(*ping).ID != 5 {
		t.Errorf("unknown field: %v, %v: want it ignored", f, err)
	}
	newer := []byte{0, 0, 0, 3, frameVersion + 1, byte(kindPing), 0xa0}
	if _, _, err := readFrame(bytes.NewReader(newer), MaxFrame); !errors.Is(err, errFrameVersion) {
		t.Errorf("newer framing: %v", err)
	}
}

func TestFrameTooLarge(t *testing.T) {
	b := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	b = append(b, frameVersion, byte(kindPush))
	if _, _, err := readFrame(bytes.NewReader(b), MaxFrame); !errors.Is(err, errFrameSize) {
		t.Errorf("read: %v", err)
	}
	if _, err := encodeFrame(&request{Body: make([]byte, MaxFrame)}); !errors.Is(err, errFrameSize) {
		t.Errorf("encode: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	for _, fr := range allFrames() {
		b, err := encodeFrame(fr)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := newStore(f, state.Options{})
	f.Cleanup(func() { s.Close() })
	r := &replica{tables: s}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, n, err := readFrame(bytes.NewReader(b), MaxFrame)
		if n > len(b) {
			t.Fatalf("%d bytes taken of %d", n, len(b))
		}
		if err != nil || fr == nil {
			return
		}
		if _, err := encodeFrame(fr); err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		o := r.handle(&session{}, fr)
		for _, reply := range o.reply {
			if _, err := encodeFrame(reply); err != nil {
				t.Fatalf("reply: %v", err)
			}
		}
	})
}
