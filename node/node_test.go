package node

import (
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"testing"
	"time"

	"nodenet/api"
	"nodenet/config"
	"nodenet/gossip"
	"nodenet/ipam"
	"nodenet/state"
)

// newTestNode is a node with tables and configuration, and nothing of the
// kernel's: its verbs return as soon as their records are written.
func newTestNode(t *testing.T) *Node {
	t.Helper()
	id, err := gossip.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	store, err := state.NewStore(state.Options{Self: id.ID, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	n := &Node{
		log: slog.New(slog.DiscardHandler), cfg: config.Default(config.Env{Hostname: "node1"}),
		identity: id, self: id.ID, store: store, cluster: gossip.NewCluster("test"),
		applied: func() uint64 { return math.MaxUint64 }, declared: make(chan struct{}),
	}
	n.gossip, err = gossip.New(gossip.Options{Identity: id, Cluster: n.cluster, Secret: gossip.NewSecret(), Store: store, Name: "node1", Advertise: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	n.alloc = ipam.NewAllocator(store)
	t.Cleanup(n.alloc.Close)
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	close(n.declared)
	return n
}

func code(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func web(vip string) api.ServiceSpec {
	s := api.ServiceSpec{Name: "web", Namespace: "apps", Ports: []api.ServicePort{{Port: 80}}}
	if vip != "" {
		s.VIP = netip.MustParseAddr(vip)
	}
	return s
}

func TestDeclaringTwiceChangesNothing(t *testing.T) {
	n := newTestNode(t)
	rev := n.store.Snapshot().Rev()
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	if got := n.store.Snapshot().Rev(); got != rev {
		t.Errorf("revision %d after declaring again, was %d", got, rev)
	}
}

func TestWhatLeavesTheNodefileLeavesTheTables(t *testing.T) {
	n := newTestNode(t)
	cfg := *n.cfg
	cfg.Service = []config.Service{{Namespace: "default", Name: "db", VIP: netip.MustParseAddr("10.96.0.20"), Ports: []config.ServicePort{{Port: 5432, Protocol: "tcp"}}}}
	if err := n.declare(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	if got := n.services(n.store.Snapshot()); len(got) != 1 || got[0].Source != sourceNodefile {
		t.Fatalf("services %+v, want db from the Nodefile", got)
	}
	if err := n.removeService(t.Context(), "db"); code(err) != api.CodeReadOnly {
		t.Errorf("removing a declared service: %v, want %s", err, api.CodeReadOnly)
	}
	if _, err := n.addService(t.Context(), web("10.96.0.20")); code(err) != api.CodeExists {
		t.Errorf("taking its VIP: %v, want %s", err, api.CodeExists)
	}
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	if got := n.services(n.store.Snapshot()); len(got) != 0 {
		t.Errorf("services %+v, want none", got)
	}
}

func TestAddServiceAllocatesOnce(t *testing.T) {
	n := newTestNode(t)
	spec := web("")
	spec.NodePorts = true
	first, err := n.addService(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if !n.cfg.Services.Prefix.Contains(first.VIP) || first.VIP == n.cfg.Services.DNS || !n.cfg.Services.NodePorts.Contains(first.Ports[0].NodePort) {
		t.Errorf("got %s node port %d", first.VIP, first.Ports[0].NodePort)
	}
	again, err := n.addService(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if again.VIP != first.VIP || again.Ports[0].NodePort != first.Ports[0].NodePort {
		t.Errorf("adding it again moved it from %v to %v", first, again)
	}
	if err := n.removeService(t.Context(), "web.apps"); err != nil {
		t.Fatal(err)
	}
	if err := n.removeService(t.Context(), "web.apps"); code(err) != api.CodeNotFound {
		t.Errorf("removing it twice: %v, want %s", err, api.CodeNotFound)
	}
}

func TestServiceMistakes(t *testing.T) {
	n := newTestNode(t)
	for name, c := range map[string]struct {
		change func(*api.ServiceSpec)
		want   string
	}{
		"bad name":            {func(s *api.ServiceSpec) { s.Name = "Web_1" }, api.CodeInvalid},
		"no port":             {func(s *api.ServiceSpec) { s.Ports = nil }, api.CodeInvalid},
		"port 0":              {func(s *api.ServiceSpec) { s.Ports[0].Port = 0 }, api.CodeInvalid},
		"port twice":          {func(s *api.ServiceSpec) { s.Ports = append(s.Ports, s.Ports[0]) }, api.CodeInvalid},
		"unknown protocol":    {func(s *api.ServiceSpec) { s.Ports[0].Protocol = "icmp" }, api.CodeInvalid},
		"ports overlap":       {func(s *api.ServiceSpec) { s.Ports = append(s.Ports, api.ServicePort{Port: 70, Last: 90}) }, api.CodeInvalid},
		"VIP outside":         {func(s *api.ServiceSpec) { s.VIP = netip.MustParseAddr("192.0.2.1") }, api.CodeInvalid},
		"VIP of the resolver": {func(s *api.ServiceSpec) { s.VIP = n.cfg.Services.DNS }, api.CodeInvalid},
		"node port outside":   {func(s *api.ServiceSpec) { s.Ports[0].NodePort = 80 }, api.CodeInvalid},
		"bad backend":         {func(s *api.ServiceSpec) { s.Backends = []string{"host"} }, api.CodeInvalid},
		"bad weight":          {func(s *api.ServiceSpec) { s.Backends = []string{"192.0.2.1=300"} }, api.CodeInvalid},
		"unknown check":       {func(s *api.ServiceSpec) { s.Check = "ping" }, api.CodeInvalid},
		"probe without check": {func(s *api.ServiceSpec) { s.Probe = &api.Probe{Rise: 2} }, api.CodeInvalid},
		"timeout > interval":  {func(s *api.ServiceSpec) { s.Check, s.Probe = "tcp", &api.Probe{TimeoutMillis: 5000} }, api.CodeInvalid},
		"relative program":    {func(s *api.ServiceSpec) { s.Check, s.Probe = "exec", &api.Probe{Command: []string{"ls"}} }, api.CodeInvalid},
		"unknown balance":     {func(s *api.ServiceSpec) { s.Balance = "roundrobin" }, api.CodeInvalid},
		"half a second":       {func(s *api.ServiceSpec) { s.SlowStartMillis = 500 }, api.CodeInvalid},
		"outside without way": {func(s *api.ServiceSpec) { s.Outside = "local" }, api.CodeInvalid},
		"address in network":  {func(s *api.ServiceSpec) { s.Addresses = []netip.Addr{netip.MustParseAddr("10.244.0.9")} }, api.CodeInvalid},
		"own health port":     {func(s *api.ServiceSpec) { s.HealthPort = 7947 }, api.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s := web("")
			c.change(&s)
			if _, err := n.addService(t.Context(), s); code(err) != c.want {
				t.Errorf("got %v, want code %s", err, c.want)
			}
		})
	}
}

func TestPublishConflicts(t *testing.T) {
	n := newTestNode(t)
	pub := func(host string, port uint16, proto string) error {
		p := api.Publish{Protocol: proto, HostPort: port, Target: netip.MustParseAddr("10.244.0.2"), Port: 80}
		if host != "" {
			p.HostAddr = netip.MustParseAddr(host)
		}
		_, err := n.addPublish(t.Context(), p)
		return err
	}
	for _, step := range []struct {
		host  string
		port  uint16
		proto string
		want  string
	}{
		{"192.0.2.1", 8080, "tcp", ""},
		{"192.0.2.2", 8080, "tcp", ""},
		{"192.0.2.1", 8080, "udp", ""},
		{"", 8080, "tcp", api.CodeExists},
		{"", 9090, "", ""},
		{"192.0.2.1", 9090, "tcp", api.CodeExists},
		{"", 30080, "tcp", api.CodeInvalid},
		{"", 9091, "icmp", api.CodeInvalid},
		{"", 0, "tcp", api.CodeInvalid},
	} {
		if err := pub(step.host, step.port, step.proto); code(err) != step.want || (err == nil) != (step.want == "") {
			t.Errorf("publish %s:%d/%s: %v, want code %q", step.host, step.port, step.proto, err, step.want)
		}
	}
	if err := n.removePublish(t.Context(), "192.0.2.1:8080/tcp"); err != nil {
		t.Error(err)
	}
}

func TestAddressesWithoutLinks(t *testing.T) {
	n := newTestNode(t)
	n.overlay = newIdleOverlay(t)
	n.book = newIdleBook(n)
	req := api.AttachRequest{ID: "c1/eth0", Network: "pods", Mode: modeIPAM, Kind: state.EndpointCNI}
	a, err := n.attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParsePrefix("10.244.0.2/24"); a.Addr != want {
		t.Errorf("got %s, want %s", a.Addr, want)
	}
	if _, err := n.attach(t.Context(), req); code(err) != api.CodeExists {
		t.Errorf("the same ID again: %v, want %s", err, api.CodeExists)
	}
	req.ID, req.IP = "c2/eth0", a.Addr.Addr()
	if _, err := n.attach(t.Context(), req); code(err) != api.CodeExists {
		t.Errorf("an address in use: %v, want %s", err, api.CodeExists)
	}
	for range 2 {
		if err := n.detach(t.Context(), api.DetachRequest{ID: "c1/eth0"}); err != nil {
			t.Errorf("detach must succeed also when there is nothing left: %v", err)
		}
	}
	req.ID, req.IP, req.Network = "c3/eth0", netip.Addr{}, "nets"
	if _, err := n.attach(t.Context(), req); code(err) != api.CodeNotFound {
		t.Errorf("unknown network: %v, want %s", err, api.CodeNotFound)
	}
}

func TestDefinedNetworks(t *testing.T) {
	n := newTestNode(t)
	for name, c := range map[string]struct {
		network string
		prefix  string
		peers   []string
		want    string
	}{
		"its own":                   {"mynet", "10.22.0.0/16", nil, ""},
		"with a peer":               {"mynet", "10.22.0.0/16", []string{"pods"}, ""},
		"with a peer that is not":   {"mynet", "10.22.0.0/16", []string{"pods", "nowhere"}, api.CodeInvalid},
		"a declared network's name": {"pods", "10.22.0.0/16", nil, api.CodeInvalid},
		"overlaps a network":        {"other", "10.244.3.0/24", nil, api.CodeInvalid},
		"overlaps the services":     {"other", "10.100.0.0/16", nil, api.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			err := n.define(t.Context(), c.network, &api.NetworkDef{Prefix: netip.MustParsePrefix(c.prefix), Peers: c.peers})
			if code(err) != c.want || (err == nil) != (c.want == "") {
				t.Errorf("got %v, want code %q", err, c.want)
			}
		})
	}
}

func TestLabels(t *testing.T) {
	for s, want := range map[string]bool{"web": true, "web-1": true, "1": true, "": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false} {
		if isLabel(s) != want {
			t.Errorf("isLabel(%q) = %v", s, !want)
		}
	}
}

func TestJoinListMayNameThisHost(t *testing.T) {
	got := othersOf([]string{"127.0.0.1", "127.0.0.1:7947", "192.0.2.77", "node2.example"})
	if len(got) != 2 || got[0] != "192.0.2.77" || got[1] != "node2.example" {
		t.Errorf("others %v, want those that are not this host", got)
	}
}

func TestAddressOfARemovedServiceComesBack(t *testing.T) {
	n := newTestNode(t)
	cfg := *n.cfg
	cfg.Service = []config.Service{{Namespace: "default", Name: "db", Ports: []config.ServicePort{{Port: 5432, Protocol: "tcp"}}}}
	if err := n.declare(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	if err := n.assignVIPs(t.Context()); err != nil {
		t.Fatal(err)
	}
	allocated := func() bool {
		_, ok := state.Lookup[state.VIP](n.store.Snapshot(), state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: "default/db"})
		return ok
	}
	gone, start := map[string]time.Time{}, time.Now()
	for _, step := range []struct {
		after time.Duration
		cfg   *config.Config
		want  bool
	}{
		{0, &cfg, true},
		{time.Hour, n.cfg, true}, // gone, but for how long?
		{time.Hour + vipRest/2, n.cfg, true},
		{time.Hour + vipRest, &cfg, true}, // back in time
		{2 * time.Hour, n.cfg, true},
		{2*time.Hour + 2*vipRest, n.cfg, false},
	} {
		if err := n.declare(t.Context(), step.cfg); err != nil {
			t.Fatal(err)
		}
		if err := n.dropVIPs(t.Context(), gone, start.Add(step.after)); err != nil {
			t.Fatal(err)
		}
		if got := allocated(); got != step.want {
			t.Errorf("after %s: allocated %v, want %v", step.after, got, step.want)
		}
	}
}
