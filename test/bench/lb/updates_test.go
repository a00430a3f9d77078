package lb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/lb"
	"nodenet/state"
)

const self state.NodeID = "aaaaaaaaaaaaaaaaaaaaaaaaaa"

const (
	backends = 10
	changes  = 6000 // of each series
	turn     = 100
)

// kernel times the transactions of another one.
type kernel struct {
	lb.Kernel
	mu      sync.Mutex
	took    times
	calls   int            // of Apply; only its caller's
	applied chan time.Time // when each transaction was done
}

// Apply times one call in eight by the thread's clock. That binds the goroutine
// to its thread, which makes the call itself slower: such calls are not among
// those timed by the wall's.
func (k *kernel) Apply(o lb.Ops) error {
	k.calls++
	if k.calls%8 == 0 {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cpu := threadTime()
		err := k.Kernel.Apply(o)
		cpu = threadTime() - cpu
		k.done(func() { k.took.cpu = append(k.took.cpu, cpu) }, time.Now())
		return err
	}
	began := time.Now()
	err := k.Kernel.Apply(o)
	now := time.Now()
	k.done(func() { k.took.wall = append(k.took.wall, now.Sub(began)) }, now)
	return err
}

func (k *kernel) done(note func(), at time.Time) {
	k.mu.Lock()
	note()
	k.mu.Unlock()
	k.applied <- at
}

// times are those of transactions: as a clock shows them, and what the thread
// computed, which leaves out other processes on a busy machine.
type times struct{ wall, cpu []time.Duration }

func (t *times) add(o times) { t.wall, t.cpu = append(t.wall, o.wall...), append(t.cpu, o.cpu...) }

func (k *kernel) times() times {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.took
	k.took = times{}
	return out
}

func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
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
	n     int
	next  int           // change
	cold  time.Duration // from a view to all of it in the kernel
}

func run(t *testing.T, n int) *running {
	t.Helper()
	r := &running{n: n, k: &kernel{applied: make(chan time.Time, 1)}}
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
func (r *running) change(t *testing.T, changes int) (calls times, events []time.Duration) {
	t.Helper()
	for range changes {
		s := service(r.next / 2 * 7919 % r.n)
		b := state.Backend{Namespace: s.Namespace, Service: s.Name, Addr: netip.MustParseAddr("10.245.100.1"), Port: 8080}
		key := s.Key() + "/10.245.100.1:8080"
		op := state.Put(state.Cluster, state.KindBackend, key, b)
		if r.next%2 == 1 {
			op = state.Del(state.Cluster, state.KindBackend, key)
		}
		r.next++
		began := time.Now()
		r.write(t, op)
		events = append(events, (<-r.k.applied).Sub(began))
	}
	if s := r.lb.Status(); s.Error != "" {
		t.Fatalf("status: %s", s.Error)
	}
	return r.k.times(), events
}

// figUpdates measures one backend more or less, at several sizes in turn, so
// that what else the machine does disturbs all alike.
func figUpdates(t *testing.T, tab *figureTable) {
	sizes := []int{1000, 10000, 50000}
	var rs []*running
	calls, events := map[int]*times{}, map[int][]time.Duration{}
	for _, n := range sizes {
		r := run(t, n)
		r.change(t, 100) // all sizes of buckets are made
		rs = append(rs, r)
		calls[n] = new(times)
	}
	runtime.GC()
	for range changes / turn {
		for _, r := range rs {
			c, e := r.change(t, turn)
			calls[r.n].add(c)
			events[r.n] = append(events[r.n], e...)
		}
	}
	p50 := map[int][3]float64{}
	for _, r := range rs {
		c := calls[r.n]
		p50[r.n] = [3]float64{micros(quantile(c.wall, 0.5)), micros(quantile(events[r.n], 0.5)), micros(quantile(c.cpu, 0.5))}
		goals := [4]float64{}
		if r.n == 10000 {
			goals = [4]float64{20, 150, 2000, 1}
		}
		at := fmt.Sprintf(", %d services", r.n)
		tab.add(
			figure{name: "one backend: kernel call p50" + at, value: p50[r.n][0], unit: "µs", goal: goals[0],
				how: fmt.Sprintf("%d × %d, %d changes one by one, %d a turn: add, remove, another service", r.n, backends, len(c.wall)+len(c.cpu), turn)},
			figure{name: "one backend: kernel call p99" + at, value: micros(quantile(c.wall, 0.99)), unit: "µs", goal: goals[1]},
			figure{name: "… processor time p50" + at, value: p50[r.n][2], unit: "µs", how: "of one call in eight: what other processes of the machine did is left out"},
			figure{name: "… processor time p99" + at, value: micros(quantile(c.cpu, 0.99)), unit: "µs"},
			figure{name: "one backend: event to kernel p50" + at, value: p50[r.n][1], unit: "µs", goal: goals[2], how: "record written, view, load balancer, netlink, answer"},
			figure{name: "one backend: event to kernel p99" + at, value: micros(quantile(events[r.n], 0.99)), unit: "µs", goal: goals[2]},
			figure{name: "cold load" + at, value: r.cold.Seconds(), unit: "s", goal: goals[3], how: "view to all in the kernel, empty before"},
		)
	}
	first, last := p50[sizes[0]], p50[sizes[len(sizes)-1]]
	tab.add(
		figure{name: "kernel call p50, 50 000 to 1 000 services", value: last[0] / first[0], unit: "×", goal: 2},
		figure{name: "… processor time p50, 50 000 to 1 000 services", value: last[2] / first[2], unit: "×"},
		figure{name: "event to kernel p50, 50 000 to 1 000 services", value: last[1] / first[1], unit: "×", goal: 2},
	)
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
	r.change(t, 100)

	verdicts := lb.Set{Name: "services", Decl: "type classid : verdict", Key: []lb.Kind{lb.KindClass}, Val: []lb.Kind{lb.KindVerdict}}
	// The kernel checks what a base chain can reach, so one looks the map up.
	spec := lb.TableSpec{Family: "inet", Name: lb.TableName, Chains: []lb.Chain{
		{Name: "pre", Type: "nat", Hook: "prerouting", Priority: -100, Rules: []lb.Rule{{lb.PriorityVmap{Map: "services"}}}},
	}}
	elem := func(i, chain int) lb.Elem {
		return lb.Elem{Key: string(binary.NativeEndian.AppendUint32(nil, uint32(i+1))), Val: fmt.Sprintf("s-%d", chain)}
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
	var theirs, nft []time.Duration
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
			key := fmt.Sprintf("%s . tcp . 80", vip(i/2))
			what, had, now := "add", backends, backends+1
			if i%2 == 1 {
				what, had, now = "delete", now, had
			}
			script := fmt.Sprintf(`%s element inet nodenet eps { %s . 10 : 10.245.100.1 . 8080 }
delete element inet nodenet svc { %s : 0:%x }
add element inet nodenet svc { %s : 0:%x }
`, what, key, key, had, key, now)
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
	ours, _ := r.change(t, 2000)
	p := micros(quantile(ours.wall, 0.5))
	v := micros(quantile(theirs, 0.5))
	tab.add(figure{name: "a chain a service and a verdict map: kernel call p50", value: v, unit: "µs", how: "10 000 services; one element deleted and added, the least that design needs"},
		figure{name: "… to one backend here", value: v / p, unit: "×", goal: 40, least: true})
	if len(nft) > 0 {
		x := micros(quantile(nft, 0.5))
		tab.add(figure{name: "running nft: p50", value: x, unit: "µs", how: "10 000 × 10; the same three elements by nft -f"},
			figure{name: "… to one backend here", value: x / p, unit: "×", goal: 1000, least: true})
	}
}
