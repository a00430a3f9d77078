package node

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/node/check"
	"nodenet/state"
)

// checked is a view with three nodes and service web.apps: two endpoints, on
// node1 and node2, and an explicit backend.
//
// IP plan: endpoints 10.244.N.2 on node N, the explicit backend 192.0.2.7.
func checked(self state.NodeID, live map[state.NodeID]state.Liveness, s state.Service) *state.View {
	v := state.View{Self: self}
	for i, id := range []state.NodeID{"n1", "n2", "n3"} {
		v.Nodes = append(v.Nodes, state.NodeView{ID: id, Node: state.Node{Name: "node" + string(id[1:])}, State: live[id], Serving: true, Self: id == self})
		if v.Nodes[i].State == state.Unknown {
			v.Nodes[i].State = state.Alive
		}
	}
	s.Namespace, s.Name = "apps", "web"
	sv := &state.ServiceView{Service: s}
	var endpoints []*state.EndpointView
	for i, id := range []state.NodeID{"n1", "n2"} {
		e := &state.Endpoint{ID: "web", Namespace: "apps", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 2})}, Created: 1000}
		endpoints = append(endpoints, &state.EndpointView{Endpoint: e, Owner: id, Serving: true})
		sv.Backends = append(sv.Backends, state.BackendOf{Key: state.EndpointKey(id, "web"), Addr: e.Addrs[0], Endpoint: "web", Node: id, Ready: true, Targets: make([]uint16, len(s.Ports))})
	}
	sv.Backends = append(sv.Backends, state.BackendOf{Key: "192.0.2.7", Addr: netip.MustParseAddr("192.0.2.7"), Ready: true, Targets: make([]uint16, len(s.Ports))})
	for _, b := range sv.Backends {
		for i, p := range s.Ports {
			b.Targets[i] = max(p.Target, p.Port)
		}
	}
	return state.NewView(v, endpoints, []*state.ServiceView{sv})
}

func TestWhoChecksWhat(t *testing.T) {
	tcp := state.Service{Check: state.CheckTCP, Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}}}
	own, in1, in2, outside := "own apps/web/web", "shared apps/web/web@n1", "shared apps/web/web@n2", "shared apps/web/192.0.2.7"
	for name, c := range map[string]struct {
		live    map[state.NodeID]state.Liveness
		service state.Service
		want    map[state.NodeID][]string // by who checks; the explicit backend left out
		outside int                       // how many check that one
	}{
		"all alive": {nil, tcp, map[state.NodeID][]string{"n1": {own}, "n2": {own}}, 1},
		"one suspect: the next stands in": {map[state.NodeID]state.Liveness{"n2": state.Suspect}, tcp,
			map[state.NodeID][]string{"n1": {own}, "n2": {own}, "n3": {in2}}, 1},
		"the next is dead": {map[state.NodeID]state.Liveness{"n2": state.Suspect, "n3": state.Dead}, tcp,
			map[state.NodeID][]string{"n1": {own, in2}, "n2": {own}}, 1},
		"two suspect": {map[state.NodeID]state.Liveness{"n1": state.Suspect, "n2": state.Dead}, tcp,
			map[state.NodeID][]string{"n1": {own}, "n2": {own}, "n3": {in1, in2}}, 1},
		"no check":            {nil, state.Service{Ports: tcp.Ports}, map[state.NodeID][]string{}, 0},
		"slow start alone":    {map[state.NodeID]state.Liveness{"n2": state.Suspect}, state.Service{SlowStart: 8000, Ports: tcp.Ports}, map[state.NodeID][]string{"n1": {own}, "n2": {own}}, 1},
		"no port to ask":      {nil, state.Service{Check: state.CheckUDP, Ports: tcp.Ports}, map[state.NodeID][]string{}, 1},
		"a program stays put": {map[state.NodeID]state.Liveness{"n2": state.Suspect}, state.Service{Check: state.CheckExec, Probe: &state.Probe{Command: []string{"/x"}}, Ports: tcp.Ports}, map[state.NodeID][]string{"n1": {own}, "n2": {own}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, explicit := map[state.NodeID][]string{}, 0
			for _, self := range []state.NodeID{"n1", "n2", "n3"} {
				live := maps.Clone(c.live)
				if live == nil {
					live = map[state.NodeID]state.Liveness{}
				}
				seen := live[self]
				live[self] = state.Alive // by its own account
				d := newDuties(self)
				d.update(checked(self, live, c.service))
				for _, key := range slices.Sorted(maps.Keys(d.all())) {
					others := seen == state.Unknown // one that they take for dead sees them, maybe, and checks
					switch {
					case key == outside && others:
						explicit++
					case key == own || key != outside && others:
						got[self] = append(got[self], key)
					}
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if explicit != c.outside {
				t.Errorf("%d nodes check the explicit backend, want %d", explicit, c.outside)
			}
		})
	}
}

func TestDutyAsksTheRightPort(t *testing.T) {
	ports := []state.ServicePort{{Protocol: "udp", Port: 53}, {Protocol: "sctp", Port: 9}, {Protocol: "tcp", Port: 80, Target: 8080}, {Protocol: "tcp", Port: 81}}
	for name, c := range map[string]struct {
		service state.Service
		want    check.Probe
	}{
		"first tcp port": {state.Service{Check: "http"}, check.Probe{Type: "http", Addr: netip.MustParseAddrPort("10.244.1.2:8080")}},
		"first udp port": {state.Service{Check: "dns"}, check.Probe{Type: "dns", Addr: netip.MustParseAddrPort("10.244.1.2:53")}},
		"a given one": {state.Service{Check: "https", Probe: &state.Probe{Port: 7, Path: "/x", Host: "a.example"}},
			check.Probe{Type: "https", Addr: netip.MustParseAddrPort("10.244.1.2:7"), Path: "/x", Host: "a.example"}},
		"a program": {state.Service{Check: "exec", Probe: &state.Probe{Command: []string{"/etc/nodenet/checks/a", "b"}}},
			check.Probe{Type: "exec", Addr: netip.MustParseAddrPort("10.244.1.2:8080"), Command: []string{"/etc/nodenet/checks/a", "b"}, Dir: checkDir}},
	} {
		t.Run(name, func(t *testing.T) {
			c.service.Ports = ports
			d := newDuties("n1")
			d.update(checked("n1", nil, c.service))
			c.want.Service, c.want.Endpoint = "web.apps", "web"
			got := d.all()["own apps/web/web"].Probe
			if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestHealthGoesWithItsCheck(t *testing.T) {
	n := withBackends(t)
	d := newDuties(n.self)
	d.update(n.store.Snapshot().View())
	endpoint := "apps/web/" + state.EndpointKey(n.self, "apps.web-1")
	n.put(t,
		state.Put(state.Owner, state.KindHealth, "apps/web/c1", state.Health{Why: "connection refused"}),
		state.Put(state.Cluster, state.KindHealth, endpoint, state.Health{OK: true}),
		state.Put(state.Cluster, state.KindHealth, "apps/web/192.0.2.7", state.Health{OK: true}),
	)
	n.dropHealth(t.Context(), n.store.Snapshot(), d)
	var left []string
	for rec := range state.All[state.Health](n.store.Snapshot()) {
		left = append(left, rec.ID.Key)
	}
	// What other nodes said of an endpoint of ours goes, of what is nobody's not.
	if diff := cmp.Diff([]string{"apps/web/192.0.2.7"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestDutiesFollowTheView(t *testing.T) {
	n := withBackends(t)
	d := newDuties(n.self)
	step := func(what string, changed bool, keys ...string) {
		t.Helper()
		if got := d.update(n.store.Snapshot().View()); got != changed {
			t.Errorf("%s: changed %t, want %t", what, got, changed)
		}
		if diff := cmp.Diff(keys, slices.Sorted(maps.Keys(d.all()))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	step("no check", false)
	spec := web("")
	spec.Select, spec.Check = map[string]string{"app": "web"}, "tcp"
	if _, err := n.addService(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	step("a check", true, "own apps/web/apps.web-1", "own apps/web/apps.web-2")
	n.put(t, state.Del(state.Owner, state.KindEndpoint, "apps.web-2"))
	step("an endpoint less", true, "own apps/web/apps.web-1")
	n.put(t, state.Put(state.Cluster, state.KindName, "a A", state.Name{Name: "a", Type: "A", Target: "192.0.2.1"}))
	step("something else", false, "own apps/web/apps.web-1")
	if err := n.removeService(t.Context(), "web.apps"); err != nil {
		t.Fatal(err)
	}
	step("no service", true)
}
