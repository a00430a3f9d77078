package gossip

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fxamacker/cbor/v2"

	"nodenet/state"
)

// stuckConn is a connection whose peer stops reading: with its buffers full, a
// write waits until hold is closed.
type stuckConn struct {
	net.Conn
	hold func() <-chan struct{} // nil: all goes through
	done chan struct{}
	once sync.Once
}

func (c *stuckConn) Write(b []byte) (int, error) {
	if h := c.hold(); h != nil {
		select {
		case <-h:
		case <-c.done:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(b)
}

func (c *stuckConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// A peer that does not read slows nobody else, and what waits for it is bounded.
func TestStuckPeer(t *testing.T) {
	oneThread(t)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var hold chan struct{}
		h := newHerd(t, herdOptions{nodes: 3, seed: 9, edit: func(o *Options) {
			if o.Name != "10.0.0.1" && o.Name != "10.0.0.3" {
				return
			}
			o.net.wrap = func(c net.Conn) net.Conn {
				if to := remoteIP(c).String(); to != "10.0.0.1" && to != "10.0.0.3" {
					return c
				}
				return &stuckConn{Conn: c, done: make(chan struct{}), hold: func() <-chan struct{} {
					mu.Lock()
					defer mu.Unlock()
					if hold == nil {
						return nil
					}
					return hold
				}}
			}
		}})
		defer h.close()
		h.lossy(0)
		if !h.meshed(10 * time.Second) {
			t.Fatal("no mesh")
		}
		time.Sleep(2 * time.Second)
		a, b, c := h.nodes[0], h.nodes[1], h.nodes[2]
		// Not by way of the third node either: it hears nothing at all.
		h.net.edit(func(path func(from, to netip.Addr) *simPath) { path(b.addr, c.addr).noTCP = true })
		mu.Lock()
		hold = make(chan struct{})
		mu.Unlock()
		stuck := a.g.link(c.id.ID)
		if stuck == nil {
			t.Fatal("no link to the node that is to be stuck")
		}
		const burst = 3000
		var mark state.Mark
		for range burst {
			mark = h.endpoint(a)
			time.Sleep(time.Millisecond)
			stuck.box.mu.Lock()
			waiting := len(stuck.box.owners) + len(stuck.box.ids)
			stuck.box.mu.Unlock()
			if waiting > pushLimit {
				t.Fatalf("%d changes wait for the stuck peer", waiting)
			}
		}
		stuck.queue.mu.Lock()
		k, n := len(stuck.queue.fresh)+len(stuck.queue.urgent)+len(stuck.queue.bulk), stuck.queue.bytes
		stuck.queue.mu.Unlock()
		if k > 16 || n > 1<<20 {
			t.Errorf("%d frames of %d bytes wait for the stuck peer", k, n)
		}
		time.Sleep(200 * time.Millisecond)
		if got := b.store.Snapshot().Head(a.id.ID).Mark; got != mark {
			t.Errorf("the other peer is at %v, want %v", got, mark)
		}
		if got := c.store.Snapshot().Head(a.id.ID).Mark; got == mark {
			t.Error("the stuck peer heard all of it: this test shows nothing")
		}
		mu.Lock()
		close(hold)
		hold = nil
		mu.Unlock()
		h.net.edit(func(path func(from, to netip.Addr) *simPath) { path(b.addr, c.addr).noTCP = false })
		for end := time.Now().Add(10 * time.Second); !h.equal(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not equal 10 s after the peer reads again")
			}
		}
	})
}

// What is written again before it leaves travels once; what the peer sends
// itself meanwhile does not travel at all; too much becomes a comparison.
func TestOutbox(t *testing.T) {
	s := newStore(t, state.Options{})
	defer s.Close()
	write(t, s, name("one"))
	from := s.Snapshot().Head(s.Self()).Mark
	offer := func(o *outbox) {
		o.put(&push{Deltas: []state.Delta{{Owner: s.Self(), From: from}}}, nil)
	}
	var o outbox
	for i := range 5 {
		write(t, s, name(fmt.Sprintf("two-%d", i)))
		offer(&o)
	}
	var enc encoded
	p, all := o.take(s.Snapshot(), &enc)
	if all || p == nil || len(p.Deltas) != 1 {
		t.Fatalf("took %+v, all %v", p, all)
	}
	var d state.Delta
	if err := frameDec.Unmarshal(p.Deltas[0], &d); err != nil || d.From != from || d.To != s.Snapshot().Head(s.Self()).Mark {
		t.Fatalf("took %+v, %v", d, err)
	}
	if p, all := o.take(s.Snapshot(), &enc); p != nil || all {
		t.Errorf("took %+v, all %v out of an empty box", p, all)
	}
	offer(&o)
	o.seen([]place{{Owner: s.Self(), To: s.Snapshot().Head(s.Self()).Mark}}, nil, s.Snapshot())
	if p, all := o.take(s.Snapshot(), &enc); p != nil || all {
		t.Errorf("took %+v, all %v, which the peer has itself", p, all)
	}
	for _, id := range ids(t, pushLimit+1) {
		o.put(&push{Deltas: []state.Delta{{Owner: id}}}, nil)
	}
	if p, all := o.take(s.Snapshot(), &enc); p != nil || !all {
		t.Errorf("took %+v, all %v of more than fits", p, all)
	}
}

// What is sent on several links is encoded once, and is what encoding the
// delta anew would give, also after the history went on or was collected.
func TestEncodedDeltas(t *testing.T) {
	s := newStore(t, state.Options{})
	defer s.Close()
	var enc encoded
	check := func(from state.Mark, want bool) []byte {
		t.Helper()
		sn := s.Snapshot()
		got, ok := enc.delta(sn, s.Self(), from)
		if ok != want {
			t.Fatalf("a delta: %v, want %v", ok, want)
		}
		if !ok {
			return nil
		}
		one, err := encodeFrame(&push{Deltas: []state.Delta{sn.Delta(s.Self(), from, 0)}, Sent: []state.NodeID{s.Self()}})
		if err != nil {
			t.Fatal(err)
		}
		two, err := encodeFrame(&wirePush{Deltas: []cbor.RawMessage{got.raw}, Sent: []state.NodeID{s.Self()}})
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%v: a push as\n%x\nwant\n%x", err, two, one)
		}
		return got.raw
	}
	var zero state.Mark
	write(t, s, name("one"))
	first := check(zero, true)
	if again := check(zero, true); &again[0] != &first[0] {
		t.Error("encoded twice")
	}
	at := s.Snapshot().Head(s.Self()).Mark
	write(t, s, name("two"))
	check(zero, true)
	check(at, true)
	write(t, s, state.Del(state.Owner, state.KindName, "two A"))
	check(at, true)
	if _, err := s.Collect(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	check(at, false)
	for i := range 2 * encodedBytes / 1000 {
		at := s.Snapshot().Head(s.Self()).Mark
		write(t, s, name(strings.Repeat("x", 400)+fmt.Sprint(i)))
		check(at, true)
		if enc.bytes > encodedBytes+1000 {
			t.Fatalf("%d bytes kept", enc.bytes)
		}
	}
}
