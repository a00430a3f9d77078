package node

import (
	"testing"

	"nodenet/state"
)

func FuzzDecodeSnapshot(f *testing.F) {
	b, err := encodeSnapshot(snapshotHeader{Cluster: "c", ClusterID: "i", Records: 1},
		[]state.Record{{ID: state.ID{Class: state.Cluster, Kind: state.KindName, Key: "a A"}, Version: state.Version{HLC: 1}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(snapshotMagic))
	f.Add(b[:len(b)-5])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, recs, err := decodeSnapshot(b)
		if err == nil && len(recs) != h.Records {
			t.Errorf("%d records, the header says %d", len(recs), h.Records)
		}
	})
}
