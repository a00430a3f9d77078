package node

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodenet/api"
	"nodenet/config"
	"nodenet/dhcp"
	"nodenet/state"
)

func (n *Node) put(t *testing.T, ops ...state.Op) {
	t.Helper()
	if _, err := n.store.Write(t.Context(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

func (n *Node) attached(id string) bool {
	_, ok := state.Lookup[state.Endpoint](n.store.Snapshot(), n.endpointID(id))
	return ok
}

func TestDetachNeedsToBeToldWhat(t *testing.T) {
	n := newTestNode(t)
	n.overlay = newIdleOverlay(t)
	n.put(t, state.Put(state.Owner, state.KindEndpoint, "c1/eth0", state.Endpoint{ID: "c1/eth0", Network: "pods", Namespace: "default"}))
	if err := n.detach(t.Context(), api.DetachRequest{}); code(err) != api.CodeInvalid {
		t.Errorf("detach of nothing: %v, want code %s", err, api.CodeInvalid)
	}
	if _, err := n.check(t.Context(), api.DetachRequest{Namespace: "default"}); code(err) != api.CodeNotFound {
		t.Errorf("check of nothing: %v, want code %s", err, api.CodeNotFound)
	}
	if !n.attached("c1/eth0") {
		t.Error("an endpoint without a name was detached by a request that names none")
	}
}

// A detach that comes while the attach of its ID has no record yet must not
// report success: the attach would outlive it.
func TestDetachWaitsForTheAttachUnderWay(t *testing.T) {
	n := newTestNode(t)
	if err := n.attaching.begin("c1/eth0"); err != nil {
		t.Fatal(err)
	}
	if err := n.detach(t.Context(), api.DetachRequest{ID: "c1/eth0"}); code(err) != api.CodeNotReady {
		t.Errorf("got %v, want code %s", err, api.CodeNotReady)
	}
}

func TestReclaimLeavesAttachesAlone(t *testing.T) {
	n := newTestNode(t)
	n.overlay = newIdleOverlay(t)
	n.put(t, state.Put(state.Owner, state.KindEndpoint, "c1/eth0",
		state.Endpoint{ID: "c1/eth0", Network: "pods", Namespace: "default", HostIf: "nnt-node-none"}))
	missing := n.reclaim(t.Context(), nil)
	if !missing["c1/eth0"] || !n.attached("c1/eth0") {
		t.Fatalf("first look: missing %v, attached %v", missing, n.attached("c1/eth0"))
	}
	if err := n.attaching.begin("c1/eth0"); err != nil {
		t.Fatal(err)
	}
	n.reclaim(t.Context(), missing)
	if !n.reclaimOne(t.Context(), "c1/eth0") || !n.attached("c1/eth0") {
		t.Error("an endpoint was reclaimed in the middle of its attach")
	}
	n.attaching.end("c1/eth0")
	if n.reclaim(t.Context(), missing); n.attached("c1/eth0") {
		t.Error("an endpoint without a link was kept")
	}
}

func TestReloadedNetworksHaveRings(t *testing.T) {
	n := newTestNode(t)
	cfg := *n.cfg
	cfg.Networks = append(cfg.Networks[:len(cfg.Networks):len(cfg.Networks)],
		config.Network{Name: "more", Prefix: netip.MustParsePrefix("10.40.0.0/16"), Block: 24, Overlay: "vxlan", VNI: 9, Port: 4789})
	if err := n.declare(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	if s, ok := n.spec("more"); !ok || s.Block != 24 {
		t.Errorf("ring of a network that came with a reload: %+v %v", s, ok)
	}
}

func TestPublishKeepsOffTheNodesOwnPorts(t *testing.T) {
	n := newTestNode(t)
	target := netip.MustParseAddr("10.244.0.2")
	for _, p := range []api.Publish{
		{Protocol: "tcp", HostPort: n.cfg.Cluster.SyncPort}, {Protocol: "tcp", HostPort: n.cfg.Cluster.GossipPort},
		{Protocol: "udp", HostPort: n.cfg.Cluster.GossipPort}, {Protocol: "udp", HostPort: 4789},
	} {
		p.Target, p.Port = target, 80
		if _, err := n.addPublish(t.Context(), p); code(err) != api.CodeInvalid {
			t.Errorf("publish %d/%s: %v, want code %s", p.HostPort, p.Protocol, err, api.CodeInvalid)
		}
	}
	for _, p := range []api.Publish{{Protocol: "tcp", HostPort: 4789}, {Protocol: "sctp", HostPort: 4789}, {Protocol: "sctp", HostPort: n.cfg.Cluster.GossipPort}} {
		p.Target, p.Port = target, 80
		if _, err := n.addPublish(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
}

func TestAttachChecksItsPublishedPorts(t *testing.T) {
	ok := api.AttachRequest{ID: "x", Namespace: "default", Network: "pods", Mode: modeIPAM}
	for name, c := range map[string]struct {
		mode string
		pub  []api.Publish
		good bool
	}{
		"one":             {modeIPAM, []api.Publish{{HostPort: 8080, Port: 80}}, true},
		"two protocols":   {modeIPAM, []api.Publish{{HostPort: 8080, Port: 80}, {HostPort: 8080, Port: 80, Protocol: "udp"}}, true},
		"sctp":            {modeIPAM, []api.Publish{{HostPort: 8080, Port: 80}, {HostPort: 8080, Port: 80, Protocol: "sctp"}}, true},
		"dccp":            {modeIPAM, []api.Publish{{HostPort: 8080, Port: 80, Protocol: "dccp"}}, false},
		"sctp, loopback":  {modeIPAM, []api.Publish{{HostAddr: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, Port: 80, Protocol: "sctp"}}, false},
		"host port 0":     {modeIPAM, []api.Publish{{Port: 80}}, false},
		"port 0":          {modeIPAM, []api.Publish{{HostPort: 8080}}, false},
		"twice":           {modeIPAM, []api.Publish{{HostPort: 8080, Port: 80}, {HostPort: 8080, Port: 81, Protocol: "tcp"}}, false},
		"without address": {modeDHCP, []api.Publish{{HostPort: 8080, Port: 80}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := ok
			r.Mode, r.Publish, r.Netns = c.mode, c.pub, "/proc/self/ns/net"
			if err := checkAttach(&r); (err == nil) != c.good {
				t.Errorf("got %v, want ok %v", err, c.good)
			}
		})
	}
}

// The book tells "none left" from faults of the tables by dhcp's own error.
func TestFullNetworkIsExhaustedForDHCP(t *testing.T) {
	n := newTestNode(t)
	n.book = newIdleBook(n)
	n.put(t, state.Put(state.Owner, state.KindNetwork, "tiny",
		state.Network{Name: "tiny", Prefix: netip.MustParsePrefix("192.0.2.0/30"), Overlay: state.OverlayNone, DHCP: true}))
	offer := func(last byte) error {
		_, err := n.book.Offer(t.Context(), "tiny", dhcp.Client{MAC: []byte{2, 0, 0, 0, 0, last}})
		return err
	}
	if err := offer(1); err != nil {
		t.Fatal(err)
	}
	if err := offer(2); !errors.Is(err, dhcp.ErrExhausted) {
		t.Errorf("got %v, want ErrExhausted", err)
	}
}

func TestChangesNeedCredentials(t *testing.T) {
	n := newTestNode(t)
	w := httptest.NewRecorder()
	n.routes().ServeHTTP(w, httptest.NewRequest(http.MethodPost, api.PathDetach, strings.NewReader(`{"id":"c1"}`)))
	if w.Code != http.StatusForbidden {
		t.Errorf("status %d for a caller whom the kernel did not name, want 403", w.Code)
	}
}

// What concerns the secret, or makes a node ask all others, is not for everybody.
func TestSecretNeedsCredentials(t *testing.T) {
	n := newTestNode(t)
	for _, r := range []*http.Request{
		httptest.NewRequest(http.MethodGet, api.PathSecret, nil),
		httptest.NewRequest(http.MethodPost, api.PathRotate, strings.NewReader(`{}`)),
		httptest.NewRequest(http.MethodGet, api.PathWait+"?converged=true&timeout=1s", nil),
		httptest.NewRequest(http.MethodPost, api.PathToken, strings.NewReader(`{}`)),
		httptest.NewRequest(http.MethodPost, api.PathSnapshot, strings.NewReader(`{"secret":true}`)),
	} {
		w := httptest.NewRecorder()
		n.routes().ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s %s: status %d for a caller whom the kernel did not name, want 403", r.Method, r.URL, w.Code)
		}
	}
}

func TestExpiredLeaseGoesWithItsAddress(t *testing.T) {
	n := newTestNode(t)
	n.overlay = newIdleOverlay(t)
	n.book = newIdleBook(n)
	addr := netip.MustParseAddr("10.244.0.7")
	key := "pods/" + addr.String()
	n.put(t, state.Put(state.Lease, state.KindLease, key, state.LeaseValue{
		Network: "pods", Addr: addr, MAC: "02:00:00:00:00:01", Hostname: "old", Server: n.self, Expires: 1}))
	if _, err := n.attach(t.Context(), api.AttachRequest{ID: "c1/eth0", Network: "pods", Mode: modeIPAM, Kind: state.EndpointCNI, IP: addr}); err != nil {
		t.Fatal(err)
	}
	for e := range n.store.Snapshot().View().Endpoints() {
		if e.Name == "old" {
			t.Errorf("the former client's name still stands for %s", addr)
		}
	}
}

func TestLostTablesAreAskedBack(t *testing.T) {
	n := newTestNode(t)
	n.cluster.Peers = []string{"192.0.2.12:7947"}
	if n.tablesLost() {
		t.Error("a node with records of its own has lost nothing")
	}
	empty, err := state.NewStore(state.Options{Self: n.self})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	n.store = empty
	if !n.tablesLost() {
		t.Error("a node that knows peers but has no record of its own must ask them first")
	}
	n.cluster.Peers = nil
	if n.tablesLost() {
		t.Error("a node that never had peers has nobody to ask")
	}
}

func TestJoiningAgainAfterALeave(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "Nodefile")
	if err := os.WriteFile(conf, []byte("node {\n    name node1\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := InitOptions{ConfigFile: conf, StateDir: filepath.Join(dir, "state")}
	first, err := Init(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(o); err == nil {
		t.Fatal("a second cluster was made over the first")
	}
	secret, err := os.ReadFile(first.SecretFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Node{dir: o.StateDir}).noteLeaving(); err != nil {
		t.Fatal(err)
	}
	again, err := Init(o)
	if err != nil {
		t.Fatalf("after a leave: %v", err)
	}
	now, err := os.ReadFile(again.SecretFile)
	if err != nil {
		t.Fatal(err)
	}
	if again.ClusterID == first.ClusterID || again.NodeID != first.NodeID || bytes.Equal(now, secret) {
		t.Errorf("after a leave: cluster %s node %s, before %s %s; secret kept: %v",
			again.ClusterID, again.NodeID, first.ClusterID, first.NodeID, bytes.Equal(now, secret))
	}
}
