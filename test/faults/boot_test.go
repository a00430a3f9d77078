package faults

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/state"
	"nodenet/state/disk"
	"nodenet/test/scenario"
)

// TestColdBoot: the only node with power boots from its saved state, with an
// empty kernel, and serves what it knew of a cluster of three nodes, 300
// endpoints and 50 services: names, routes and VIPs. How long each took from
// the start of the process is printed, to the
// 100 ms at which it is tried, and with what it costs to start a client.
func TestColdBoot(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	agree(t, s, 3, soon)
	peers := map[string]state.NodeID{}
	st, err := client(t, s, 1).Status(t.Context())
	must(t, err)
	for _, p := range st.Peers {
		peers[p.Name] = state.NodeID(p.ID)
	}
	for i := 1; i <= 3; i++ {
		kill(t, s, nodeName(i), unix.SIGKILL)
	}
	fill(t, filepath.Join(s.Lab.Node(1).Dir, "state", "state.db"), peers)
	s.Run("node1", "nodectl cleanup")
	s.Serve("node1", "here", 8099)

	probes := map[string]func() bool{
		"a name": func() bool { return lookup(s, "node1", "e2-7.default.pod.cluster.local") != "" },
		"a route": func() bool {
			out, _ := s.Exec("node1", "ip route show 10.244.2.0/24")
			return strings.Contains(out, "nv-pods")
		},
		"a VIP": func() bool {
			_, err := s.Exec("node1", "curl -sS -m 1 -o /dev/null http://10.96.9.9:80/")
			return err == nil
		},
	}
	took := map[string]time.Duration{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	must(t, s.Lab.Start(t.Context(), "node1"))
	for what, probe := range probes {
		wg.Go(func() {
			// Each try by itself: one that came too early waits for its own timeout.
			var tries sync.WaitGroup
			defer tries.Wait()
			for tick := time.NewTicker(100 * time.Millisecond); time.Since(began) < soon; <-tick.C {
				mu.Lock()
				done := took[what] != 0
				mu.Unlock()
				if done {
					return
				}
				tries.Go(func() {
					if ok, at := probe(), time.Since(began); ok {
						mu.Lock()
						if took[what] == 0 || at < took[what] {
							took[what] = at
						}
						mu.Unlock()
					}
				})
			}
		})
	}
	wg.Wait()
	for what := range probes {
		if took[what] == 0 {
			t.Errorf("%s is not served from saved state", what)
		}
	}
	t.Logf("cold boot with no peers: %v after the start", took)
	out := s.Run("node1", "nodectl status")
	s.Want(out, `(?i)stale`)
}

// fill writes what the other nodes had into a state file.
func fill(t *testing.T, path string, peers map[string]state.NodeID) {
	t.Helper()
	db, err := disk.Open(path, slog.New(slog.DiscardHandler))
	must(t, err)
	defer db.Close()
	var recs []state.Record
	add := func(id state.ID, v state.Version, value any) {
		b, err := state.Encode(value)
		must(t, err)
		recs = append(recs, state.Record{ID: id, Version: v, Time: time.Now().Unix(), Value: b})
	}
	for i := 2; i <= 3; i++ {
		owner := peers[nodeName(i)]
		if owner == "" {
			t.Fatalf("node%d is not known: %v", i, peers)
		}
		for k := range 150 {
			name := fmt.Sprintf("e%d-%d", i, k)
			add(state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: owner, Key: name}, state.Version{Epoch: 1 << 40, Seq: uint64(k + 1)},
				state.Endpoint{ID: name, Name: name, Namespace: "default", Network: "pods", Kind: state.EndpointAttach, Ready: true,
					Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i), byte(k + 20)})}, Labels: map[string]string{"app": fmt.Sprint("s", k%50)}})
		}
	}
	v := state.Version{HLC: state.HLCAt(time.Now()), Node: peers["node2"]}
	for k := range 50 {
		svc := state.Service{Namespace: "default", Name: fmt.Sprint("s", k), VIP: netip.AddrFrom4([4]byte{10, 96, 8, byte(k + 1)}),
			Selector: map[string]string{"app": fmt.Sprint("s", k)}, Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}}}
		add(state.ID{Class: state.Cluster, Kind: state.KindService, Key: svc.Key()}, v, svc)
	}
	svc := state.Service{Namespace: "default", Name: "here", VIP: netip.MustParseAddr("10.96.9.9"), Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}},
		Backends: []state.Backend{{Namespace: "default", Service: "here", Addr: netip.MustParseAddr("192.168.1.11"), Port: 8099}}}
	add(state.ID{Class: state.Cluster, Kind: state.KindService, Key: svc.Key()}, v, svc)
	must(t, db.Commit(slices.Clip(recs)))
}
