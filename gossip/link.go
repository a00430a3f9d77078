package gossip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"nodenet/state"
)

const (
	queueFrames = 1024
	queueBytes  = 16 << 20
	linkBuffer  = 16 << 10 // each way: a TLS record's worth
)

var (
	errQueueFull = errors.New("send queue is full: the peer is too slow")
	errReplaced  = errors.New("replaced by a newer connection")
	errSilent    = errors.New("peer fell silent")
)

// link is one verified connection to a peer. One goroutine reads and handles,
// one writes: a slow peer fills only its own queue, and what does not fit is
// dropped, because anti-entropy brings it later.
type link struct {
	g        *Gossip
	conn     secureConn
	peer     state.NodeID
	name     string
	hello    *hello // the peer's
	addr     string // dialed or seen
	outbound bool
	opened   time.Time

	out    chan []byte
	queued atomic.Int64
	in     atomic.Uint64
	sent   atomic.Uint64
	heard  atomic.Int64 // time.Time of the last frame, as monotonic offset from opened
	equal  atomic.Int64 // likewise: when both sides were last seen equal
	rtt    atomic.Int64
	sess   session   // the reader's own
	asked  time.Time // likewise: when a gap in a push led to an exchange

	box     outbox
	offered chan struct{} // signalled when there is something in the box

	pingMu sync.Mutex
	pingID uint64
	pingAt time.Time

	callMu sync.Mutex
	callID uint64
	calls  map[uint64]chan *response

	closed chan struct{}
	once   sync.Once
	err    error // why; read after closed
}

func (g *Gossip) newLink(conn secureConn, peer state.NodeID, h *hello, addr string, outbound bool) *link {
	return &link{
		g: g, conn: conn, peer: peer, name: or(h.Name, peer.Short()), hello: h, addr: addr, outbound: outbound, opened: time.Now(),
		out: make(chan []byte, queueFrames), offered: make(chan struct{}, 1), calls: map[uint64]chan *response{}, closed: make(chan struct{}),
		sess: session{peer: peer},
	}
}

// close ends the link; the first reason counts.
func (l *link) close(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.closed)
		// The TLS layer says goodbye, for which it would wait seconds when
		// the peer does not read.
		t := time.AfterFunc(200*time.Millisecond, func() { l.conn.NetConn().Close() })
		l.conn.Close()
		t.Stop()
	})
}

// send queues a frame. It never blocks.
func (l *link) send(f frame) error {
	b, err := encodeFrame(f)
	if err != nil {
		return err
	}
	if l.queued.Add(int64(len(b))) > queueBytes {
		l.queued.Add(-int64(len(b)))
		l.g.met.dropped.Inc()
		return errQueueFull
	}
	select {
	case l.out <- b:
		l.g.met.frames.WithLabelValues("out", f.kind().String()).Inc()
		return nil
	default:
		l.queued.Add(-int64(len(b)))
		l.g.met.dropped.Inc()
		return errQueueFull
	}
}

// run serves the link until it ends and returns why.
func (l *link) run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		l.write(ctx)
	}()
	l.close(l.read(ctx))
	wg.Wait()
	l.callMu.Lock()
	for id, c := range l.calls {
		close(c)
		delete(l.calls, id)
	}
	l.callMu.Unlock()
	return l.err
}

func (l *link) write(ctx context.Context) {
	w := bufio.NewWriterSize(l.conn, linkBuffer)
	tick := time.NewTicker(l.g.t.ping)
	defer tick.Stop()
	put := func(b []byte) error {
		l.conn.SetWriteDeadline(time.Now().Add(l.g.t.keepalive))
		_, err := w.Write(b)
		l.sent.Add(uint64(len(b)))
		l.g.met.bytes.WithLabelValues("out").Add(float64(len(b)))
		return err
	}
	hold := time.NewTimer(time.Hour)
	hold.Stop()
	defer hold.Stop()
	var pushed time.Time
	l.ping()
	for {
		select {
		case <-l.offered:
			hold.Reset(l.pushing(pushed))
		case <-hold.C:
			pushed = time.Now()
			if b := l.pushed(); b != nil {
				err := put(b)
				if err == nil {
					err = w.Flush()
				}
				if err != nil {
					l.close(fmt.Errorf("send: %w", err))
					return
				}
			}
		case <-ctx.Done():
			l.close(nil)
			return
		case <-l.closed:
			return
		case <-tick.C:
			if time.Since(l.opened)-time.Duration(l.heard.Load()) > l.g.t.keepalive {
				l.close(errSilent)
				return
			}
			l.ping()
		case b := <-l.out:
			err := put(b)
			l.queued.Add(-int64(len(b)))
			for more := true; more && err == nil; {
				select {
				case b := <-l.out:
					err = put(b)
					l.queued.Add(-int64(len(b)))
				default:
					more = false
				}
			}
			if err == nil {
				l.conn.SetWriteDeadline(time.Now().Add(l.g.t.keepalive))
				err = w.Flush()
			}
			if err != nil {
				l.close(fmt.Errorf("send: %w", err))
				return
			}
		}
	}
}

func (l *link) ping() {
	l.pingMu.Lock()
	l.pingID++
	id := l.pingID
	l.pingAt = time.Now()
	l.pingMu.Unlock()
	l.send(&ping{ID: id})
}

func (l *link) pong(id uint64) {
	l.pingMu.Lock()
	at, ok := l.pingAt, id == l.pingID
	l.pingMu.Unlock()
	if !ok {
		return
	}
	// Smoothed like TCP's (RFC 6298): one late answer is not a slow network.
	d := time.Since(at)
	if old := time.Duration(l.rtt.Load()); old > 0 {
		d = old + (d-old)/8
	}
	l.rtt.Store(int64(d))
}

func (l *link) read(ctx context.Context) error {
	r := bufio.NewReaderSize(l.conn, linkBuffer)
	for {
		l.conn.SetReadDeadline(time.Now().Add(l.g.t.keepalive))
		f, n, err := readFrame(r, MaxFrame)
		if err != nil {
			select {
			case <-l.closed:
				return nil
			default:
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				return errSilent
			}
			return err
		}
		l.in.Add(uint64(n))
		l.heard.Store(int64(time.Since(l.opened)))
		l.g.met.bytes.WithLabelValues("in").Add(float64(n))
		if f == nil {
			continue // from a newer version
		}
		l.g.met.frames.WithLabelValues("in", f.kind().String()).Inc()
		if err := l.handle(ctx, f); err != nil {
			return err
		}
	}
}

func (l *link) handle(ctx context.Context, f frame) error {
	switch f := f.(type) {
	case *ping:
		l.send(&pong{ID: f.ID})
	case *pong:
		l.pong(f.ID)
	case *request:
		l.serve(ctx, f)
	case *response:
		l.answered(f)
	case *bye:
		l.g.log.Info("peer leaves the cluster", "peer", l.name, "node", l.peer)
	case *refuse:
		return &RefusedError{Code: f.Code, Reason: printable(f.Reason)}
	case *root, *same, *digest, *deltas, *records, *done, *push:
		l.replicate(f)
	}
	return nil
}

// replicate gives a frame to the protocol and does what comes out.
func (l *link) replicate(f frame) {
	g := l.g
	if p, ok := f.(*push); ok {
		if p = l.novel(p); p == nil {
			return
		}
		f = p
	}
	o := g.rep.handle(&l.sess, f)
	if _, ok := f.(*push); ok && len(o.reply) > 0 && !l.mayAsk() {
		o.reply = nil
	}
	for _, r := range o.reply {
		if err := l.send(r); err != nil {
			// The exchange breaks off; the next one takes over from there.
			if g.logRate.allow("send "+string(l.peer), g.now()) {
				g.log.Warn("exchange cut short", "peer", l.name, "err", err)
			}
			break
		}
	}
	for _, err := range o.errs {
		g.met.rejected.Inc()
		if g.logRate.allow("merge "+err.Error(), g.now()) {
			g.log.Error("records of a peer refused", "peer", l.name, "err", err)
		}
	}
	g.met.forged.Add(float64(o.forged))
	if o.applied > 0 {
		g.met.applied.Add(float64(o.applied))
	}
	if o.synced {
		g.noteSync(l, o.proven)
	}
	if o.equal {
		l.equal.Store(int64(time.Since(l.opened)))
	}
	if o.fresh != nil {
		g.forward(o.fresh, l.peer)
	}
}

// startSync opens an exchange.
func (l *link) startSync() {
	l.g.met.rounds.Inc()
	l.send(l.g.rep.start())
}

// heardAt returns when the last frame came.
func (l *link) heardAt() time.Time { return l.opened.Add(time.Duration(l.heard.Load())) }
