package lb

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"nodenet/state"
)

// genTable draws a table from a small world, so that sequences of tables
// share services, backends and networks.
func genTable(t *rapid.T) Table {
	v := state.View{Rev: rapid.Uint64Range(1, 1<<40).Draw(t, "rev")}
	var services []*state.ServiceView
	backends := rapid.SliceOfNDistinct(rapid.IntRange(1, 12), 0, 6, rapid.ID)
	for i := range rapid.IntRange(0, 5).Draw(t, "services") {
		proto := rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "proto")
		np := rapid.SampledFrom([]uint16{0, 0, uint16(30000 + i)}).Draw(t, "nodeport")
		s := svc(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.1.%d", i+1), proto, 80, np)
		for _, b := range backends.Draw(t, "backends") {
			s.Backends = append(s.Backends, state.BackendOf{Addr: netip.AddrFrom4([4]byte{10, 244, byte(b % 2), byte(b)}), Targets: []uint16{8080}, Ready: true})
		}
		if rapid.Bool().Draw(t, "dual") {
			dual(s)
		}
		services = append(services, s)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "publishes") {
		host := rapid.SampledFrom([]string{"", "192.0.2.11"}).Draw(t, "host")
		v.Publishes = append(v.Publishes, pub(host, "tcp", uint16(8000+i), fmt.Sprintf("10.244.0.%d:80", rapid.IntRange(2, 5).Draw(t, "target"))))
	}
	l := testLocal()
	l.Bridges = l.Bridges[:rapid.IntRange(1, 3).Draw(t, "bridges")]
	if rapid.Bool().Draw(t, "wide") {
		l.ClusterPrefixes = append(l.ClusterPrefixes, pfx("10.245.0.0/16"))
	}
	if rapid.IntRange(0, 5).Draw(t, "resolver") == 0 {
		l.Resolver = addr("10.96.0.11")
	}
	if rapid.IntRange(0, 5).Draw(t, "resolver6") == 0 {
		l.Resolver6 = netip.Addr{}
	}
	return Derive(state.NewView(v, nil, services), l)
}

// fakeKernel keeps what is applied as text keys and refuses what nf_tables
// refuses: deleting what is not there, adding what is, intervals that overlap.
type fakeKernel struct {
	mu     sync.Mutex
	tables map[string]*Observed
	gen    uint32
	fail   error
	calls  int  // Apply
	late   bool // fail comes after the transaction, as when the answer is lost
}

func (f *fakeKernel) with(do func()) { f.mu.Lock(); defer f.mu.Unlock(); do() }

func (f *fakeKernel) applies() (n int) { f.with(func() { n = f.calls }); return n }

func newFake() *fakeKernel { return &fakeKernel{tables: make(map[string]*Observed)} }

func (f *fakeKernel) Close() error { return nil }
func (f *fakeKernel) Generation() (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gen, nil
}

func (f *fakeKernel) Describe(t TableSpec) Shape {
	s := Shape{Sets: map[string]string{}, Chains: map[string]string{}}
	for _, x := range t.Sets {
		s.Sets[x.Name] = x.Decl
	}
	for _, c := range t.Chains {
		s.Chains[c.Name] = fmt.Sprint(c.Type, c.Hook, c.Priority, c.Rules)
	}
	return s
}

func (f *fakeKernel) Observe(bool) ([]Observed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Observed
	for _, fam := range []string{"inet", "bridge"} {
		if o := f.tables[fam]; o != nil {
			out = append(out, *o)
		}
	}
	return out, nil
}

func (f *fakeKernel) Apply(o Ops) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fail != nil && !f.late {
		return f.fail
	}
	f.gen++
	for _, t := range o.Replace {
		obs := &Observed{Family: t.Family, Shape: f.Describe(t), Elems: map[string][]Elem{}}
		for _, s := range t.Sets {
			obs.Elems[s.Name] = slices.Clone(s.Elems)
		}
		f.tables[t.Family] = obs
	}
	for _, c := range o.Chains {
		f.tables[c.Family].Shape.Chains[c.Chain.Name] = f.Describe(TableSpec{Chains: []Chain{c.Chain}}).Chains[c.Chain.Name]
	}
	for _, s := range o.Sets {
		els := make(map[string]Elem)
		if !s.Flush {
			for _, e := range f.tables[s.Family].Elems[s.Set.Name] {
				els[e.Key] = e
			}
		}
		for _, e := range s.Del {
			if els[e.Key] != e {
				return fmt.Errorf("no element %s in %s", s.Set.text(e), s.Set.Name)
			}
			delete(els, e.Key)
		}
		for _, e := range s.Add {
			if _, ok := els[e.Key]; ok {
				return fmt.Errorf("element %s is in %s", s.Set.text(e), s.Set.Name)
			}
			if s.Set.Interval {
				for _, o := range els {
					if overlap(&s.Set, e, o) {
						return fmt.Errorf("element %s overlaps %s in %s", s.Set.text(e), s.Set.text(o), s.Set.Name)
					}
				}
			}
			els[e.Key] = e
		}
		f.tables[s.Family].Elems[s.Set.Name] = slices.SortedFunc(maps.Values(els), func(a, b Elem) int { return strings.Compare(a.Key, b.Key) })
	}
	return f.fail
}

// overlap reports whether some packet meets two elements of an interval set.
func overlap(s *Set, a, b Elem) bool {
	if len(s.Key) == 1 { // the end is beyond
		return (b.End == "" || a.Key < b.End) && (a.End == "" || b.Key < a.End)
	}
	at := 0
	for _, k := range s.Key {
		to := at + (k.size()+3)&^3
		if a.End[at:to] < b.Key[at:to] || b.End[at:to] < a.Key[at:to] {
			return false
		}
		at = to
	}
	return true
}

// TestDiffAgrees: whatever sequence of tables is applied, step by step or
// after a restart, the kernel holds the ruleset of the last one, and applying
// it again does nothing.
func TestDiffAgrees(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		k := newFake()
		var cur *Table
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			if rapid.IntRange(0, 3).Draw(rt, "restart") == 0 {
				cur = nil
			}
			tab := genTable(rt)
			cur, _ = syncKernel(t, k, cur, tab)
			wantKernel(t, k, cur)
			if t.Failed() {
				rt.FailNow()
			}
			for _, old := range []*Table{cur, nil} {
				if _, ops := syncKernel(t, k, old, tab); !ops.Empty() {
					rt.Fatalf("again:\n%s", ops)
				}
			}
		}
	})
}

// TestKernelSequences is the same against nf_tables.
func TestKernelSequences(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	var cur *Table
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		if n++; n > 25 {
			return // each one lists the kernel several times
		}
		for range 3 {
			tab := genTable(rt)
			cur, _ = syncKernel(t, k, cur, tab)
			wantKernel(t, k, cur)
			if _, ops := syncKernel(t, k, nil, tab); !ops.Empty() {
				rt.Fatalf("after a restart:\n%s", ops)
			}
			if t.Failed() {
				rt.FailNow()
			}
		}
	})
	s.nft("", "list", "ruleset")
}

func TestBackendChangeIsSmall(t *testing.T) {
	view := func(backends ...string) Table {
		return Derive(state.NewView(state.View{}, nil, []*state.ServiceView{svc("far", "10.96.0.24", "tcp", 80, 0, backends...)}), testLocal())
	}
	old := arrange(view("10.244.1.1:80", "10.244.1.2:80", "10.244.1.4:80"), slots{})
	tests := map[string]struct {
		now  Table
		want string
	}{
		"one more goes last": {view("10.244.1.1:80", "10.244.1.2:80", "10.244.1.3:80", "10.244.1.4:80"), `
add chain inet nodenet lb-4
add element inet nodenet bkt { 0:4 : goto lb-4 }
add element inet nodenet eps { 10.96.0.24 . tcp . 80 . 3 : 10.244.1.3 . 80 }
delete element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:3 }
add element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:4 }
`},
		"one less: the last goes into the hole": {view("10.244.1.2:80", "10.244.1.4:80"), `
add chain inet nodenet lb-2
add element inet nodenet bkt { 0:2 : goto lb-2 }
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 0 : 10.244.1.1 . 80 }
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 2 : 10.244.1.4 . 80 }
add element inet nodenet eps { 10.96.0.24 . tcp . 80 . 0 : 10.244.1.4 . 80 }
delete element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:3 }
add element inet nodenet svc { 10.96.0.24 . tcp . 80 : 0:2 }
`},
		"one for another": {view("10.244.1.1:80", "10.244.1.3:80", "10.244.1.4:80"), `
delete element inet nodenet eps { 10.96.0.24 . tcp . 80 . 1 : 10.244.1.2 . 80 }
add element inet nodenet eps { 10.96.0.24 . tcp . 80 . 1 : 10.244.1.3 . 80 }
`},
		"the same": {view("10.244.1.1:80", "10.244.1.2:80", "10.244.1.4:80"), "\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			next := arrange(tt.now, slotsOf(&old))
			if diff := cmp.Diff(tt.want, "\n"+diffTables(&old, &next).String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlace(t *testing.T) {
	backend := rapid.Map(rapid.IntRange(1, 9), func(n int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 80)
	})
	list := rapid.SliceOfNDistinct(backend, 0, 9, rapid.ID)
	rapid.Check(t, func(t *rapid.T) {
		have, want := list.Draw(t, "have"), list.Draw(t, "want")
		got := place(have, want)
		moved := 0
		for i, b := range got {
			if slices.Contains(have, b) && (i >= len(have) || have[i] != b) {
				moved++
			}
		}
		if removed := max(0, len(have)-len(want)); moved > removed {
			t.Fatalf("%v → %v: %d moved, at most %d need to", have, got, moved, removed)
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		slices.SortFunc(want, netip.AddrPort.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// tracked is a conntrack table: who answers, by protocol and what was asked.
type tracked struct {
	mu    sync.Mutex
	flows []flow
}

type flow struct {
	proto        uint8
	dst, backend netip.AddrPort
}

func (f flow) String() string {
	return fmt.Sprintf("%s %s by %s", protoName(f.proto), f.dst, f.backend)
}

func (c *tracked) Delete(proto uint8, ipv6 bool, stale func(dst, backend netip.AddrPort) bool) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.flows)
	c.flows = slices.DeleteFunc(c.flows, func(f flow) bool {
		return f.proto == proto && f.dst.Addr().Is6() == ipv6 && stale(f.dst, f.backend)
	})
	return n - len(c.flows), nil
}

// track makes the flows, each "<proto> <dst> <backend>", the only ones.
func (c *tracked) track(flows ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flows = nil
	for _, f := range flows {
		p := strings.Fields(f)
		c.flows = append(c.flows, flow{protoNumber(p[0]), ap(p[1]), ap(p[2])})
	}
}

func (c *tracked) left() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, f := range c.flows {
		out = append(out, f.String())
	}
	return out
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, ct := newFake(), new(tracked)
		reg := prometheus.NewRegistry()
		b, err := New(Options{Kernel: k, Conntrack: ct, Registry: reg})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		set := func(rev uint64, backends ...string) {
			b.Set(state.NewView(state.View{Rev: rev}, nil, []*state.ServiceView{svc("u", "10.96.0.25", "udp", 53, 30053, backends...)}), testLocal())
		}
		set(1)
		synctest.Wait()
		if s := b.Status(); !s.OK || s.Applied != 1 || !strings.HasPrefix(s.Detail, "1 service, 0 backends, applied ") {
			t.Errorf("status %+v", s)
		}
		// Questions that nobody answered, one to another host's port, and one
		// that went on to the backend.
		ct.track("udp 10.96.0.25:53 10.96.0.25:53", "udp 192.0.2.11:30053 192.0.2.11:30053",
			"udp 198.51.100.1:30053 198.51.100.1:30053", "udp 10.96.0.25:53 10.244.0.2:53", "tcp 10.96.0.25:53 10.244.0.9:53")
		set(2, "10.244.0.2:53")
		synctest.Wait()
		valid := []string{"udp 198.51.100.1:30053 by 198.51.100.1:30053", "udp 10.96.0.25:53 by 10.244.0.2:53", "tcp 10.96.0.25:53 by 10.244.0.9:53"}
		if diff := cmp.Diff(valid, ct.left()); diff != "" {
			t.Errorf("flows after none → one (-want +got):\n%s", diff)
		}
		set(3, "10.244.0.2:53", "10.244.0.3:53")
		synctest.Wait()
		if diff := cmp.Diff(valid, ct.left()); diff != "" {
			t.Errorf("flows after one → two (-want +got):\n%s", diff)
		}
		ct.track("udp 10.96.0.25:53 10.244.0.2:53", "udp 10.96.0.25:53 10.244.0.3:53", "udp 192.0.2.11:30053 10.244.0.2:53")
		set(4, "10.244.0.3:53")
		synctest.Wait()
		if diff := cmp.Diff([]string{"udp 10.96.0.25:53 by 10.244.0.3:53"}, ct.left()); diff != "" {
			t.Errorf("flows after two → one (-want +got):\n%s", diff)
		}

		calls := k.applies()
		set(5, "10.244.0.3:53")
		time.Sleep(time.Minute) // virtual: polls and slow ticks
		synctest.Wait()
		if k.applies() != calls || b.Status().Applied != 5 {
			t.Errorf("%d transactions for the same table, status %+v", k.applies()-calls, b.Status())
		}

		k.with(func() { k.fail = fmt.Errorf("set: %w", errNoPermission) })
		set(6)
		synctest.Wait()
		if s := b.Status(); s.OK || s.Applied != 5 || s.Desired != 6 || !strings.Contains(s.Fix, "CAP_NET_ADMIN") {
			t.Errorf("status of a failure %+v", s)
		}
		k.with(func() { k.fail = nil })
		time.Sleep(time.Second)
		synctest.Wait()
		if s := b.Status(); !s.OK || s.Applied != 6 || s.Error != "" {
			t.Errorf("status after recovery %+v", s)
		}

		k.with(func() { delete(k.tables, "bridge"); k.gen++ })
		time.Sleep(time.Second)
		synctest.Wait()
		k.with(func() {
			if k.tables["bridge"] == nil {
				t.Error("a deleted table is not restored within a second")
			}
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range families {
			names = append(names, f.GetName())
		}
		if diff := cmp.Diff([]string{"nodenet_lb_applies_total", "nodenet_lb_apply_seconds", "nodenet_lb_backends", "nodenet_lb_disagreements_total", "nodenet_lb_flows_forgotten_total", "nodenet_lb_operations_total", "nodenet_lb_repairs_total", "nodenet_lb_services",
			"nodenet_policy_classes", "nodenet_policy_denied_packets_total", "nodenet_policy_isolated_addresses", "nodenet_policy_policies"}, names); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
	})
}
