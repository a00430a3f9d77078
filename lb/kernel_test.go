package lb

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
)

// space is a network namespace without a name: it is gone with its last user.
type space struct {
	t  testing.TB
	ns netns.NsHandle
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and nftables")
	}
}

func newSpace(t testing.TB) *space {
	t.Helper()
	needRoot(t)
	s := &space{t: t}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		s.ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// do runs f inside the namespace and waits for it.
func (s *space) do(f func()) {
	s.t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		s.t.Fatalf("enter network namespace: %v", err)
	}
}

// nft runs the command line tool as an independent witness.
func (s *space) nft(stdin string, args ...string) string {
	s.t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		s.t.Skip("needs the nft command")
	}
	var out []byte
	s.do(func() {
		c := exec.Command(path, args...)
		c.Stdin = strings.NewReader(stdin)
		out, err = c.CombinedOutput()
	})
	if err != nil {
		s.t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *space) kernel() *kernel {
	s.t.Helper()
	var k *kernel
	var err error
	s.do(func() { k, err = openKernel() })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { k.Close() })
	return k
}

// sync makes the namespace hold t the way LB does and returns the arranged
// table with the operations that it took.
func syncKernel(t testing.TB, k Kernel, old *Table, tab Table) (*Table, Ops) {
	t.Helper()
	var next Table
	var ops Ops
	if old == nil {
		have, err := k.Observe(true)
		if err != nil {
			t.Fatal(err)
		}
		next = arrange(tab, slotsObserved(have))
		ops = diffObserved(k, have, next.Ruleset())
	} else {
		next = arrange(tab, slotsOf(old))
		ops = diffTables(old, &next)
	}
	if !ops.Empty() {
		if err := k.Apply(ops); err != nil {
			t.Fatalf("apply: %v\n%s", err, ops)
		}
	}
	return &next, ops
}

// wantKernel checks that the kernel holds exactly a table's ruleset.
func wantKernel(t testing.TB, k Kernel, tab *Table) {
	t.Helper()
	have, err := k.Observe(true)
	if err != nil {
		t.Fatal(err)
	}
	rs := tab.Ruleset()
	if len(have) != len(rs.Tables) {
		t.Fatalf("%d tables, want %d", len(have), len(rs.Tables))
	}
	for i, ts := range rs.Tables {
		if d := k.Describe(ts).Diff(have[i].Shape); d != "" {
			t.Errorf("table %s: %s", ts.Family, d)
		}
		for _, s := range ts.Sets {
			var want, got []string
			for _, e := range s.Elems {
				want = append(want, s.text(e))
			}
			for _, e := range have[i].Elems[s.Name] {
				got = append(got, s.text(e))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("set %s %s (-want +got):\n%s", ts.Family, s.Name, diff)
			}
		}
	}
}

func TestKernelApply(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	tab := Derive(testView(), testLocal())
	next, ops := syncKernel(t, k, nil, tab)
	if ops.Empty() {
		t.Fatal("no operations on an empty kernel")
	}
	wantKernel(t, k, next)
	if _, ops := syncKernel(t, k, nil, tab); !ops.Empty() {
		t.Errorf("the same table again after a restart:\n%s", ops)
	}
	if _, ops := syncKernel(t, k, next, tab); !ops.Empty() {
		t.Errorf("the same table again:\n%s", ops)
	}
	listed := s.nft("", "list", "ruleset")
	for _, want := range []string{"chain lb-2", "10.96.0.20 . tcp . 80", "masquerade fully-random", "table bridge nodenet", `"nn-t2" . "nn-t2"`, `elements = { "nn-t2" }`} {
		if !strings.Contains(listed, want) {
			t.Errorf("nft lists no %q:\n%s", want, listed)
		}
	}
}

// TestGoldensLoad: nft reads the goldens, and prints what the daemon programs
// for them. What it cannot read is said in learnChain.
func TestGoldensLoad(t *testing.T) {
	for name, tab := range goldenTables() {
		t.Run(name, func(t *testing.T) {
			if name != "sticky" {
				s := newSpace(t)
				s.nft("", "-f", filepath.Join("testdata", name+".nft"))
				s.nft("", "list", "ruleset")
			}
			s := newSpace(t)
			next, _ := syncKernel(t, s.kernel(), nil, tab)
			wantKernel(t, s.kernel(), next)
			listed := s.nft("", "list", "ruleset")
			for _, c := range next.Ruleset().Tables[0].Chains {
				if !strings.Contains(listed, "chain "+c.Name+" {") {
					t.Errorf("nft lists no chain %s", c.Name)
				}
			}
		})
	}
}
