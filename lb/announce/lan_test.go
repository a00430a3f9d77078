package announce

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"nodenet/state"
)

// lan is an Ethernet segment with its hosts. Frames arrive at once, at
// everybody on the same side of a cut.
type lan struct {
	t     *testing.T
	start time.Time
	mu    sync.Mutex
	wires []*lanWire
	side  map[MAC]int // of a cut
	log   []string    // "+0.1s MAC what addr"
}

func newLAN(t *testing.T) *lan { return &lan{t: t, start: time.Now(), side: map[MAC]int{}} }

// lanWire is a station's place on the LAN.
type lanWire struct {
	l      *lan
	mac    MAC
	frames chan Frame
	closed chan struct{}
	once   sync.Once
	groups []netip.Addr
}

func (l *lan) plug(mac MAC) *lanWire {
	w := &lanWire{l: l, mac: mac, frames: make(chan Frame, 1000), closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wires = append(l.wires, w)
	return w
}

func (w *lanWire) Send(f Frame) error {
	m, err := parse(&Frame{Proto: f.Proto, From: w.mac, Payload: f.Payload})
	if err != nil {
		w.l.t.Errorf("%s sends what nobody understands: %v", w.mac, err)
		return nil
	}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	what := "asks for"
	switch {
	case m.claimed() == m.addr && f.To[0]&1 != 0:
		what = "announces"
	case m.tell:
		what = "answers for"
	case !m.from.IsValid():
		what = "probes"
	}
	line := fmt.Sprintf("+%.1fs %s %s %s", time.Since(w.l.start).Seconds(), w.mac, what, m.addr)
	if n := len(w.l.log); n == 0 || w.l.log[n-1] != line { // both forms of an announcement are one
		w.l.log = append(w.l.log, line)
	}
	f.From = w.mac
	for _, to := range w.l.wires {
		if to != w && w.l.side[to.mac] == w.l.side[w.mac] && (f.To[0]&1 != 0 || f.To == to.mac) {
			select {
			case to.frames <- f:
			default:
				w.l.t.Error("a station does not read")
			}
		}
	}
	return nil
}

func (w *lanWire) Receive() (Frame, error) {
	select {
	case f := <-w.frames:
		return f, nil
	case <-w.closed:
		return Frame{}, os.ErrClosed
	}
}

func (w *lanWire) Listen(addrs []netip.Addr) error { w.groups = slices.Clone(addrs); return nil }

func (w *lanWire) Close() {
	w.once.Do(func() {
		close(w.closed)
		w.l.mu.Lock()
		defer w.l.mu.Unlock()
		w.l.wires = slices.DeleteFunc(w.l.wires, func(x *lanWire) bool { return x == w })
	})
}

// since returns what was said from a time on, and forgets it.
func (l *lan) said() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.log
	l.log = nil
	return out
}

// cut splits the LAN: these stations against the rest. Without any it heals.
func (l *lan) cut(macs ...MAC) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.side)
	for _, m := range macs {
		l.side[m] = 1
	}
}

// who asks for an address as a client at mac, and returns who answers.
func (l *lan) who(addr netip.Addr, mac MAC) []MAC {
	w := l.plug(mac)
	defer w.Close()
	client := asker4
	f := arp(1, mac, client, MAC{}, addr, broadcast)
	if addr.Is6() {
		f = nd(asker6, solicitedNode(addr), groupMAC(solicitedNode(addr)), typeSolicitation, 0, addr, optSource, mac)
	}
	if err := w.Send(f); err != nil {
		l.t.Error(err)
	}
	time.Sleep(10 * time.Millisecond) // of the bubble's clock
	var out []MAC
	for {
		select {
		case f := <-w.frames:
			if m, err := parse(&f); err == nil && m.tell && m.addr == addr && f.To == mac {
				out = append(out, m.mac)
			}
		default:
			return out
		}
	}
}

// lanHost is a node on the LAN: its System and its daemon.
type lanHost struct {
	l    *lan
	i    int
	kept *lanKeeper

	mu    sync.Mutex
	up    bool
	ready bool
	look  chan struct{}

	elector Elector
	speaker *Speaker
	stop    func()
}

func (l *lan) host(i int) *lanHost {
	h := &lanHost{l: l, i: i, up: true, ready: true, look: make(chan struct{}, 1)}
	h.kept = &lanKeeper{h: h}
	return h
}

func (h *lanHost) Links() ([]Link, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lan := Link{Index: 2, Name: "eth0", MAC: macN(h.i), Up: h.up, Local: own6}
	for _, x := range lansN(h.i) {
		lan.Addrs = append(lan.Addrs, x.Addr)
	}
	return []Link{lan}, nil
}

func (h *lanHost) Watch(context.Context) (<-chan struct{}, error) { return h.look, nil }
func (h *lanHost) Open(l Link) (Wire, error)                      { return h.l.plug(l.MAC), nil }
func (h *lanHost) Keeper() (Keeper, error)                        { return h.kept, nil }

func (h *lanHost) set(change func()) {
	h.mu.Lock()
	change()
	h.mu.Unlock()
	select {
	case h.look <- struct{}{}:
	default:
	}
}

// run starts the daemon with a view.
func (h *lanHost) run(v *state.View) {
	s, err := New(Options{System: h, Ready: func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.ready
	}})
	if err != nil {
		h.l.t.Fatal(err)
	}
	h.speaker, h.elector = s, Elector{}
	h.sees(v)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-done; err != nil {
			h.l.t.Error(err)
		}
		h.stop = func() {}
	}
}

func (h *lanHost) sees(v *state.View) { h.speaker.Set(h.elector.Elect(v), v.Rev) }

// state returns what the daemon says of an address.
func (h *lanHost) state(a netip.Addr) AddressStatus {
	for _, st := range h.speaker.Status().Addrs {
		if st.Addr == a {
			return st
		}
	}
	return AddressStatus{}
}

// lanKeeper is the host's kernel: it answers for a while without the daemon.
// With the daemon there, it leaves that to it: the test sees one answer.
type lanKeeper struct {
	h     *lanHost
	mu    sync.Mutex
	until map[netip.Addr]time.Time
	told  int
}

func (k *lanKeeper) calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.told
}

func (k *lanKeeper) answers(a netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Now().Before(k.until[a])
}

func (k *lanKeeper) Kept() ([]netip.Addr, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []netip.Addr
	for a, t := range k.until {
		if time.Now().Before(t) {
			out = append(out, a)
		}
	}
	return out, nil
}

func (k *lanKeeper) Keep(list []Station) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told++
	k.until = map[netip.Addr]time.Time{}
	for _, s := range list {
		for _, a := range s.Addrs {
			k.until[a] = time.Now().Add(keepTime)
		}
	}
	return nil
}

func (k *lanKeeper) Close() error { return nil }

// alone answers from now on as the kernel does while there is no daemon.
func (k *lanKeeper) alone() (stop func()) {
	w := k.h.l.plug(macN(k.h.i))
	go func() {
		for {
			f, err := w.Receive()
			if err != nil {
				return
			}
			m, err := parse(&f)
			if err != nil || m.tell || m.from == m.addr || !k.answers(m.addr) {
				continue
			}
			_ = w.Send(answer(&m, macN(k.h.i), own6)) // it reports its own trouble
		}
	}()
	return w.Close
}
