package node

import (
	"encoding/json"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodenet/api"
	"nodenet/gossip"
	"nodenet/ipam"
	"nodenet/state"
	"nodenet/state/disk"
)

// remoteNode writes what another node has told: its records, and a part of
// the pods that this node gave it.
func remoteNode(t *testing.T, n *Node, name string) state.NodeID {
	t.Helper()
	id, err := gossip.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.NewStore(state.Options{Self: id.ID, Epoch: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ask := ipam.Ask{Ring: "pods", RingID: n.ringID(), To: id.ID, Block: 24}
	recs, err := ipam.ServeAsk(t.Context(), n.store, n.self, n.ringID(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Merge(slices.Clone(recs), true); err != nil {
		t.Fatal(err)
	}
	p := ipam.Resolve(s.Snapshot(), "pods", n.ringID()).Owned(id.ID)[0]
	block := netip.PrefixFrom(p.Addr(), 24)
	if _, err := s.Write(t.Context(), func(*state.Snapshot) ([]state.Op, error) {
		return []state.Op{
			state.Put(state.Owner, state.KindNode, "self", state.Node{Name: name, Advertise: netip.MustParseAddr("192.0.2.9")}),
			state.Put(state.Owner, state.KindBlock, "pods/"+block.String(), state.Block{Network: "pods", Prefix: block}),
			state.Put(state.Owner, state.KindEndpoint, "e", state.Endpoint{ID: "e", Network: "pods", Namespace: "apps", Name: "db", Addrs: []netip.Addr{block.Addr().Next().Next()}, Kind: state.EndpointCNI, Ready: true}),
		}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.MergeDelta(s.Snapshot().Delta(id.ID, state.Mark{}, 0)); err != nil {
		t.Fatal(err)
	}
	n.store.SetLiveness(map[state.NodeID]state.Live{id.ID: {State: state.Dead, Since: time.Now()}})
	return id.ID
}

func TestForgetNeedsAMajority(t *testing.T) {
	n := newTestNode(t)
	id := remoteNode(t, n, "node2")
	q := api.ForgetRequest{Node: "node2"}
	ctx := t.Context()
	if _, err := n.forgetNode(ctx, api.ForgetRequest{Node: "node9"}); code(err) != api.CodeNotFound {
		t.Errorf("an unknown node: %v", err)
	}
	if _, err := n.forgetNode(ctx, api.ForgetRequest{Node: "node1"}); code(err) != api.CodeInvalid {
		t.Errorf("this node itself: %v", err)
	}
	n.store.SetLiveness(map[state.NodeID]state.Live{id: {State: state.Alive}})
	q.Force = true
	if _, err := n.forgetNode(ctx, q); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "is alive") {
		t.Errorf("a node that is alive: %v", err)
	}
	n.store.SetLiveness(map[state.NodeID]state.Live{id: {State: state.Dead}})
	q.Force = false
	if _, err := n.forgetNode(ctx, q); code(err) != api.CodeNotReady || !strings.Contains(err.Error(), "1 of 2 nodes agree (node1)") {
		t.Errorf("without a majority: %v", err)
	}
	q.Force = true
	f, err := n.forgetNode(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if f.ID != string(id) || f.Known != 2 || len(f.Warnings) != 1 || len(f.Ranges) != 1 || f.Ranges[0] != "pods 10.244.128.0/17" || f.Quarantine <= time.Now().Add(9*time.Minute).Unix() {
		t.Errorf("forgot %+v", f)
	}
	if v := n.store.Snapshot().View(); len(v.Nodes) != 1 || v.NumEndpoints() != 0 {
		t.Errorf("still seen: %+v", v.Nodes)
	}
	rings, err := n.ringList(ctx)
	if err != nil || rings[0].Name != "pods" || len(rings[0].Parts) != 2 || rings[0].Parts[1].Owner != "node1" || rings[0].Parts[1].Quarantine != f.Quarantine || rings[len(rings)-1].Ports != "30000-32767" {
		t.Errorf("rings %+v, %v", rings, err)
	}
	e, err := n.explain("10.244.128.2")
	if err != nil || e.TakenFrom != "node2" || !strings.HasPrefix(e.Free, "nobody can have it before") {
		t.Errorf("explained as %+v, %v", e, err)
	}
	list, err := n.conflictList(ctx)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Detail, "by force") {
		t.Errorf("conflicts %+v, %v", list, err)
	}
	if again, err := n.forgetNode(ctx, q); err != nil || len(again.Ranges) != 0 {
		t.Errorf("forgotten again: %+v, %v", again, err)
	}
}

// A node that hears that it was forgotten goes on under an epoch that counts,
// with the part of its space that is still its own.
func TestForgottenNodeJoinsAgain(t *testing.T) {
	n := newTestNode(t)
	id := remoteNode(t, n, "node2")
	n.put(t,
		state.Put(state.Owner, state.KindBlock, "pods/10.244.0.0/24", state.Block{Network: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/24")}),
		state.Put(state.Owner, state.KindBlock, "pods/10.244.1.0/24", state.Block{Network: "pods", Prefix: netip.MustParsePrefix("10.244.1.0/24")}),
		state.Put(state.Owner, state.KindEndpoint, "kept", state.Endpoint{ID: "kept", Network: "pods", Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.2")}, Ready: true}),
		state.Put(state.Owner, state.KindEndpoint, "lost", state.Endpoint{ID: "lost", Network: "pods", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Ready: true}))
	// node2 took one block over, and not the other.
	r := state.Range{Ring: "pods", RingID: n.ringID(), Prefix: netip.MustParsePrefix("10.244.1.0/24"), Owner: id, From: n.self}
	take := state.Put(state.Ring, state.KindRing, ipam.RangeKey(r), r)
	take.Gen = 1_000_001
	epoch := n.store.Epoch()
	n.put(t, take, state.Put(state.Cluster, state.KindForgotten, string(n.self), state.Forgotten{By: id, Epoch: epoch, Name: "node1"}))
	if err := n.obey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.store.Epoch() <= epoch {
		t.Errorf("epoch %d, want one above %d", n.store.Epoch(), epoch)
	}
	sn := n.store.Snapshot()
	at := func(k state.Kind, key string) (state.Record, bool) {
		rec, ok := sn.Get(state.ID{Class: state.Owner, Kind: k, Owner: n.self, Key: key})
		return rec, ok && !rec.Deleted
	}
	for _, x := range []struct {
		kind state.Kind
		key  string
	}{{state.KindNode, "self"}, {state.KindBlock, "pods/10.244.0.0/24"}, {state.KindEndpoint, "kept"}, {state.KindEndpoint, "lost"}} {
		if rec, ok := at(x.kind, x.key); !ok || rec.Version.Epoch <= epoch {
			t.Errorf("%s %s counts for nobody: %v, epoch %d", x.kind, x.key, ok, rec.Version.Epoch)
		}
	}
	if _, ok := at(state.KindBlock, "pods/10.244.1.0/24"); ok {
		t.Error("the lost block is still open")
	}
	kept, _ := at(state.KindEndpoint, "kept")
	lost, _ := at(state.KindEndpoint, "lost")
	if !kept.Val().(*state.Endpoint).Ready || lost.Val().(*state.Endpoint).Ready {
		t.Error("not the right endpoint is drained")
	}
	rev := sn.Rev()
	if err := n.obey(t.Context()); err != nil || n.store.Snapshot().Rev() != rev {
		t.Errorf("obeys twice: %v", err)
	}
}

func TestHolds(t *testing.T) {
	n, other := newTestNode(t), newTestNode(t)
	n.put(t, state.Put(state.Cluster, state.KindName, "a A", state.Name{Name: "a", Type: "A", Target: "192.0.2.1"}))
	ask := func(q holdsAsk) (a holdsAnswer) {
		t.Helper()
		req, err := state.Encode(q)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := other.serveHolds(t.Context(), n.self, req)
		if err != nil {
			t.Fatal(err)
		}
		if err := state.Decode(resp, &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	sn := n.store.Snapshot()
	b := sn.Buckets()
	a := ask(holdsAsk{Heads: sn.Heads(), Buckets: b[:]})
	if len(a.Behind) != 1 || a.Behind[0].Owner != n.self || a.Behind[0].Mark != (state.Mark{}) || len(a.Differ) == 0 {
		t.Errorf("a node that knows nothing of us answers %+v", a)
	}
	rec, _ := sn.Get(state.ID{Class: state.Cluster, Kind: state.KindName, Key: "a A"})
	if a := ask(holdsAsk{Items: []holdsItem{{rec.ID, rec.Version}}}); a.Lacks != 1 {
		t.Errorf("lacks %d, want 1", a.Lacks)
	}
	if _, err := other.store.Merge([]state.Record{rec}, false); err != nil {
		t.Fatal(err)
	}
	if a := ask(holdsAsk{Items: []holdsItem{{rec.ID, rec.Version}}}); a.Lacks != 0 {
		t.Errorf("lacks %d, want 0", a.Lacks)
	}
}

func TestWaitForOurselves(t *testing.T) {
	n := newTestNode(t)
	remoteNode(t, n, "node2") // dead: not waited for
	get := func(query string) (int, []api.Progress) {
		w := httptest.NewRecorder()
		n.wait(w, httptest.NewRequest("GET", api.PathWait+"?"+query, nil))
		var out []api.Progress
		for dec := json.NewDecoder(w.Body); dec.More(); {
			var p api.Progress
			if err := dec.Decode(&p); err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
		return w.Code, out
	}
	if c, p := get("converged=true&timeout=1s"); c != 200 || len(p) != 1 || !p[0].Done || !slices.Equal(p[0].Dead, []string{"node2"}) {
		t.Errorf("%d %+v", c, p)
	}
	n.applied = func() uint64 { return 3 }
	c, p := get("revision=9&timeout=300ms")
	if last := p[len(p)-1]; c != 200 || last.Done || !strings.Contains(last.Error, "kernel has revision 3 of 9") {
		t.Errorf("%d %+v", c, p)
	}
	if c, _ := get("timeout=soon"); c != 400 {
		t.Errorf("a bad timeout: status %d", c)
	}
}

// saved makes a node with a state directory and returns its snapshot.
func saved(t *testing.T, secret bool) (*Node, []byte) {
	t.Helper()
	n := newTestNode(t)
	n.dir = t.TempDir()
	remoteNode(t, n, "node2")
	id, err := gossip.LoadIdentity(n.dir) // another key than the test node's own: only its file counts here
	if err != nil {
		t.Fatal(err)
	}
	n.self = id.ID
	n.cfg.Cluster.Secret = filepath.Join(n.dir, "cluster.secret")
	if err := gossip.WriteSecret(n.cfg.Cluster.Secret, gossip.NewSecret()); err != nil {
		t.Fatal(err)
	}
	s, err := n.saveSnapshot(t.Context(), api.SnapshotRequest{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	return n, s.Data
}

func TestSnapshotFile(t *testing.T) {
	n, data := saved(t, false)
	h, recs, err := decodeSnapshot(data)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Secret)+len(h.Key) > 0 {
		t.Error("secrets in a snapshot that was not to have any")
	}
	if want := allRecords(n.store.Snapshot()); len(recs) != len(want) || len(recs) < 5 {
		t.Errorf("%d records, want %d", len(recs), len(want))
	}
	for i := range data {
		bad := slices.Clone(data)
		bad[i] ^= 1
		if _, _, err := decodeSnapshot(bad); err == nil {
			t.Fatalf("a file with byte %d changed was taken", i)
		}
		if _, _, err := decodeSnapshot(data[:i]); err == nil {
			t.Fatalf("a file cut after %d bytes was taken", i)
		}
	}
}

func TestRestore(t *testing.T) {
	_, data := saved(t, true)
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	nodefile := filepath.Join(t.TempDir(), "Nodefile")
	if err := os.WriteFile(nodefile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := RestoreOptions{ConfigFile: nodefile, StateDir: dir, File: file}
	r, err := Restore(o)
	if err != nil {
		t.Fatal(err)
	}
	id, err := gossip.LoadIdentity(dir)
	h, _, derr := decodeSnapshot(data)
	if err != nil || derr != nil || id.ID != h.NodeID {
		t.Errorf("identity %v, %v", id, err)
	}
	if _, err := gossip.ReadSecret(filepath.Join(dir, "cluster.secret")); err != nil {
		t.Error(err)
	}
	c, err := gossip.LoadCluster(dir)
	if err != nil || c.ID != h.ClusterID || c.Bootstrap || c.Synced || !slices.Contains(c.Peers, "192.0.2.9:7947") {
		t.Errorf("cluster %+v, %v", c, err)
	}
	n := &Node{dir: dir, self: h.NodeID}
	n.db, err = disk.Open(filepath.Join(dir, "state.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	recs, heads, err := n.db.Load()
	if err != nil || len(recs) != r.Records {
		t.Errorf("%d records on disk, %v, want %d", len(recs), err, r.Records)
	}
	n.store, err = state.NewStore(state.Options{Self: h.NodeID, Records: recs, Heads: heads})
	if err != nil {
		t.Fatal(err)
	}
	if e := n.minEpoch(); e <= h.Epoch {
		t.Errorf("epoch %d, want one above %d", e, h.Epoch)
	}
	n.store.Close()
	n.db.Close()
	if _, err := os.Stat(filepath.Join(dir, restoredFile)); err != nil {
		t.Error("nothing keeps the node from giving out addresses")
	}

	o.Alone = true
	if r, err = Restore(o); err != nil || r.Aside == "" {
		t.Errorf("restored again: %+v, %v", r, err)
	}
	if _, err := os.Stat(filepath.Join(dir, restoredFile)); err == nil {
		t.Error("a node that is alone waits for others")
	}
	if err := gossip.NewCluster("other").Save(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(o); err == nil || !strings.Contains(err.Error(), "never mix") {
		t.Errorf("restored into another cluster's directory: %v", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := Restore(o); err == nil || !strings.Contains(err.Error(), "is running") {
		t.Errorf("restored under a running daemon: %v", err)
	}
}

func TestRestoredNodeGivesNothingOut(t *testing.T) {
	n := newTestNode(t)
	n.overlay = newIdleOverlay(t)
	n.book = newIdleBook(n)
	n.restored.Store(true)
	req := api.AttachRequest{ID: "c1/eth0", Network: "pods", Mode: modeIPAM, Kind: state.EndpointCNI}
	if _, err := n.attach(t.Context(), req); code(err) != api.CodeNotReady || !strings.Contains(err.Error(), "restored from a snapshot") {
		t.Errorf("attach: %v", err)
	}
	if _, err := n.addService(t.Context(), web("")); code(err) != api.CodeNotReady {
		t.Errorf("service add: %v", err)
	}
	n.restored.Store(false)
	if _, err := n.attach(t.Context(), req); err != nil {
		t.Error(err)
	}
}
