package faults

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/state"
	"nodenet/state/disk"
	"nodenet/test/scenario"
)

// firstServed asks from within a network namespace, every other millisecond,
// until a name is answered, a route is there and a VIP accepts a connection,
// and says how long after began each was first seen.
func firstServed(ctx context.Context, netnsPath string, began time.Time) (map[string]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	probes := map[string]func() bool{
		"name": func() bool {
			m := new(wire.Msg).SetQuestion("e2-7.default.pod.cluster.local.", wire.TypeA)
			c := wire.Client{Timeout: 20 * time.Millisecond}
			r, _, err := c.ExchangeContext(ctx, m, "10.96.0.10:53")
			return err == nil && len(r.Answer) == 1
		},
		"route": func() bool {
			_, dst, _ := net.ParseCIDR("10.244.2.0/24")
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
			return err == nil && len(routes) == 1
		},
		"VIP": func() bool {
			c, err := net.DialTimeout("tcp", "10.96.9.9:80", 20*time.Millisecond)
			if err == nil {
				c.Close()
			}
			return err == nil
		},
	}
	var mu sync.Mutex
	var g errgroup.Group
	took := map[string]time.Duration{}
	for what, served := range probes {
		g.Go(func() error {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			ns, err := netns.GetFromPath(netnsPath)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			for ; ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
				if served() {
					mu.Lock()
					took[what] = time.Since(began).Round(time.Millisecond)
					mu.Unlock()
					return nil
				}
			}
			return fmt.Errorf("%s: not served within %s", what, soon)
		})
	}
	return took, g.Wait()
}

// TestColdBoot: the only node with power boots from its saved state, with an
// empty kernel, and serves what it knew of a cluster of three nodes: names,
// routes and VIPs. Printed is when each was first served, counted from the
// start of the process, and what CPU time the daemon had taken by then: that
// depends less on what else the machine does.
func TestColdBoot(t *testing.T) {
	for _, size := range []struct{ endpoints, services int }{{300, 50}, {10_000, 1000}} {
		t.Run(fmt.Sprintf("%d endpoints and %d services", size.endpoints, size.services), func(t *testing.T) {
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
			node := s.Lab.Node(1)
			fill(t, filepath.Join(node.Dir, "state", "state.db"), peers, size.endpoints, size.services)
			s.Run("node1", "nodectl cleanup")
			s.Serve("node1", "here", 8099)

			began := time.Now()
			must(t, s.Lab.Start(t.Context(), "node1"))
			took, err := firstServed(t.Context(), node.Netns, began)
			must(t, err)
			t.Logf("cold boot with no peers: %v after the start; %s of CPU", took, cpu(t, s.Lab.Node(1).Proc.PID))
			s.Want(s.Run("node1", "nodectl status"), `stale since \d\d:\d\d:\d\d: answering from saved state`)
		})
	}
}

// cpu is what CPU time a process has taken, to the clock tick of 10 ms
// (proc_pid_stat(5), fields 14 and 15).
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err := strconv.Atoi(f[11])
	must(t, err)
	system, err := strconv.Atoi(f[12])
	must(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// fill writes what the other nodes had into a state file.
func fill(t *testing.T, path string, peers map[string]state.NodeID, endpoints, services int) {
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
		for k := range endpoints / 2 {
			name := fmt.Sprintf("e%d-%d", i, k)
			add(state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: owner, Key: name}, state.Version{Epoch: 1 << 40, Seq: uint64(k + 1)},
				state.Endpoint{ID: name, Name: name, Namespace: "default", Network: "pods", Kind: state.EndpointAttach, Ready: true,
					Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i*64 + k/200), byte(k%200 + 20)})}, Labels: map[string]string{"app": fmt.Sprint("s", k%services)}})
		}
	}
	v := state.Version{HLC: state.HLC(uint64(time.Now().UnixMilli()) << 16), Node: peers["node2"]}
	for k := range services {
		svc := state.Service{Namespace: "default", Name: fmt.Sprint("s", k), VIP: netip.AddrFrom4([4]byte{10, 96, byte(16 + k/200), byte(k%200 + 1)}),
			Selector: map[string]string{"app": fmt.Sprint("s", k)}, Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}}}
		add(state.ID{Class: state.Cluster, Kind: state.KindService, Key: svc.Key()}, v, svc)
	}
	svc := state.Service{Namespace: "default", Name: "here", VIP: netip.MustParseAddr("10.96.9.9"), Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}},
		Backends: []state.Backend{{Namespace: "default", Service: "here", Addr: netip.MustParseAddr("192.168.1.11"), Port: 8099}}}
	add(state.ID{Class: state.Cluster, Kind: state.KindService, Key: svc.Key()}, v, svc)
	must(t, db.Commit(slices.Clip(recs)))
}
