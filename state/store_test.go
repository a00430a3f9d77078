package state

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testID returns a valid, stable node ID.
func testID(n byte) NodeID {
	return NodeIDFromKey(ed25519.NewKeyFromSeed(append(make([]byte, 31), n)).Public().(ed25519.PublicKey))
}

func newStore(t *testing.T, n byte, log Log) *Store {
	t.Helper()
	s, err := NewStore(Options{Self: testID(n), Epoch: 1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s *Store, ops ...Op) {
	t.Helper()
	if _, err := s.Write(context.Background(), func(*Snapshot) ([]Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

// pull brings everything that from holds to to, as replication would.
func pull(t *testing.T, to, from *Store) {
	t.Helper()
	sn := from.Snapshot()
	for _, h := range sn.Heads() {
		for {
			at := to.Snapshot().Head(h.Owner).Mark
			if at.Compare(h.Mark) >= 0 {
				break
			}
			limit := 2
			if h.Signed() {
				limit = 0 // parts are put together before they are merged
			}
			if _, err := to.MergeDelta(sn.Delta(h.Owner, at, limit)); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b := sn.Buckets(), to.Snapshot().Buckets()
	for i := range a {
		if a[i] != b[i] {
			if _, err := to.Merge(sn.Bucket(i), true); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestValuesSurviveEncoding(t *testing.T) {
	for _, v := range []any{
		&Node{Name: "n1", Advertise: netip.MustParseAddr("192.0.2.1"), PublicKey: []byte{1}, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
		&Network{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Block: 24, Overlay: OverlayVXLAN},
		&Endpoint{ID: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.2")}, Labels: map[string]string{"app": "web"}, Ready: true},
		&Service{Namespace: "apps", Name: "web", VIP: netip.MustParseAddr("10.96.0.20"), Ports: []ServicePort{{Name: "http", Protocol: "tcp", Port: 80}}},
		&Publish{Protocol: "tcp", HostPort: 8080, Target: netip.MustParseAddr("2001:db8::2"), Port: 80},
		&VIP{NodePorts: map[string]uint16{"80/tcp": 30080}},
	} {
		b, err := Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		got := newValue(kindOf(v))
		if err := Decode(b, got); err != nil {
			t.Fatalf("%T: %v", v, err)
		}
		if diff := cmp.Diff(v, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%T (-want +got):\n%s", v, diff)
		}
	}
}

func TestWriteIsVisibleToTheNextWrite(t *testing.T) {
	s := newStore(t, 1, nil)
	for i := range 50 {
		_, err := s.Write(context.Background(), func(sn *Snapshot) ([]Op, error) {
			n := 0
			for range All[Block](sn) {
				n++
			}
			if n != i {
				t.Errorf("write %d sees %d blocks", i, n)
			}
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)
			return []Op{Put(Owner, KindBlock, "pods/"+p.String(), Block{Network: "pods", Prefix: p})}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if m := s.Snapshot().Head(s.Self()).Mark; m != (Mark{1, 50}) {
		t.Errorf("head %v, want epoch 1 seq 50", m)
	}
}

// failLog fails while told to.
type failLog struct{ fail bool }

func (l *failLog) Commit([]Record) error {
	if l.fail {
		return errors.New("no space left on device")
	}
	return nil
}

func TestFailedCommitChangesNothing(t *testing.T) {
	log := &failLog{}
	s := newStore(t, 1, log)
	put(t, s, Put(Owner, KindNode, "self", Node{Name: "a"}))
	before := s.Snapshot()
	log.fail = true
	_, err := s.Write(context.Background(), func(*Snapshot) ([]Op, error) {
		return []Op{Put(Owner, KindNode, "self", Node{Name: "b"})}, nil
	})
	if err == nil {
		t.Fatal("write succeeded without a disk")
	}
	if s.Snapshot() != before {
		t.Error("a write that failed is visible")
	}
	// What peers say goes on being heard.
	o := newStore(t, 2, nil)
	put(t, o, Put(Owner, KindNode, "self", Node{Name: "o"}))
	if n, err := s.MergeDelta(o.Snapshot().Delta(o.Self(), Mark{}, 0)); n != 1 || err != nil {
		t.Errorf("merge on a full disk: %d, %v", n, err)
	}
	log.fail = false
	put(t, s, Put(Owner, KindNode, "self", Node{Name: "c"}))
	if m := s.Snapshot().Head(s.Self()).Mark; m != (Mark{1, 2}) {
		t.Errorf("head %v, want seq 2: the failed write must leave no gap", m)
	}
}

func TestDeltaGapAndReplace(t *testing.T) {
	a, b := newStore(t, 1, nil), newStore(t, 2, nil)
	put(t, a, Put(Owner, KindNode, "self", Node{Name: "a"}))
	put(t, a, Put(Owner, KindBlock, "pods/x", Block{Network: "pods"}))
	late := a.Snapshot().Delta(a.Self(), Mark{1, 1}, 0)
	if _, err := b.MergeDelta(late); !errors.Is(err, ErrGap) {
		t.Fatalf("delta beyond our head: %v, want ErrGap", err)
	}
	pull(t, b, a)
	put(t, a, Del(Owner, KindBlock, "pods/x"))
	a.clock.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	if n, err := a.Collect(time.Now().Add(24 * time.Hour)); n != 1 || err != nil {
		t.Fatalf("collect: %d, %v", n, err)
	}
	put(t, a, Put(Owner, KindBlock, "pods/y", Block{Network: "pods"}))
	d := a.Snapshot().Delta(a.Self(), b.Snapshot().Head(a.Self()).Mark, 0)
	if !d.Replace {
		t.Fatal("a replica below the floor must get the whole set")
	}
	if _, err := b.MergeDelta(d); err != nil {
		t.Fatal(err)
	}
	if _, ok := Lookup[Block](b.Snapshot(), ID{Owner, KindBlock, a.Self(), "pods/x"}); ok {
		t.Error("a deleted record came back")
	}
	if _, ok := Lookup[Block](b.Snapshot(), ID{Owner, KindBlock, a.Self(), "pods/y"}); !ok {
		t.Error("the new record is missing")
	}
}

func TestForeignWriterIsRefused(t *testing.T) {
	a, clone := newStore(t, 1, nil), newStore(t, 1, nil)
	put(t, a, Put(Owner, KindNode, "self", Node{Name: "a"}))
	clone.SetEpoch(5)
	put(t, clone, Put(Owner, KindNode, "self", Node{Name: "clone"}))
	if _, err := a.MergeDelta(clone.Snapshot().Delta(a.Self(), Mark{}, 0)); !errors.Is(err, ErrForeignWriter) {
		t.Errorf("got %v, want ErrForeignWriter", err)
	}
}

func TestContestedRangeIsShown(t *testing.T) {
	a, b := newStore(t, 1, nil), newStore(t, 2, nil)
	// The one that is heard first must win, or else the other side never
	// hears of the loser.
	a.clock.Now = func() time.Time { return time.Now().Add(time.Second) }
	p := netip.MustParsePrefix("10.244.0.0/16")
	put(t, a, Put(Ring, KindRing, "pods/10.244.0.0/16", Range{Ring: "pods", RingID: "r1", Prefix: p, Owner: a.Self()}))
	put(t, b, Put(Ring, KindRing, "pods/10.244.0.0/16", Range{Ring: "pods", RingID: "r2", Prefix: p, Owner: b.Self()}))
	pull(t, a, b)
	pull(t, b, a)
	ca, cb := a.Snapshot().Conflicts(), b.Snapshot().Conflicts()
	if len(ca) != 1 || len(cb) != 1 || ca[0].Winner != cb[0].Winner {
		t.Errorf("conflicts differ:\n%v\n%v", ca, cb)
	}
}

func TestViewResolvesServices(t *testing.T) {
	s := newStore(t, 1, nil)
	o := newStore(t, 2, nil)
	put(t, s, Put(Owner, KindNode, "self", Node{Name: "node1"}),
		Put(Owner, KindEndpoint, "e1", Endpoint{ID: "e1", Network: "pods", Namespace: "apps", Name: "web1", Labels: map[string]string{"app": "web"},
			Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.2")}, Ports: []Port{{"http", "tcp", 8080}}, Ready: true}),
		Put(Cluster, KindService, "apps/web", Service{Namespace: "apps", Name: "web", Selector: map[string]string{"app": "web"}, Ports: []ServicePort{{Name: "http", Protocol: "tcp", Port: 80}}}),
		Put(Cluster, KindVIP, "apps/web", VIP{Addr: netip.MustParseAddr("10.96.0.20")}))
	put(t, o, Put(Owner, KindNode, "self", Node{Name: "node2"}),
		Put(Owner, KindEndpoint, "e2", Endpoint{ID: "e2", Network: "pods", Namespace: "apps", Name: "web2", Labels: map[string]string{"app": "web"},
			Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Ready: true}))
	pull(t, s, o)
	s.SetLiveness(map[NodeID]Live{o.Self(): {State: Dead}})
	got := slices.Collect(s.Snapshot().View().Services())
	if len(got) != 1 || got[0].VIP.String() != "10.96.0.20" {
		t.Fatalf("services %+v", got)
	}
	want := []BackendOf{
		{Key: "e1@" + string(s.Self()), Addr: netip.MustParseAddr("10.244.0.2"), Targets: []uint16{8080}, Hostname: "web1", Endpoint: "e1", Node: s.Self(), Weight: 1, Declared: 1, Ready: true},
		{Key: "e2@" + string(o.Self()), Addr: netip.MustParseAddr("10.244.1.2"), Targets: []uint16{80}, Hostname: "web2", Endpoint: "e2", Node: o.Self(), Weight: 1, Declared: 1, Why: "node2 is dead"},
	}
	if diff := cmp.Diff(want, got[0].Backends, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
}

// A writer whose clock is far ahead must not be the last word for ever.
func TestWriteWinsOverARecordFromTheFuture(t *testing.T) {
	a, b := newStore(t, 1, nil), newStore(t, 2, nil)
	a.clock.Now = func() time.Time { return time.Now().Add(5 * time.Hour) }
	id := ID{Class: Cluster, Kind: KindService, Key: "apps/web"}
	put(t, a, Put(Cluster, KindService, id.Key, Service{Namespace: "apps", Name: "web", External: "a.example"}))
	pull(t, b, a)
	put(t, b, Del(Cluster, KindService, id.Key))
	pull(t, a, b)
	pull(t, b, a)
	for _, s := range []*Store{a, b} {
		if _, ok := Lookup[Service](s.Snapshot(), id); ok {
			t.Errorf("%s: the service is back after it was deleted", s.Self().Short())
		}
	}
}

func TestClockGoesOnBehindWhatWasSaved(t *testing.T) {
	a, peer := newStore(t, 1, nil), newStore(t, 2, nil)
	a.clock.Now = func() time.Time { return time.Now().Add(time.Minute) }
	put(t, a, Put(Cluster, KindVIP, "apps/web", VIP{Addr: netip.MustParseAddr("10.96.0.20")}))
	pull(t, peer, a)
	// A restart, and the clock was set right meanwhile.
	rec, _ := a.Snapshot().Get(ID{Class: Cluster, Kind: KindVIP, Key: "apps/web"})
	again, err := NewStore(Options{Self: testID(1), Epoch: 2, Records: []Record{rec}})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	put(t, again, Put(Cluster, KindVIP, "apps/db", VIP{Addr: netip.MustParseAddr("10.96.0.21")}))
	db, _ := again.Snapshot().Get(ID{Class: Cluster, Kind: KindVIP, Key: "apps/db"})
	if db.Version.HLC <= rec.Version.HLC {
		t.Errorf("a write after the restart is at %v, before the saved %v", db.Version.HLC, rec.Version.HLC)
	}
}

// orderLog notes what it holds, and what heads it was given beyond that.
type orderLog struct {
	fail  bool
	saved map[ID]Record
	early []Head
}

func (l *orderLog) Commit(batch []Record) error {
	if l.fail {
		return errors.New("no space left on device")
	}
	for _, r := range batch {
		l.saved[r.ID] = r
	}
	return nil
}

func (l *orderLog) Drop(ids []ID, heads []Head) error {
	for _, id := range ids {
		delete(l.saved, id)
	}
	for _, h := range heads {
		var have Mark
		for id, r := range l.saved {
			if id.Owner == h.Owner && r.Version.mark().Compare(have) > 0 {
				have = r.Version.mark()
			}
		}
		if have.Compare(h.Mark) < 0 && h.Mark.Compare(h.Floor) > 0 {
			l.early = append(l.early, h)
		}
	}
	return nil
}

// A head on disk without its records would never be asked for again.
func TestCollectSavesNoHeadBeforeItsRecords(t *testing.T) {
	log := &orderLog{saved: map[ID]Record{}}
	s, o := newStore(t, 1, log), newStore(t, 2, nil)
	put(t, s, Put(Owner, KindBlock, "pods/x", Block{Network: "pods"}))
	put(t, s, Del(Owner, KindBlock, "pods/x"))
	put(t, s, Put(Owner, KindNode, "self", Node{Name: "a"}))
	put(t, o, Put(Owner, KindNode, "self", Node{Name: "o"}))
	log.fail = true
	pull(t, s, o) // heard, not saved
	if n, err := s.Collect(time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Fatalf("collect: %d, %v", n, err)
	}
	if len(log.early) > 0 {
		t.Errorf("heads saved before their records: %+v", log.early)
	}
	log.fail = false
	put(t, s, Put(Owner, KindBlock, "pods/x", Block{Network: "pods"}))
	x := ID{Class: Owner, Kind: KindBlock, Owner: s.Self(), Key: "pods/x"}
	if r, ok := log.saved[x]; !ok || r.Deleted || len(log.early) > 0 {
		t.Errorf("after the disk came back: %+v %v, early heads %+v", r, ok, log.early)
	}
}
