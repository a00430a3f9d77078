package lb

import (
	"bufio"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// killWish is what the balancer is told at a step of TestKilled: services come,
// change and go, now a backend and now hundreds of elements at once.
func killWish(w *world, step int) *wish {
	r := rand.New(rand.NewPCG(1, uint64(step)))
	n := 1 + r.IntN(2)
	if step%5 == 0 {
		n = 30
	}
	for range n {
		i := r.IntN(40)
		name := fmt.Sprint("s", i)
		if r.IntN(5) == 0 {
			delete(w.services, name)
			continue
		}
		var backends []string
		for b := range 1 + r.IntN(9) {
			backends = append(backends, fmt.Sprintf("10.244.%d.%d:80", b%2, b+2))
		}
		r.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
		w.services[name] = svc(name, fmt.Sprintf("10.96.3.%d", i+1), "tcp", 80, uint16(i%2*(30100+i)), backends...)
	}
	w.rev++
	return &wish{w.view(), w.local}
}

// killWorld is the world before a step, without those before being applied.
func killWorld(step int) *world {
	w := newWorld()
	for i := range step {
		killWish(w, i)
	}
	return w
}

const killEnv = "NODENET_TEST_KILL_FROM"

// TestKilledChild is the process that TestKilled kills. It says which step it
// begins.
func TestKilledChild(t *testing.T) {
	from, err := strconv.Atoi(os.Getenv(killEnv))
	if err != nil {
		t.Skip("a part of TestKilled")
	}
	runtime.LockOSThread()
	if err := netns.Set(3); err != nil {
		t.Fatal(err)
	}
	k, err := OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Options{Kernel: k, Loopback: deaf{}})
	if err != nil {
		t.Fatal(err)
	}
	w := killWorld(from)
	for step := from; ; step++ {
		next := killWish(w, step)
		fmt.Printf("step %d\n", step)
		if err := b.apply(next); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilled: whenever the daemon is killed, in the middle of a transaction
// too, the kernel holds what it held before the step or what it holds after it,
// and the next daemon goes on from there.
func TestKilled(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	model := newFake()
	step, undoneSteps := 0, 0
	for round := range 20 {
		// After some steps, at one moment or another of the next: a step takes
		// one to a hundred milliseconds, the machine's load decides which.
		last := s.kill(t, step, step+round%5, time.Duration(round*round)*100*time.Microsecond)
		// The same steps on the model, which an interrupted one ends before or after.
		b, err := New(Options{Kernel: model, Loopback: deaf{}})
		if err != nil {
			t.Fatal(err)
		}
		w := killWorld(step)
		var before map[string][]string
		var undone *fakeKernel
		for ; step <= last; step++ {
			before, undone = elementsOf(t, model), model.copy()
			if err := b.apply(killWish(w, step)); err != nil {
				t.Fatal(err)
			}
		}
		got := elementsOf(t, k)
		after := elementsOf(t, model)
		if cmp.Equal(after, got) {
			continue
		}
		if diff := cmp.Diff(before, got); diff != "" {
			t.Fatalf("killed in step %d: neither what was before nor what is after (-before +kernel):\n%s", last, diff)
		}
		step-- // not done: the next one begins with it
		model = undone
		undoneSteps++
	}
	t.Logf("%d steps, %d kills came before the end of one", step, undoneSteps)
}

// kill runs steps in a process of its own until it is killed, some time after
// one of them has begun, and returns the last one that was begun.
func (s *space) kill(t *testing.T, from, at int, after time.Duration) (last int) {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(s.ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ns := os.NewFile(uintptr(fd), "namespace")
	defer ns.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
	cmd.Env = append(os.Environ(), killEnv+"="+strconv.Itoa(from))
	cmd.ExtraFiles = []*os.File{ns}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "step %d", &last); err != nil {
			t.Errorf("said %q", lines.Text())
		}
		if last == at {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait() // killed
	if last < at {
		t.Fatalf("ended by itself after step %d", last)
	}
	return last
}

// copy is a fake that holds the same.
func (f *fakeKernel) copy() *fakeKernel {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := newFake()
	for name, o := range f.tables {
		c := *o
		c.Shape.Sets, c.Shape.Chains, c.Elems = maps.Clone(o.Shape.Sets), maps.Clone(o.Shape.Chains), maps.Clone(o.Elems)
		out.tables[name] = &c
	}
	return out
}

// elementsOf lists what is in our tables, by table and set.
func elementsOf(t *testing.T, k Kernel) map[string][]string {
	t.Helper()
	have, err := k.Observe(true)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]string)
	for _, o := range have {
		for name, els := range o.Elems {
			for _, e := range els {
				out[o.Family+" "+name] = append(out[o.Family+" "+name], fmt.Sprintf("%x-%x: %x", e.Key, e.End, e.Val))
			}
		}
		out[o.Family+" chains"] = slices.Sorted(maps.Keys(o.Shape.Chains))
	}
	return out
}
