package lb

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// libraryBytes is what google/nftables sends for o.
func libraryBytes(t *testing.T, o Ops) []byte {
	t.Helper()
	var out []byte
	c, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		for _, m := range req {
			m.Header.Length = uint32(unix.SizeofNlMsghdr + len(m.Data))
			b, err := m.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b...)
		}
		return nil, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{conn: c}
	_ = k.compose(o)
	_ = c.Flush()
	return anonymous(out)
}

// anonymous clears what differs from one sending to the next, and the wish for
// an answer.
func anonymous(b []byte) []byte {
	out := []byte(strings.Clone(string(b)))
	for at := 0; at+unix.SizeofNlMsghdr <= len(out); {
		size := int(binary.NativeEndian.Uint32(out[at:]))
		out[at+6] &^= unix.NLM_F_ACK
		clear(out[at+8 : at+16]) // sequence, port
		at += (size + 3) &^ 3
	}
	return out
}

// TestBatchBytes: whatever changes between two tables, of elements, is sent as
// google/nftables would send it.
func TestBatchBytes(t *testing.T) {
	b := &batch{}
	small := 0
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld()
		rec := &recorder{fakeKernel: newFake()}
		l, err := New(Options{Kernel: rec, Loopback: deaf{}})
		if err != nil {
			rt.Fatal(err)
		}
		for range 4 {
			w.mutate(rt)
			rec.last = Ops{}
			if err := l.apply(&wish{w.view(), w.local}); err != nil {
				rt.Fatal(err)
			}
			o := rec.last
			if !b.takes(&o) || o.Empty() {
				continue
			}
			small++
			b.encode(o.Sets)
			if diff := cmp.Diff(libraryBytes(t, o), anonymous(b.buf)); diff != "" {
				rt.Fatalf("(-google/nftables +batch) for\n%s\n%s", o, diff)
			}
		}
	})
	if small == 0 {
		t.Error("no change was small enough")
	}
}

// TestBatchErrors: an error names the element, and nothing was done.
func TestBatchErrors(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	tab := Derive(benchView(3), testLocal())
	cur, _ := syncKernel(t, k, nil, tab)
	sets := portSets(V4, false)
	class10 := func(vip string, n class) Elem {
		return Elem{Key: string(keyTarget(Target{addr(vip), TCP, 80})), Val: n.elem()}
	}
	svc := &sets[setClass]
	for _, c := range []struct {
		name string
		op   SetOp
		want string
		err  error
	}{
		{"is there", SetOp{Add: []Elem{class10("10.97.9.1", 1), class10("10.97.0.1", 9), class10("10.97.9.2", 1)}},
			"add element inet nodenet svc { 10.97.0.1 . tcp . 80 : 0:9 }", unix.EEXIST},
		{"is not there", SetOp{Del: []Elem{class10("10.97.0.1", 10), class10("10.97.9.9", 1)}},
			"delete element inet nodenet svc { 10.97.9.9 . tcp . 80 : 0:1 }", unix.ENOENT},
	} {
		c.op.Family, c.op.Set = "inet", *svc
		before, err := k.Generation()
		if err != nil {
			t.Fatal(err)
		}
		// A change of another set goes with it, and must not be done.
		o := Ops{Sets: []SetOp{{Family: "inet", Set: sets[setKeep], Add: []Elem{class10("10.97.0.1", 5)}}, c.op}}
		err = k.Apply(o)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if g, err := k.Generation(); err != nil || g != before {
			t.Errorf("%s: generation %d, %v, was %d", c.name, g, err, before)
		}
		wantKernel(t, k, cur)
	}
	// Neither disturbs what comes next.
	o := Ops{Sets: []SetOp{{Family: "inet", Set: sets[setKeep], Add: []Elem{class10("10.97.0.1", 5)}}}}
	if err := k.Apply(o); err != nil {
		t.Error(err)
	}
	s.nft("", "get", "element", "inet", "nodenet", "keep", "{ 10.97.0.1 . tcp . 80 }")
	s.nft("", "delete", "table", "inet", "nodenet")
	if err := k.Apply(o); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without the table: %v", err)
	}
}
