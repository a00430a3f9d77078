package lb

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nodenet/state"
)

// TestRepairElements: what somebody changes inside our sets is put right
// within a second, other elements stay, and a foreign table is not touched.
func TestRepairElements(t *testing.T) {
	tp := newTopology(t, testView())
	tp.node.nft("table inet other {\n set s { type ipv4_addr; elements = { 192.0.2.9 }; }\n chain c { ip saddr @s counter drop; }\n}\n", "-f", "-")
	other := tp.node.nft("", "-j", "list", "table", "inet", "other")
	eventually(t, "settled", func() bool { return tp.lb.Status().OK })
	whole := tp.node.nft("", "-s", "list", "ruleset")
	for _, cmd := range []string{
		"delete element inet nodenet vips { 10.96.0.20 }",
		"add element inet nodenet vips { 10.96.77.1 }",
		"flush set inet nodenet masq",
		"flush map inet nodenet svc",
		"flush map inet nodenet eps",
		"delete element inet nodenet publishany { tcp . 8080 }",
		"flush chain inet nodenet dispatch",
		"flush table bridge nodenet",
		"flush ruleset",
	} {
		t.Run(cmd, func(t *testing.T) {
			tp.node.nft(cmd+"\n", "-f", "-")
			start := time.Now()
			if cmd == "flush ruleset" {
				tp.node.nft("table inet other {\n set s { type ipv4_addr; elements = { 192.0.2.9 }; }\n chain c { ip saddr @s counter drop; }\n}\n", "-f", "-")
			}
			eventually(t, "the ruleset is whole", func() bool {
				now := tp.node.nft("", "-s", "list", "ruleset")
				return sortedTables(now) == sortedTables(whole)
			})
			took := time.Since(start)
			t.Logf("whole after %v", took.Round(time.Millisecond))
			if took > 3*time.Second { // a second is the promise, on a machine of one's own
				t.Errorf("whole only after %v", took)
			}
			calls(t, tp.outer, "tcp", "10.96.0.21:80", "w1 192.0.2.1")
		})
	}
	if cmd := "list table inet other"; tp.node.nft("", append([]string{"-j"}, strings.Fields(cmd)...)...) == other {
		t.Error("the foreign table was flushed and made anew, its handles must differ: the test sees nothing")
	}
}

// sortedTables makes rulesets comparable whose tables were made in another order.
func sortedTables(s string) string {
	parts := strings.SplitAfter(s, "\n}\n")
	for i := range parts {
		for j := i + 1; j < len(parts); j++ {
			if parts[j] < parts[i] {
				parts[i], parts[j] = parts[j], parts[i]
			}
		}
	}
	return strings.Join(parts, "")
}

// counting counts what is asked of a kernel.
type counting struct {
	Kernel
	lists, shapes int
	before        func() // each transaction
}

func (c *counting) Apply(o Ops) error {
	if c.before != nil {
		c.before()
	}
	return c.Kernel.Apply(o)
}

func (c *counting) Observe(elements bool) ([]Observed, error) {
	if elements {
		c.lists++
	} else {
		c.shapes++
	}
	return c.Kernel.Observe(elements)
}

// watched is an LB that does not run but listens.
func watched(t *testing.T, s *space, k Kernel) (b *LB, stop func()) {
	t.Helper()
	b, err := New(Options{Kernel: k, Loopback: s})
	if err != nil {
		t.Fatal(err)
	}
	s.do(func() { b.watch, err = openWatch() })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { b.watch.read(); close(ended) }()
	return b, func() {
		b.watch.close()
		<-ended
		b.loop.close()
	}
}

// TestWatchKnowsWhoseChange: other people's transactions and our own cause no
// listing at all, those on our elements cause one.
func TestWatchKnowsWhoseChange(t *testing.T) {
	s := newSpace(t)
	k := &counting{Kernel: s.kernel()}
	b, stop := watched(t, s, k)
	defer stop()
	set := func() {
		t.Helper()
		v := testView()
		if err := b.apply(&wish{v, testLocal()}); err != nil {
			t.Fatal(err)
		}
	}
	set()
	if k.lists != 1 || k.shapes != 0 {
		t.Fatalf("the start listed %d times with elements, %d without; want 1, 0", k.lists, k.shapes)
	}
	look := func(what string, intact bool, lists, shapes int) {
		t.Helper()
		k.lists, k.shapes = 0, 0
		if got := b.intact(); got != intact {
			t.Errorf("%s: intact %t, want %t", what, got, intact)
		}
		if !intact {
			b.book = nil
			set()
			if !b.intact() {
				t.Errorf("%s: not intact after the repair", what)
			}
		}
		if k.lists != lists || k.shapes != shapes {
			t.Errorf("%s: listed %d times with elements, %d without; want %d, %d", what, k.lists, k.shapes, lists, shapes)
		}
	}
	for range 50 {
		s.nft("", "add", "table", "inet", "other")
		s.nft("", "delete", "table", "inet", "other")
	}
	look("a hundred transactions of others", true, 0, 0)
	s.nft("add element inet nodenet vips { 10.96.77.1 }\n", "-f", "-")
	look("an element of ours", false, 1, 1)
	s.nft("add chain inet nodenet x\ndelete chain inet nodenet x\n", "-f", "-")
	look("nothing in the end", true, 0, 1)
	s.nft("add chain inet nodenet x\n", "-f", "-")
	look("a chain in our table", false, 1, 2)
	// Package announce has a table of our name, of another family, and renews
	// its elements all the time.
	s.nft("add table netdev nodenet\nadd set netdev nodenet addrs-2 { type ipv4_addr; flags timeout; }\n", "-f", "-")
	look("the announcer's table", true, 0, 0)
	before := b.expected
	for range 10 {
		s.nft("add element netdev nodenet addrs-2 { 192.0.2.200 timeout 10s }\n", "-f", "-")
		s.nft("delete element netdev nodenet addrs-2 { 192.0.2.200 }\n", "-f", "-")
	}
	look("the announcer's elements", true, 0, 0)
	if b.watch.reshaped(before) {
		t.Error("other firewalls would be looked at for elements of somebody else")
	}
	before = b.expected
	s.nft("", "add", "table", "inet", "firewall")
	look("somebody's table", true, 0, 0)
	if !b.watch.reshaped(before) {
		t.Error("other firewalls would not be looked at for a new table")
	}
	// What is lost is looked for.
	s.nft("", "add", "table", "inet", "other")
	eventually(t, "told", func() bool { g, err := k.Generation(); return err == nil && b.watch.upTo(g) })
	b.watch.lose()
	look("a loss", false, 1, 1)
}

// TestWatchIsDeafToUs: of our own transactions the first of each socket alone
// is told: what makes tables has one, what changes elements another.
func TestWatchIsDeafToUs(t *testing.T) {
	s := newSpace(t)
	k := &counting{Kernel: s.kernel()}
	b, stop := watched(t, s, k)
	defer stop()
	told := func() {
		t.Helper()
		s.nft("", "add", "table", "inet", "other") // the last there is, of somebody else
		g, err := k.Generation()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "told", func() bool { return !b.watch.upTo(g - 1) })
	}
	// The first goes another way than those after it, and one is known as ours
	// only while the thread that sent it lives.
	for i, deaf := 0, 0; deaf < 3; i++ {
		l := testLocal()
		l.Links = append(l.Links, fmt.Sprint("nv-", i))
		if err := b.apply(&wish{testView(), l}); err != nil {
			t.Fatal(err)
		}
		gen := b.expected
		told()
		b.watch.mu.Lock()
		got := 0
		for _, x := range b.watch.touched {
			if x.gen == gen {
				got++
			}
		}
		b.watch.mu.Unlock()
		switch {
		case got == 0:
			deaf++
		case got > 1, deaf > 0, i == 20:
			t.Fatalf("transaction %d was told %d times, after %d that were not", i, got, deaf)
		}
		k.lists, k.shapes = 0, 0
		if !b.intact() || k.lists+k.shapes > 0 {
			t.Errorf("after transaction %d: not intact, or listed to know it", i)
		}
		s.nft("", "delete", "table", "inet", "other")
		if !b.intact() {
			t.Errorf("after transaction %d: not intact", i)
		}
	}
	s.nft("delete element inet nodenet vips { 10.96.0.20 }\n", "-f", "-")
	if b.intact() {
		t.Error("what somebody else does to our elements is not told")
	}
}

// TestWatchLeaves: a large transaction of ours is not told, and is known to be
// ours all the same; what somebody else does at that moment is noticed.
func TestWatchLeaves(t *testing.T) {
	for name, slip := range map[string]bool{"alone": false, "with somebody else": true} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			k := &counting{Kernel: s.kernel()}
			if slip {
				k.before = func() {
					s.nft("add table inet nodenet\ndelete table inet nodenet\n", "-f", "-")
				}
			}
			b, stop := watched(t, s, k)
			defer stop()
			w := &wish{benchView(30), testLocal()}
			if err := b.apply(w); err != nil {
				t.Fatal(err)
			}
			if n := len(b.watch.touched); n != 0 {
				t.Errorf("%d transactions on our tables were told", n)
			}
			k.lists = 0
			if got := b.intact(); got == slip || k.lists != 0 {
				t.Errorf("intact %t after %d listings, want %t after none", got, k.lists, !slip)
			}
			if slip {
				return
			}
			s.nft("delete element inet nodenet vips { 10.97.0.3 }\n", "-f", "-")
			if b.intact() {
				t.Error("an element of ours that somebody deletes afterwards is not noticed")
			}
		})
	}
}

// TestWatchSlip: what somebody does to our elements just before a transaction
// of ours, whose generation is another then, is noticed, whether we are deaf to our
// own by then or not, and with copies that a flush would leave which hold nothing.
func TestWatchSlip(t *testing.T) {
	for name, held := range map[string]bool{"alone": false, "with copies": true} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			k := &counting{Kernel: s.kernel()}
			b, stop := watched(t, s, k)
			defer stop()
			if held {
				var err error
				s.do(func() { b.hold, err = openHold() })
				if err != nil {
					t.Fatal(err)
				}
				defer b.hold.close()
			}
			v := state.NewView(state.View{Rev: 1}, nil, []*state.ServiceView{svc("far", "10.96.0.20", "tcp", 80, 0, "10.244.1.2:8080@other")})
			for i := range 6 {
				l := testLocal()
				l.Links = append(l.Links, fmt.Sprint("nv-", i))
				b.book = nil // as Run does when something has changed
				if i > 0 {
					k.before = func() { s.nft("flush map inet nodenet eps\n", "-f", "-") }
				}
				for _, want := range []bool{i == 0, true} {
					if err := b.apply(&wish{v, l}); err != nil {
						t.Fatal(err)
					}
					k.before = nil
					if got := b.intact(); got != want {
						t.Fatalf("transaction %d: intact %t, want %t", i, got, want)
					}
					if want {
						break
					}
					b.book = nil
				}
			}
		})
	}
}

// TestWatchGaps: generations as they are told, with those that are known.
func TestWatchGaps(t *testing.T) {
	type step struct {
		gen  uint32
		ours bool
		skip bool // not told, our own
	}
	tests := map[string]struct {
		told     []step
		from, to uint32
		known    bool
		touched  int
	}{
		"all told":              {told: []step{{gen: 5}, {gen: 6, ours: true}, {gen: 7}}, from: 4, to: 7, known: true, touched: 1},
		"before the first":      {told: []step{{gen: 5}}, from: 3, to: 5},
		"one not told":          {told: []step{{gen: 5}, {gen: 7}}, from: 5, to: 7},
		"after one not told":    {told: []step{{gen: 5}, {gen: 7}, {gen: 8}}, from: 6, to: 8, known: true},
		"skipped":               {told: []step{{gen: 5}, {gen: 6, skip: true}, {gen: 7}}, from: 4, to: 7, known: true},
		"skipped first":         {told: []step{{gen: 6, skip: true}, {gen: 7, ours: true}}, from: 6, to: 7, known: true, touched: 1},
		"told late":             {told: []step{{gen: 5}, {gen: 7, skip: true}, {gen: 6, ours: true}, {gen: 8}}, from: 7, to: 8, known: true},
		"around the end of all": {told: []step{{gen: ^uint32(0)}, {gen: 1}, {gen: 2, ours: true}}, from: 1, to: 2, known: true, touched: 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWatch(nil)
			for _, s := range tt.told {
				if s.skip {
					w.skip(s.gen)
				} else {
					w.commit(touch{gen: s.gen}, s.ours, true)
				}
			}
			list, known := w.between(tt.from, tt.to)
			if known != tt.known || len(list) != tt.touched {
				t.Errorf("known %t, %d touched us; want %t, %d", known, len(list), tt.known, tt.touched)
			}
		})
	}
}

// TestWatchEnds: without traffic the reader ends when the watch is closed.
func TestWatchEnds(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := newSpace(t)
	var w *watch
	var err error
	s.do(func() { w, err = openWatch() })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { w.read(); close(ended) }()
	w.close()
	<-ended
	if _, known := w.between(1, 2); known {
		t.Error("a closed watch knows everything")
	}
}
