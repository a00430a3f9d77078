package gossip

import (
	"bytes"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"unicode/utf8"

	"nodenet/state"
)

// FuzzHello: what a verified peer may say first, on either protocol. It ends
// in a reason that people can read, or in nothing; it never makes this node
// take itself for a copy unless the hello has its own ID.
func FuzzHello(f *testing.F) {
	id, err := NewIdentity()
	if err != nil {
		f.Fatal(err)
	}
	peer, err := NewIdentity()
	if err != nil {
		f.Fatal(err)
	}
	for _, h := range []frame{
		&hello{Proto: protoVersion, ClusterID: "c", RingID: "r", Node: peer.ID, Name: "n", Instance: []byte("x"), Epoch: 9, Held: 1 << 63, Addr: "192.0.2.1", Began: 7, Probe: true},
		&hello{Proto: protoVersion, Node: id.ID, Instance: []byte("x")},
		&hello{Proto: 9, Addr: "\x1b[31m"},
		&refuse{Code: codeClone, Reason: "\x00"},
		&joinHello{Proto: protoVersion, ClusterID: "c", Code: []byte("code"), Name: "n"},
	} {
		b, err := encodeFrame(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, n, err := readFrame(io.LimitReader(bytes.NewReader(b), maxEarly+frameHeader), maxEarly)
		if n > maxEarly+frameHeader {
			t.Fatalf("%d bytes taken before the peer was verified", n)
		}
		h, ok := fr.(*hello)
		if err != nil || !ok {
			return
		}
		store, err := state.NewStore(state.Options{Self: id.ID, Log: state.NoLog{}})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		g, err := New(Options{
			Identity: id, Cluster: &Cluster{ID: "c", RingID: "r"}, Secret: make([]byte, SecretSize), Store: store, Name: "node1",
			Advertise: netip.MustParseAddr("192.0.2.2"), Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []state.NodeID{h.Node, peer.ID} {
			if r := g.check(from, h); r != nil {
				if len(r.Reason) == 0 || !utf8.ValidString(r.Reason) || printable(r.Reason) != r.Reason {
					t.Errorf("reason %q of %s", r.Reason, r.Code)
				}
				continue
			}
			g.holders(from, h)
			g.addLink(g.newLink(nil, from, h, "192.0.2.1", false))
		}
		select {
		case <-g.clones.found:
			if h.Node != id.ID {
				t.Error("a hello of another node made this one a copy")
			}
		default:
		}
	})
}
