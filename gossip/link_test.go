package gossip

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nodenet/state"
)

func TestCall(t *testing.T) {
	l := newLab(t)
	release := make(chan struct{})
	handlers := map[string]Handler{
		"echo": func(_ context.Context, from state.NodeID, req []byte) ([]byte, error) {
			return fmt.Appendf(nil, "%s says %s", from, req), nil
		},
		"fail": func(context.Context, state.NodeID, []byte) ([]byte, error) {
			return nil, errors.New("no space left in pods")
		},
		"big": func(context.Context, state.NodeID, []byte) ([]byte, error) { return make([]byte, MaxFrame+1), nil },
		"wait": func(ctx context.Context, _ state.NodeID, _ []byte) ([]byte, error) {
			select {
			case <-release:
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
	secret := NewSecret()
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret, handlers: handlers})
	b := l.node("node2", nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{a.sync()}, handlers: handlers})
	<-b.Synced()
	a.announce(false)
	b.announce(false)
	l.equal(a, b)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()

	got, err := b.Call(ctx, a.id.ID, "echo", []byte("hello"))
	if want := fmt.Sprintf("%s says hello", b.id.ID); err != nil || string(got) != want {
		t.Errorf("echo: %q, %v: want %q", got, err, want)
	}
	if got, err := a.Call(ctx, a.id.ID, "echo", nil); err != nil || !strings.Contains(string(got), string(a.id.ID)) {
		t.Errorf("to itself: %q, %v", got, err)
	}
	var re *RemoteError
	if _, err := a.Call(ctx, b.id.ID, "fail", nil); !errors.As(err, &re) || re.Message != "no space left in pods" || re.Node != b.id.ID {
		t.Errorf("fail: %v", err)
	}
	if _, err := a.Call(ctx, b.id.ID, "nope", nil); !errors.As(err, &re) || !strings.Contains(re.Message, "no such method") {
		t.Errorf("unknown method: %v", err)
	}
	if _, err := a.Call(ctx, b.id.ID, "big", nil); !errors.As(err, &re) || !strings.Contains(re.Message, "too large") {
		t.Errorf("answer too large: %v", err)
	}
	if _, err := a.Call(ctx, b.id.ID, "echo", make([]byte, MaxFrame+1)); !errors.Is(err, errFrameSize) {
		t.Errorf("request too large: %v", err)
	}
	stranger := ids(t, 1)[0]
	if _, err := a.Call(ctx, stranger, "echo", nil); !errors.Is(err, ErrNoPeer) {
		t.Errorf("to nobody: %v", err)
	}

	// The pool is bounded and says so; the deadline travels.
	short, cancel2 := context.WithTimeout(ctx, 100*time.Millisecond)
	if _, err := a.Call(short, b.id.ID, "wait", nil); !errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &re) {
		t.Errorf("deadline: %v", err)
	}
	cancel2()
	eventually(t, "the handler ended with the caller's deadline", func() bool { return len(b.handlers) == 0 })
	results := make(chan error, peerHandlers)
	for range peerHandlers {
		go func() { _, err := a.Call(ctx, b.id.ID, "wait", nil); results <- err }()
	}
	eventually(t, "the pool is full", func() bool { return len(b.handlers) == peerHandlers })
	if _, err := a.Call(ctx, b.id.ID, "echo", nil); !errors.As(err, &re) || !strings.Contains(re.Message, "busy") {
		t.Errorf("full pool: %v", err)
	}
	close(release)
	for range peerHandlers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}

	// Without a link, Call makes one.
	a.link(b.id.ID).close(nil)
	if _, err := a.Call(ctx, b.id.ID, "echo", nil); err != nil {
		// The old connection may still have been the one that was chosen.
		eventually(t, "call after the link was lost", func() bool { _, err := a.Call(ctx, b.id.ID, "echo", nil); return err == nil })
	}
	b.stop()
	if _, err := a.Call(ctx, b.id.ID, "echo", nil); err == nil {
		t.Error("a stopped node answers")
	}
}

// A peer that does not read fills its own queue and nobody else's.
func TestSlowPeerBlocksNobody(t *testing.T) {
	l := newLab(t)
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: NewSecret()})
	c1, c2 := net.Pipe()
	defer c2.Close()
	lk := a.newLink(tls.Client(c1, &tls.Config{}), ids(t, 1)[0], &hello{}, "pipe", true)
	defer lk.close(nil)
	f := &request{Body: make([]byte, 1<<20)}
	n := 0
	for ; n < 100; n++ {
		if err := lk.send(f); err != nil {
			if !errors.Is(err, errQueueFull) {
				t.Fatal(err)
			}
			break
		}
	}
	if n == 0 || n*(1<<20) > queueBytes {
		t.Errorf("%d MiB queued, want up to %d bytes", n, queueBytes)
	}
}

// What a stranger can do: hold a few slots for a short time, and nothing else.
func TestStrangersAreBounded(t *testing.T) {
	l := newLab(t)
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: NewSecret(),
		edit: func(o *Options) { o.HandshakeTimeout = 300 * time.Millisecond }})
	var conns []net.Conn
	eventually(t, "the sync port is open", func() bool {
		c, err := net.Dial("tcp", a.sync())
		if err == nil {
			conns = append(conns, c)
		}
		return err == nil
	})
	for range 2 * perSource {
		c, err := net.Dial("tcp", a.sync())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(timeout))
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, net.ErrClosed) {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				t.Fatal("a silent connection is kept open")
			}
		}
		c.Close()
	}
	eventually(t, "all slots are free again", func() bool { return a.early.held() == 0 })

	// With a certificate of its own it gets one frame, a refusal.
	id, _ := NewIdentity()
	cert, err := certificate(id, id.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", a.sync(), tlsConfig(cert, alpnSync))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	writeFrame(c, &hello{Proto: 1, Node: id.ID})
	f, _, err := readFrame(c, maxEarly)
	if r, ok := f.(*refuse); err != nil || !ok || r.Code != codeSecret {
		t.Fatalf("a stranger reads %v, %v", f, err)
	}
	if rest, err := io.ReadAll(c); len(rest) != 0 {
		t.Errorf("after the refusal came %d bytes, %v", len(rest), err)
	}
	// Garbage in clear text gets nothing at all.
	raw, err := net.Dial("tcp", a.sync())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.Write(bytes.Repeat([]byte("x"), 1000))
	raw.SetDeadline(time.Now().Add(timeout))
	io.ReadAll(raw)
}

func TestMetricNames(t *testing.T) {
	l := newLab(t)
	reg := prometheus.NewPedanticRegistry()
	ns := l.cluster(2, func(o *Options) {
		if o.Name == "node1" {
			o.Registry = reg
		}
	})
	l.equal(ns...)
	ns[0].Call(context.Background(), ns[1].id.ID, "nope", nil)
	ns[0].met.refused.WithLabelValues(codeBusy).Inc()
	fams, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range fams {
		got = append(got, strings.TrimPrefix(f.GetName(), "nodenet_gossip_"))
	}
	want := []string{"bytes_total", "calls_total", "dial_errors_total", "forged_total", "frames_dropped_total", "frames_throttled_total", "frames_total", "frozen", "links",
		"peers", "push_copies_total", "pushes_total", "records_applied_total", "records_rejected_total", "refused_total", "rtt_seconds", "sync_rounds_total"}
	if !slices.Equal(got, want) {
		t.Errorf("metrics %q\nwant %q", got, want)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := New(Options{Secret: []byte("short")})
	for _, want := range []string{"identity and store", "5 bytes: want 32", "nodectl init", "advertise"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestHostPort(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:7947", "192.0.2.1:99": "192.0.2.1:99", "2001:db8::1": "[2001:db8::1]:7947",
		"[2001:db8::1]:99": "[2001:db8::1]:99", "node1.example": "node1.example:7947", "node1.example:99": "node1.example:99",
	} {
		if got := hostPort(in, DefaultSyncPort); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
