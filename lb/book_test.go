package lb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"nodenet/state"
)

// world is what views are made of. Services are replaced, never changed in
// place, as in real views.
type world struct {
	rev       uint64
	local     Local
	networks  []state.NetworkView
	publishes []state.Publish
	endpoints map[string]*state.EndpointView
	services  map[string]*state.ServiceView
}

func newWorld() *world {
	v := testView()
	return &world{rev: 1, local: testLocal(), networks: v.Networks,
		endpoints: map[string]*state.EndpointView{}, services: map[string]*state.ServiceView{}}
}

func (w *world) view() *state.View {
	v := state.View{Rev: w.rev, Self: selfID, Networks: slices.Clone(w.networks), Publishes: slices.Clone(w.publishes)}
	var es []*state.EndpointView
	var ss []*state.ServiceView
	for _, e := range w.endpoints {
		es = append(es, e)
	}
	for _, s := range w.services {
		ss = append(ss, s)
	}
	return state.NewView(v, es, ss)
}

// mutate changes one thing and reports whether services alone can follow it.
func (w *world) mutate(t *rapid.T) (small bool) {
	w.rev++
	switch what := rapid.IntRange(0, 11).Draw(t, "what"); {
	case what < 8: // a service comes, changes or goes
		i := rapid.IntRange(0, 6).Draw(t, "service")
		name := fmt.Sprintf("s%d", i)
		if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
			delete(w.services, name)
			return true
		}
		// Some share addresses, ports and node ports; some are not balanced.
		vip := rapid.SampledFrom([]string{"10.96.1.1", "10.96.1.2", fmt.Sprintf("10.96.1.%d", i+1), "10.96.0.10", "203.0.113.1", "2001:db8::1", ""}).Draw(t, "vip")
		s := svc(name, vip, "tcp", 80, 0)
		s.Ports = nil
		if rapid.Bool().Draw(t, "dual") {
			s.VIP6 = addr(rapid.SampledFrom([]string{"fd00:10:96::1:1", fmt.Sprintf("fd00:10:96::1:%d", i+1), "2001:db8::2"}).Draw(t, "vip6"))
		}
		for range rapid.IntRange(1, 3).Draw(t, "ports") {
			s.Ports = append(s.Ports, state.ServicePort{
				Protocol: rapid.SampledFrom([]string{"tcp", "udp", "sctp"}).Draw(t, "proto"),
				Port:     rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port"),
				NodePort: rapid.SampledFrom([]uint16{0, 0, 30001, 30002, 99}).Draw(t, "nodeport"),
			})
		}
		for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(1, 14), 0, 7, rapid.ID).Draw(t, "backends") {
			b := state.BackendOf{Addr: netip.AddrFrom4([4]byte{10, 244, byte(n % 2), byte(n)}), Node: selfID, Ready: n != 14}
			if n%2 == 1 {
				b.Node = otherID
			}
			if id := fmt.Sprintf("e%d", n); w.endpoints[id] != nil {
				b.Endpoint = id
			}
			if n%3 == 0 {
				b.Addr = twin(b.Addr)
			}
			switch rapid.IntRange(0, 9).Draw(t, "state") {
			case 0:
				b.Ready, b.Draining = false, true
			case 1:
				b.Ready, b.Failed = false, true
			}
			b.Weight = rapid.SampledFrom([]uint16{0, 1, 2, 3, 256}).Draw(t, "weight")
			for range s.Ports {
				b.Targets = append(b.Targets, rapid.SampledFrom([]uint16{8080, 8080, 5353, 0}).Draw(t, "target"))
			}
			s.Backends = append(s.Backends, b)
		}
		options(t, s)
		w.services[name] = s
		return true
	case what == 8: // an endpoint comes, or goes with those that show it
		n := rapid.IntRange(1, 7).Draw(t, "endpoint")*2 - 1
		id := fmt.Sprintf("e%d", n)
		if w.endpoints[id] == nil {
			network := rapid.SampledFrom([]string{"pods", "lab"}).Draw(t, "network")
			w.endpoints[id] = &state.EndpointView{Endpoint: &state.Endpoint{ID: id, Network: network}, Owner: otherID}
			return true
		}
		for _, s := range w.services {
			if slices.ContainsFunc(s.Backends, func(b state.BackendOf) bool { return b.Endpoint == id }) {
				return true
			}
		}
		delete(w.endpoints, id)
		return true
	case what == 9: // an endpoint moves under services that do not show it
		for _, id := range []string{"e1", "e3", "e5"} {
			if e := w.endpoints[id]; e != nil {
				network := map[string]string{"pods": "lab", "lab": "pods"}[e.Network]
				w.endpoints[id] = &state.EndpointView{Endpoint: &state.Endpoint{ID: id, Network: network}, Owner: otherID}
				return false
			}
		}
		return true
	case what == 10:
		w.publishes = nil
		for i := range rapid.IntRange(0, 4).Draw(t, "publishes") {
			host := rapid.SampledFrom([]string{"", "192.0.2.11", "198.51.100.1", "127.0.0.1"}).Draw(t, "host")
			if rapid.Bool().Draw(t, "six") {
				host6 := rapid.SampledFrom([]string{"", "::", "2001:db8::11", "::1", "127.0.0.1", "192.0.2.11"}).Draw(t, "host6")
				w.publishes = append(w.publishes, pub(host6, "udp", uint16(8000+i%3), fmt.Sprintf("[fd00:10:244::%d]:8080", 2+i%2)))
				continue
			}
			w.publishes = append(w.publishes, pub(host, rapid.SampledFrom([]string{"tcp", "udp", "sctp"}).Draw(t, "proto"),
				uint16(8000+i%3), fmt.Sprintf("10.244.%d.%d:8080", i%2, rapid.IntRange(1, 5).Draw(t, "target"))))
		}
		return true
	}
	switch rapid.IntRange(0, 4).Draw(t, "frame") {
	case 4:
		w.local.Range6 = rapid.SampledFrom([]netip.Prefix{pfx("fd00:10:96::/108"), {}}).Draw(t, "range6")
	case 0:
		w.local.Bridges = testLocal().Bridges[:rapid.IntRange(1, 3).Draw(t, "bridges")]
	case 1:
		w.local.Resolver = rapid.SampledFrom([]netip.Addr{addr("10.96.0.10"), addr("10.96.1.2")}).Draw(t, "resolver")
	case 2:
		w.local.NodePortLast = rapid.SampledFrom([]uint16{30001, 32767}).Draw(t, "last")
	case 3:
		w.networks = slices.Clone(w.networks)
		w.networks[0].Overlay = rapid.SampledFrom([]string{state.OverlayNone, state.OverlayVXLAN}).Draw(t, "overlay")
	}
	return false
}

// options draws what else a service can ask for.
func options(t *rapid.T, s *state.ServiceView) {
	policy := rapid.SampledFrom([]string{state.PolicyAll, state.PolicyAll, state.PolicyLocal, state.PolicyPreferNode, state.PolicyPreferZone})
	s.Balance = rapid.SampledFrom([]string{state.BalanceRandom, state.BalanceRandom, state.BalanceRandom, state.BalanceSource, state.BalanceSource, state.BalanceMaglev}).Draw(t, "balance")
	s.Affinity = rapid.SampledFrom([]int64{0, 0, 60, 10800}).Draw(t, "affinity")
	s.Inside, s.Outside = policy.Draw(t, "inside"), policy.Draw(t, "outside")
	for _, a := range rapid.SliceOfN(rapid.SampledFrom([]string{"203.0.113.1", "203.0.113.2", "2001:db8:113::1", "10.96.9.9", "192.0.2.11"}), 0, 2).Draw(t, "external") {
		s.Addresses = append(s.Addresses, addr(a))
	}
	for _, p := range rapid.SliceOfN(rapid.SampledFrom([]string{"192.0.2.0/24", "192.0.2.0/28", "198.51.100.7/32", "2001:db8::/64", "0.0.0.0/0"}), 0, 2).Draw(t, "sources") {
		s.Sources = append(s.Sources, pfx(p))
	}
	for _, p := range rapid.SliceOfN(rapid.SampledFrom([]string{"192.0.2.11/32", "192.0.2.0/25", "::/0"}), 0, 1).Draw(t, "on") {
		s.NodeAddrs = append(s.NodeAddrs, pfx(p))
	}
	for i := range s.Ports {
		if p := &s.Ports[i]; rapid.IntRange(0, 3).Draw(t, "range") == 0 {
			p.NodePort = 0
			p.Last = p.Port + rapid.SampledFrom([]uint16{1, 3}).Draw(t, "last")
			for b := range s.Backends {
				if rapid.Bool().Draw(t, "straight") {
					s.Backends[b].Targets[i] = p.Port
				}
			}
		}
	}
}

// TestBookAgrees: whatever changes in whatever order, and whatever fails, what
// is kept service by service is what Derive says, the kernel holds its
// ruleset, and doing it again does nothing.
func TestBookAgrees(t *testing.T) {
	t.Parallel() // no kernel here: beside what else takes long
	rapid.Check(t, func(rt *rapid.T) {
		k := newFake()
		b, err := New(Options{Kernel: k, Loopback: deaf{}})
		if err != nil {
			rt.Fatal(err)
		}
		w := newWorld()
		check(rt, t, b, k, w)
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			small := true
			for range rapid.IntRange(1, 3).Draw(rt, "coalesced") {
				small = w.mutate(rt) && small
			}
			was := b.book
			if rapid.IntRange(0, 5).Draw(rt, "fails") == 0 {
				k.fail, k.late = errors.New("no buffer"), rapid.Bool().Draw(rt, "late")
				err := b.apply(&wish{w.view(), w.local})
				k.fail = nil
				if err != nil {
					b.book, was = nil, nil // as Run does
				}
			}
			check(rt, t, b, k, w)
			if small && was != nil && b.book != was {
				rt.Fatal("everything was looked at for the sake of a service")
			}
		}
	})
}

func check(rt *rapid.T, t *testing.T, b *LB, k *fakeKernel, w *world) {
	v := w.view()
	if err := b.apply(&wish{v, w.local}); err != nil {
		rt.Fatal(err)
	}
	if what := b.book.agrees(); what != "" {
		rt.Fatalf("%s differ from those derived from scratch:\n%s", what,
			cmp.Diff(Derive(v, w.local).Ruleset().String(), bookTable(b).Ruleset().String()))
	}
	tab := bookTable(b)
	wantKernel(t, k, &tab)
	if t.Failed() {
		rt.FailNow()
	}
	calls := k.applies()
	w.rev++ // a view of the same content
	for _, book := range []*book{b.book, nil} {
		keep := b.book
		if b.book = book; book == nil {
			if err := b.apply(&wish{w.view(), w.local}); err != nil {
				rt.Fatal(err)
			}
			b.book = keep
		} else if err := b.apply(&wish{w.view(), w.local}); err != nil {
			rt.Fatal(err)
		}
	}
	if n := k.applies() - calls; n != 0 {
		rt.Fatalf("%d transactions for the same view", n)
	}
}

// deaf opens no sockets: nothing of the machine's is touched.
type deaf struct{}

var errDeaf = errors.New("deaf")

func (deaf) Listen(string, string) (net.Listener, error)            { return nil, errDeaf }
func (deaf) ListenPacket(string, string) (net.PacketConn, error)    { return nil, errDeaf }
func (deaf) Dial(context.Context, string, string) (net.Conn, error) { return nil, errDeaf }

func bookTable(b *LB) Table { return b.book.table() }

// recorder keeps the newest transaction.
type recorder struct {
	*fakeKernel
	last Ops
}

func (r *recorder) Apply(o Ops) error { r.last = o; return r.fakeKernel.Apply(o) }

// TestChangesAreSmall: what a change of one of many services takes. The
// backends of the other services keep all sizes of buckets in use.
func TestChangesAreSmall(t *testing.T) {
	k := &recorder{fakeKernel: newFake()}
	b, err := New(Options{Kernel: k, Loopback: deaf{}})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	for i := range 5 {
		w.services[fmt.Sprint(i)] = svc(fmt.Sprint(i), fmt.Sprintf("10.96.9.%d", i+1), "tcp", 80, 30090+uint16(i),
			[]string{"10.244.1.1:1", "10.244.1.2:1", "10.244.1.3:1", "10.244.1.4:1"}[:i]...)
	}
	w.services["web"] = svc("web", "10.96.0.24", "tcp", 80, 0, "10.244.1.1:80", "10.244.1.2:80", "10.244.1.4:80")
	steps := []struct {
		name string
		web  *state.ServiceView
		want string
	}{
		{"at first", w.services["web"], ""},
		{"a backend more takes the next slot", svc("web", "10.96.0.24", "tcp", 80, 0, "10.244.1.1:80", "10.244.1.2:80", "10.244.1.3:80", "10.244.1.4:80"), `
add element inet nodenet eps { 10.96.0.24 . tcp . 80 . 3 : 10.244.1.3 . 80 }
delete element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:3 }
add element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:4 }
`},
		{"a backend less leaves its slot to the last", svc("web", "10.96.0.24", "tcp", 80, 0, "10.244.1.2:80", "10.244.1.3:80", "10.244.1.4:80"), `
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 0 : 10.244.1.1 . 80 }
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 3 : 10.244.1.3 . 80 }
add element inet nodenet eps { 10.96.0.24 . tcp . 80 . 0 : 10.244.1.3 . 80 }
delete element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:4 }
add element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:3 }
`},
		{"the same in another revision", svc("web", "10.96.0.24", "tcp", 80, 0, "10.244.1.2:80", "10.244.1.3:80", "10.244.1.4:80"), "\n"},
		{"a backend on this node in place of another", svc("web", "10.96.0.24", "tcp", 80, 0, "10.244.0.2:80", "10.244.1.3:80", "10.244.1.4:80"), `
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 1 : 10.244.1.2 . 80 }
add element inet nodenet eps { 10.96.0.24 . tcp . 80 . 1 : 10.244.0.2 . 80 }
add element inet nodenet hairpin { 10.244.0.2 . 10.244.0.2 }
add element bridge nodenet backends { 10.244.0.2 . tcp . 80 : 02:00:00:00:00:01 }
add element bridge nodenet senders { 10.244.0.2 : 02:00:00:00:00:01 }
`},
		{"the only port of an address gets a node port", svc("web", "10.96.0.24", "tcp", 80, 30001, "10.244.0.2:80", "10.244.1.3:80"), `
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 2 : 10.244.1.4 . 80 }
delete element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:3 }
add element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:2 }
add element inet nodenet npeps { tcp . 30001 . 0 : 10.244.0.2 . 80 }
add element inet nodenet npeps { tcp . 30001 . 1 : 10.244.1.3 . 80 }
add element inet nodenet npsvc { tcp . 30001 : 0:2 }
add element inet nodenet remote { 10.244.1.3 . tcp . 80 }
`},
		{"another address", svc("web", "10.96.0.25", "tcp", 80, 0, "10.244.1.3:80"), `
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 0 : 10.244.1.3 . 80 }
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 1 : 10.244.0.2 . 80 }
add element inet nodenet eps { 10.96.0.25 . tcp . 80 . 0 : 10.244.1.3 . 80 }
delete element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:2 }
add element inet nodenet svc { 10.96.0.25 . tcp . 80 : 0:1 }
delete element inet nodenet npeps { tcp . 30001 . 0 : 10.244.0.2 . 80 }
delete element inet nodenet npeps { tcp . 30001 . 1 : 10.244.1.3 . 80 }
delete element inet nodenet npsvc { tcp . 30001 : 0:2 }
delete element inet nodenet vips { 10.96.0.24 }
add element inet nodenet vips { 10.96.0.25 }
delete element inet nodenet hairpin { 10.244.0.2 . 10.244.0.2 }
delete element inet nodenet remote { 10.244.1.3 . tcp . 80 }
delete element bridge nodenet backends { 10.244.0.2 . tcp . 80 : 02:00:00:00:00:01 }
delete element bridge nodenet senders { 10.244.0.2 : 02:00:00:00:00:01 }
`},
		{"gone", nil, `
delete element inet nodenet eps { 10.96.0.25 . tcp . 80 . 0 : 10.244.1.3 . 80 }
delete element inet nodenet svc { 10.96.0.25 . tcp . 80 : 0:1 }
delete element inet nodenet vips { 10.96.0.25 }
`},
	}
	for _, s := range steps {
		if s.web != nil {
			w.services["web"] = s.web
		} else {
			delete(w.services, "web")
		}
		w.rev++
		k.last = Ops{}
		if err := b.apply(&wish{w.view(), w.local}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s.want, "\n"+k.last.String()); diff != "" && s.want != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
	}
}

// TestBookInKernel is TestBookAgrees against nf_tables: its elements are
// listed after every change.
func TestBookInKernel(t *testing.T) {
	k := newSpace(t).kernel()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		if n++; n > 10 {
			return // each step lists the kernel
		}
		b, err := New(Options{Kernel: k, Loopback: deaf{}}) // finds what the last one left
		if err != nil {
			rt.Fatal(err)
		}
		w := newWorld()
		for range rapid.IntRange(4, 12).Draw(rt, "steps") {
			w.mutate(rt)
			if err := b.apply(&wish{w.view(), w.local}); err != nil {
				rt.Fatal(err)
			}
			tab := bookTable(b)
			wantKernel(t, k, &tab)
			if t.Failed() {
				rt.FailNow()
			}
		}
	})
}

// TestBookIsChecked: a book that went wrong is noticed within ten minutes and
// made anew.
func TestBookIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFake()
		b, err := New(Options{Kernel: k, Loopback: deaf{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		b.Set(testView(), testLocal())
		synctest.Wait()
		b.book.vips.add(addr("10.96.0.20"), -1) // Run waits for its ticker
		if b.book.agrees() != "addresses, targets or networks" {
			t.Errorf("a lost address is not seen: %q", b.book.agrees())
		}
		k.with(func() {
			els := k.tables["inet"].Elems
			els["vips"] = els["vips"][1:]
		})
		time.Sleep(checkEvery + tickEvery)
		synctest.Wait()
		tab := bookTable(b)
		wantKernel(t, k, &tab)
		if what := b.book.agrees(); what != "" || len(tab.VIPs) != 12 {
			t.Errorf("not made anew: %s, %d addresses", what, len(tab.VIPs))
		}
		if n := testutil.ToFloat64(b.m.disagreements); n != 1 {
			t.Errorf("%v disagreements counted, want 1", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
