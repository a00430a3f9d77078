package lb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"nodenet/lb"
	"nodenet/state"
)

const (
	self     state.NodeID = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	backends              = 10
	changes               = 4000 // of each series
)

// kernel times the transactions of another one.
type kernel struct {
	lb.Kernel
	mu      sync.Mutex
	took    []time.Duration
	applied chan time.Time // when each transaction was done
}

func (k *kernel) Apply(o lb.Ops) error {
	began := time.Now()
	err := k.Kernel.Apply(o)
	now := time.Now()
	k.mu.Lock()
	k.took = append(k.took, now.Sub(began))
	k.mu.Unlock()
	k.applied <- now
	return err
}

func (k *kernel) times() []time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.took
	k.took = nil
	return out
}

// deaf opens no sockets: nothing is published on loopback here.
type deaf struct{}

var errDeaf = errors.New("no loopback listeners here")

func (deaf) Listen(string, string) (net.Listener, error)            { return nil, errDeaf }
func (deaf) ListenPacket(string, string) (net.PacketConn, error)    { return nil, errDeaf }
func (deaf) Dial(context.Context, string, string) (net.Conn, error) { return nil, errDeaf }

func local() lb.Local {
	return lb.Local{
		Self: self, Range: netip.MustParsePrefix("10.96.0.0/12"), Resolver: netip.MustParseAddr("10.96.0.10"),
		Bridges: []lb.BridgeInfo{{Network: "pods", Name: "nn-bench", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Own: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}},
	}
}

func vip(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}) }

// service is one on nodes elsewhere.
func service(i int) state.Service {
	s := state.Service{Namespace: "bench", Name: fmt.Sprintf("s%05d", i), VIP: vip(i), Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}}}
	for b := range backends {
		s.Backends = append(s.Backends, state.Backend{Namespace: s.Namespace, Service: s.Name, Addr: netip.AddrFrom4([4]byte{10, 245, byte(b), byte(i)}), Port: 8080})
	}
	return s
}

// running is a store of n services and the LB that follows it.
type running struct {
	store *state.Store
	lb    *lb.LB
	k     *kernel
	cold  time.Duration // from a view to all of it in the kernel
}

func run(t *testing.T, n int) *running {
	t.Helper()
	r := &running{k: &kernel{applied: make(chan time.Time, 1)}}
	var err error
	if r.store, err = state.NewStore(state.Options{Self: self, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	for first := 0; first < n; first += 1000 {
		r.write(t, func() (ops []state.Op) {
			for i := first; i < min(n, first+1000); i++ {
				s := service(i)
				ops = append(ops, state.Put(state.Cluster, state.KindService, s.Key(), s))
			}
			return ops
		}()...)
	}
	newSpace(t, "updates").do(func() { r.k.Kernel, err = lb.OpenKernel() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.k.Close() })
	if r.lb, err = lb.New(lb.Options{Kernel: r.k, Loopback: deaf{}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = r.lb.Run(ctx) })
	v := r.store.Snapshot().View()
	began := time.Now()
	r.lb.Set(v, local())
	r.cold = (<-r.k.applied).Sub(began)
	r.k.times()
	feed := r.store.Subscribe()
	running.Go(func() {
		for {
			select {
			case <-feed.C():
				_, _, sn := feed.Take()
				r.lb.Set(sn.View(), local())
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); feed.Close(); r.store.Close() })
	return r
}

func (r *running) write(t *testing.T, ops ...state.Op) {
	t.Helper()
	if _, err := r.store.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

// change adds and removes the eleventh backend of services all over the
// table. It returns the times of the kernel calls and those from the write of
// the record to the end of the kernel call.
func (r *running) change(t *testing.T, n int) (calls, events []time.Duration) {
	t.Helper()
	for i := range changes {
		s := service(i / 2 * 7919 % n)
		b := state.Backend{Namespace: s.Namespace, Service: s.Name, Addr: netip.MustParseAddr("10.245.100.1"), Port: 8080}
		key := s.Key() + "/10.245.100.1:8080"
		op := state.Put(state.Cluster, state.KindBackend, key, b)
		if i%2 == 1 {
			op = state.Del(state.Cluster, state.KindBackend, key)
		}
		began := time.Now()
		r.write(t, op)
		events = append(events, (<-r.k.applied).Sub(began))
	}
	if s := r.lb.Status(); s.Error != "" {
		t.Fatalf("status: %s", s.Error)
	}
	return r.k.times(), events
}

// figUpdates measures one backend more or less, at several sizes.
func figUpdates(t *testing.T, tab *figureTable) {
	const how = "%d × %d, %d changes one by one: record written, view, load balancer, netlink, answer"
	p50 := map[int][2]float64{}
	for _, n := range []int{1000, 10000, 50000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r := run(t, n)
			r.change(t, n) // all sizes of buckets are made
			calls, events := r.change(t, n)
			p50[n] = [2]float64{micros(quantile(calls, 0.5)), micros(quantile(events, 0.5))}
			goals := [4]float64{}
			if n == 10000 {
				goals = [4]float64{20, 150, 2000, 1}
			}
			at := fmt.Sprintf(", %d services", n)
			tab.add(
				figure{name: "one backend: kernel call p50" + at, value: p50[n][0], unit: "µs", goal: goals[0], how: fmt.Sprintf(how, n, backends, changes)},
				figure{name: "one backend: kernel call p99" + at, value: micros(quantile(calls, 0.99)), unit: "µs", goal: goals[1]},
				figure{name: "one backend: event to kernel p50" + at, value: p50[n][1], unit: "µs", goal: goals[2]},
				figure{name: "one backend: event to kernel p99" + at, value: micros(quantile(events, 0.99)), unit: "µs"},
				figure{name: "cold load" + at, value: r.cold.Seconds(), unit: "s", goal: goals[3], how: "view to all in the kernel, empty before"},
			)
		})
	}
	if p50[1000][0] > 0 && p50[50000][0] > 0 {
		tab.add(
			figure{name: "kernel call p50, 50 000 to 1 000 services", value: p50[50000][0] / p50[1000][0], unit: "×", goal: 2},
			figure{name: "event to kernel p50, 50 000 to 1 000 services", value: p50[50000][1] / p50[1000][1], unit: "×", goal: 2},
		)
	}
}

// figOthers measures the same change in a design with a chain a service, found
// by a verdict map, and by running nft.
func figOthers(t *testing.T, tab *figureTable) {
	const n = 10000
	sp := newSpace(t, "verdicts")
	var k lb.Kernel
	var err error
	sp.do(func() { k, err = lb.OpenKernel() })
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	r := run(t, n)
	r.change(t, n)

	verdicts := lb.Set{Name: "services", Decl: "type ipv4_addr : verdict", Key: []lb.Kind{lb.KindAddr}, Val: []lb.Kind{lb.KindVerdict}}
	spec := lb.TableSpec{Family: "inet", Name: lb.TableName}
	elem := func(i, chain int) lb.Elem {
		a := vip(i).As4()
		return lb.Elem{Key: string(a[:]), Val: fmt.Sprintf("s-%d", chain)}
	}
	full := verdicts
	for i := range n {
		spec.Chains = append(spec.Chains, lb.Chain{Name: fmt.Sprintf("s-%d", i), Rules: []lb.Rule{{lb.DNATAddr{Addr: vip(i)}}}})
		full.Elems = append(full.Elems, elem(i, i))
	}
	spec.Sets = []lb.Set{full}
	if err := k.Apply(lb.Ops{Replace: []lb.TableSpec{spec}}); err != nil {
		t.Fatal(err)
	}
	var ours, theirs, nft []time.Duration
	for i := range 300 {
		s := i / 2 * 7919 % n
		from, to := s, (s+1)%n
		if i%2 == 1 {
			from, to = to, from
		}
		began := time.Now()
		if err := k.Apply(lb.Ops{Sets: []lb.SetOp{{Family: "inet", Set: verdicts, Del: []lb.Elem{elem(s, from)}, Add: []lb.Elem{elem(s, to)}}}}); err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, time.Since(began))
	}
	if path, err := exec.LookPath("nft"); err != nil {
		fmt.Println("nft: not installed, left out")
	} else {
		other := newSpace(t, "nft")
		var ko lb.Kernel
		other.do(func() { ko, err = lb.OpenKernel() })
		if err != nil {
			t.Fatal(err)
		}
		defer ko.Close()
		if err := ko.Apply(lb.Ops{Replace: lb.Derive(r.store.Snapshot().View(), local()).Ruleset().Tables}); err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			e := fmt.Sprintf("inet nodenet eps { %s . tcp . 80 . 10 : 10.245.100.1 . 8080 }\n", vip(i/2))
			script := "add element " + e
			if i%2 == 1 {
				script = "delete element " + e
			}
			other.do(func() {
				c := exec.Command(path, "-f", "-")
				c.Stdin = strings.NewReader(script)
				began := time.Now()
				out, err := c.CombinedOutput()
				nft = append(nft, time.Since(began))
				if err != nil {
					t.Errorf("nft: %v\n%s", err, out)
				}
			})
		}
	}
	ours, _ = r.change(t, n)
	p := micros(quantile(ours, 0.5))
	v := micros(quantile(theirs, 0.5))
	tab.add(figure{name: "a chain a service and a verdict map: kernel call p50", value: v, unit: "µs", how: "10 000 services; one element deleted and added, the least that design needs"},
		figure{name: "… to one backend here", value: v / p, unit: "×", goal: 40, least: true})
	if len(nft) > 0 {
		x := micros(quantile(nft, 0.5))
		tab.add(figure{name: "running nft: p50", value: x, unit: "µs", how: "one slot of 10 000 × 10 added or deleted by nft -f"},
			figure{name: "… to one backend here", value: x / p, unit: "×", goal: 1000, least: true})
	}
}
