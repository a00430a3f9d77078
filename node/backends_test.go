package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
	"nodenet/overlay"
	"nodenet/state"
)

// withBackends makes a node with service web.apps and two endpoints behind it.
//
// IP plan: endpoints 10.244.0.2 and 10.244.0.3, explicit backends 192.0.2.0/24.
func withBackends(t *testing.T) *Node {
	t.Helper()
	n := newTestNode(t)
	spec := web("")
	spec.Select = map[string]string{"app": "web"}
	if _, err := n.addService(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"web-1", "web-2"} {
		n.put(t, state.Put(state.Owner, state.KindEndpoint, "apps."+name, state.Endpoint{
			ID: "apps." + name, Network: "pods", Namespace: "apps", Name: name, Labels: map[string]string{"app": "web"}, Ready: true,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i)})},
		}))
	}
	return n
}

// look is the backend of web.apps with an address.
func (n *Node) look(t *testing.T, addr string) api.ServiceBackend {
	t.Helper()
	s, err := n.serviceNamed(t.Context(), "web.apps")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range s.Backends {
		if b.Addr.String() == addr {
			return b
		}
	}
	return api.ServiceBackend{}
}

func TestBackendIsARecordOfItsOwn(t *testing.T) {
	n := withBackends(t)
	for _, b := range []api.BackendChange{{Backend: "192.0.2.7:80", Weight: 3}, {Backend: "192.0.2.8"}} {
		b.Service = "web.apps"
		if _, err := n.changeBackend(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if b := n.look(t, "192.0.2.7"); b.Weight != 3 || b.Port != 80 || !b.Ready {
		t.Errorf("got %+v", b)
	}
	if _, err := n.changeBackend(t.Context(), api.BackendChange{Service: "web.apps", Backend: "192.0.2.7:80", Remove: true}); err != nil {
		t.Fatal(err)
	}
	if n.look(t, "192.0.2.7").Addr.IsValid() || !n.look(t, "192.0.2.8").Addr.IsValid() {
		t.Error("the wrong backend went")
	}
	for name, c := range map[string]struct {
		q    api.BackendChange
		want string
	}{
		"not there":     {api.BackendChange{Service: "web.apps", Backend: "192.0.2.7:80", Remove: true}, api.CodeNotFound},
		"an endpoint":   {api.BackendChange{Service: "web.apps", Backend: "10.244.0.2", Remove: true}, api.CodeNotFound},
		"no service":    {api.BackendChange{Service: "db.apps", Backend: "192.0.2.7"}, api.CodeNotFound},
		"not address":   {api.BackendChange{Service: "web.apps", Backend: "host"}, api.CodeInvalid},
		"heavy":         {api.BackendChange{Service: "web.apps", Backend: "192.0.2.7", Weight: 257}, api.CodeInvalid},
		"wrong service": {api.BackendChange{Service: "web", Backend: "192.0.2.7"}, api.CodeNotFound},
	} {
		if _, err := n.changeBackend(t.Context(), c.q); code(err) != c.want {
			t.Errorf("%s: %v, want code %s", name, err, c.want)
		}
	}
}

func TestWeightAndDrain(t *testing.T) {
	n := withBackends(t)
	num := func(w int) *int { return &w }
	flag := func(b bool) *bool { return &b }
	admin := func(q api.AdminRequest) {
		t.Helper()
		q.Service = "web.apps"
		if _, err := n.administer(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	admin(api.AdminRequest{Backend: "web-1", Weight: num(99)})
	admin(api.AdminRequest{Backend: "10.244.0.2", Drain: flag(true), DeadlineSeconds: 60})
	b := n.look(t, "10.244.0.2")
	if b.Weight != 99 || b.Ready || !b.Draining || b.Failed || b.Why != "draining" || b.Until < start.Unix()+60 {
		t.Errorf("draining: %+v", b)
	}
	sn := n.store.Snapshot()
	if ops := n.endDrains(sn, start.Add(50*time.Second)); len(ops) != 0 {
		t.Errorf("ended early: %v", ops)
	}
	n.put(t, stillMeant(sn, n.store.Snapshot(), n.endDrains(sn, start.Add(62*time.Second)))...)
	if b := n.look(t, "10.244.0.2"); !b.Failed || b.Ready || b.Why != "drained" {
		t.Errorf("after the deadline: %+v", b)
	}
	if ops := n.endDrains(n.store.Snapshot(), start.Add(time.Hour)); len(ops) != 0 {
		t.Errorf("ended twice: %v", ops)
	}
	admin(api.AdminRequest{Backend: "apps.web-1", Drain: flag(false)})
	if b := n.look(t, "10.244.0.2"); !b.Ready || b.Weight != 99 || b.Draining {
		t.Errorf("taken in again: %+v", b)
	}
	admin(api.AdminRequest{Backend: "web-1", Weight: num(0)})
	for rec := range state.All[state.Admin](n.store.Snapshot()) {
		t.Errorf("%s is left of it all", rec.ID)
	}
	for name, c := range map[string]struct {
		q    api.AdminRequest
		want string
	}{
		"nothing asked": {api.AdminRequest{Service: "web.apps", Backend: "web-1"}, api.CodeInvalid},
		"no backend":    {api.AdminRequest{Service: "web.apps", Backend: "web-3", Weight: num(1)}, api.CodeNotFound},
		"empty":         {api.AdminRequest{Service: "web.apps", Weight: num(1)}, api.CodeNotFound},
		"too heavy":     {api.AdminRequest{Service: "web.apps", Backend: "web-1", Weight: num(257)}, api.CodeInvalid},
		"lone deadline": {api.AdminRequest{Service: "web.apps", Backend: "web-1", Weight: num(1), DeadlineSeconds: 5}, api.CodeInvalid},
	} {
		if _, err := n.administer(t.Context(), c.q); code(err) != c.want {
			t.Errorf("%s: %v, want code %s", name, err, c.want)
		}
	}
}

// A deadline that was moved while the end of the old one was being worked out
// is not ended.
func TestDrainIsNotEndedBehindTheOperatorsBack(t *testing.T) {
	n := withBackends(t)
	drain := true
	q := api.AdminRequest{Service: "web.apps", Backend: "web-1", Drain: &drain, DeadlineSeconds: 1}
	if _, err := n.administer(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	sn := n.store.Snapshot()
	ops := n.endDrains(sn, time.Now().Add(time.Minute))
	q.DeadlineSeconds = 3600
	if _, err := n.administer(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if len(ops) != 1 || len(stillMeant(sn, n.store.Snapshot(), ops)) != 0 {
		t.Errorf("%d ops, %v of them still meant", len(ops), stillMeant(sn, n.store.Snapshot(), ops))
	}
}

func TestWhatWasSaidOfAGoneBackendGoesAfterAWhile(t *testing.T) {
	n := withBackends(t)
	weight := 5
	if _, err := n.administer(t.Context(), api.AdminRequest{Service: "web.apps", Backend: "web-1", Weight: &weight}); err != nil {
		t.Fatal(err)
	}
	since := map[string]time.Time{}
	start := time.Now()
	if ops := n.strayOps(n.store.Snapshot(), since, start); len(ops) != 0 {
		t.Errorf("of one that is there: %v", ops)
	}
	n.put(t, state.Del(state.Owner, state.KindEndpoint, "apps.web-1"))
	if ops := n.strayOps(n.store.Snapshot(), since, start); len(ops) != 0 {
		t.Errorf("at once: %v", ops)
	}
	ops := n.strayOps(n.store.Snapshot(), since, start.Add(strayTime))
	if len(ops) != 1 || ops[0].Kind != state.KindAdmin || !ops[0].Delete {
		t.Fatalf("after %s: %v", strayTime, ops)
	}
	n.put(t, ops...)
	if n.strayOps(n.store.Snapshot(), since, start.Add(time.Hour)); len(since) != 0 {
		t.Errorf("remembered for ever: %v", since)
	}
}

func TestCountFlows(t *testing.T) {
	a, at := netip.MustParseAddr, netip.MustParseAddrPort
	s := &state.ServiceView{
		VIP: a("10.96.0.20"), VIP6: a("fd00:10:96::14"),
		Service: state.Service{Addresses: []netip.Addr{a("198.51.100.7")}, Ports: []state.ServicePort{
			{Protocol: "tcp", Port: 80, NodePort: 30080}, {Protocol: "udp", Port: 6000, Last: 6010, Target: 7000},
		}},
		Backends: []state.BackendOf{{Key: "one", Addr: a("10.244.0.2"), Targets: []uint16{8080, 7000}}, {Key: "two", Addr: a("10.244.0.3"), Targets: []uint16{8080, 0}},
			{Key: "one", Addr: a("fd00:10:244::2"), Targets: []uint16{8080, 7000}}},
	}
	flow := func(proto uint8, dest, target string) overlay.Connection {
		return overlay.Connection{Proto: proto, Dest: at(dest), Target: at(target)}
	}
	got := countFlows(s, []overlay.Connection{
		flow(6, "10.96.0.20:80", "10.244.0.2:8080"),
		flow(6, "198.51.100.7:80", "10.244.0.2:8080"),
		flow(6, "192.0.2.1:30080", "10.244.0.2:8080"),
		flow(17, "10.96.0.20:6003", "10.244.0.2:7003"),
		flow(6, "10.96.0.20:80", "10.244.0.3:8080"),
		flow(6, "[fd00:10:96::14]:80", "[fd00:10:244::2]:8080"),
		// Not this service's:
		flow(6, "[fd00:10:96::15]:80", "[fd00:10:244::2]:8080"),
		flow(17, "10.96.0.20:80", "10.244.0.2:8080"),
		flow(6, "10.96.0.21:80", "10.244.0.2:8080"),
		flow(6, "10.96.0.20:81", "10.244.0.2:8080"),
		flow(17, "10.96.0.20:6011", "10.244.0.2:7011"),
		flow(17, "10.96.0.20:6003", "10.244.0.3:7003"),
		flow(6, "10.96.0.20:80", "10.244.0.9:8080"),
	})
	if d := cmp.Diff(map[string]int{"one": 5, "two": 1}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
