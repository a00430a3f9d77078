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

const linkBuffer = 16 << 10 // each way: a TLS record's worth

var (
	errQueueFull = errors.New("send queue is full: the peer is too slow")
	errReplaced  = errors.New("replaced by a newer connection")
	errSilent    = errors.New("peer fell silent")
)

// link is one verified connection to a peer. One goroutine reads and handles,
// one writes: a slow peer fills only its own queue, see sendQueue.
type link struct {
	g        *Gossip
	conn     secureConn
	peer     state.NodeID
	name     string
	hello    *hello // the peer's
	addr     string // dialed or seen
	outbound bool
	opened   time.Time

	queue sendQueue
	limit throttle
	in    atomic.Uint64
	sent  atomic.Uint64
	heard atomic.Int64 // time.Time of the last frame, as monotonic offset from opened
	rtt   atomic.Int64
	sess  session   // the reader's own
	asked time.Time // likewise: when a gap in a push led to an exchange
	proof proofOf   // keyLoop's own
	given exchanges
	clock peerClock

	box     outbox
	load    int           // the writer's own: changes in the last push
	offered chan struct{} // signalled when there is something in the box

	pingMu sync.Mutex
	pingID uint64
	pingAt time.Time
	ponged uint64        // the highest that was answered
	waking chan struct{} // closed and replaced at each answer

	callMu sync.Mutex
	callID uint64
	calls  map[uint64]chan *response

	serving atomic.Int32 // calls of the peer's that run here

	closed chan struct{}
	once   sync.Once
	err    error // why; read after closed
}

func (g *Gossip) newLink(conn secureConn, peer state.NodeID, h *hello, addr string, outbound bool) *link {
	return &link{
		g: g, conn: conn, peer: peer, name: or(h.Name, peer.Short()), hello: h, addr: addr, outbound: outbound, opened: time.Now(),
		queue: newSendQueue(), limit: newThrottle(), waking: make(chan struct{}),
		calls: map[uint64]chan *response{}, closed: make(chan struct{}), offered: make(chan struct{}, 1), sess: session{peer: peer},
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
	switch f.(type) {
	case *ping, *pong, *refuse:
		err = l.queue.put(b, true)
	default:
		err = l.queue.put(b, false)
	}
	if err != nil {
		l.g.met.dropped.Inc()
		return err
	}
	l.g.met.out[f.kind()].Inc()
	return nil
}

// reply queues the frames of an exchange, all or none. It never blocks.
func (l *link) reply(fs []frame) error {
	if err := l.queue.putBulk(fs); err != nil {
		l.g.met.dropped.Add(float64(len(fs)))
		return err
	}
	for _, f := range fs {
		if _, ok := f.(*root); ok {
			l.given.asked()
		}
	}
	return nil
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
	w := newPieceWriter(l.conn, l.g.t.keepalive)
	tick := time.NewTicker(l.g.t.ping)
	defer tick.Stop()
	put := func(b []byte) error {
		l.sent.Add(uint64(len(b)))
		l.g.met.bytesOut.Add(float64(len(b)))
		return w.write(b)
	}
	alive := func() bool {
		if time.Since(l.opened)-time.Duration(l.heard.Load()) > l.g.t.keepalive {
			l.close(errSilent)
			return false
		}
		l.ping()
		return true
	}
	hold := time.NewTimer(time.Hour)
	hold.Stop()
	defer hold.Stop()
	var pushed time.Time
	l.ping()
	for {
		busy, err := l.writeSome(put)
		if err == nil && !busy {
			err = w.flush()
		}
		if err != nil {
			l.close(fmt.Errorf("send: %w", err))
			return
		}
		var b []byte
		if busy {
			select {
			case <-ctx.Done():
				l.close(nil)
				return
			case <-l.closed:
				return
			case <-tick.C:
				if !alive() {
					return
				}
			case <-l.offered:
				hold.Reset(l.pushing(pushed))
			case <-hold.C:
				pushed = time.Now()
				b = l.pushed()
			default:
			}
			if b == nil {
				continue
			}
			if err := put(b); err != nil {
				l.close(fmt.Errorf("send: %w", err))
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			l.close(nil)
			return
		case <-l.closed:
			return
		case <-tick.C:
			if !alive() {
				return
			}
		case <-l.offered:
			hold.Reset(l.pushing(pushed))
		case <-hold.C:
			pushed = time.Now()
			b = l.pushed()
		case b = <-l.queue.urgent:
		case b = <-l.queue.fresh:
			l.queue.sent(b)
		case <-l.queue.ready:
		}
		if b != nil {
			if err := put(b); err != nil {
				l.close(fmt.Errorf("send: %w", err))
				return
			}
		}
	}
}

// writeSome writes what is urgent, some of what is fresh and one frame of an
// exchange, so that neither keeps the others waiting. It reports whether there
// was anything.
func (l *link) writeSome(put func([]byte) error) (busy bool, err error) {
	for range queueBulk {
		var b []byte
		select {
		case b = <-l.queue.urgent:
		default:
			select {
			case b = <-l.queue.fresh:
				l.queue.sent(b)
			default:
			}
		}
		if b == nil {
			break
		}
		busy = true
		if err := put(b); err != nil {
			return busy, err
		}
	}
	f := l.queue.takeBulk()
	if f == nil {
		return busy, nil
	}
	b, err := encodeFrame(f)
	if err != nil {
		return true, err
	}
	l.g.met.out[f.kind()].Inc()
	return true, put(b)
}

// ping asks for a sign of life and returns the question's number.
func (l *link) ping() uint64 {
	l.pingMu.Lock()
	l.pingID++
	id := l.pingID
	l.pingAt = time.Now()
	l.pingMu.Unlock()
	l.send(&ping{ID: id})
	return id
}

func (l *link) pong(f *pong) {
	now := time.Now()
	l.pingMu.Lock()
	at, ok := l.pingAt, f.ID == l.pingID
	if f.ID > l.ponged && f.ID <= l.pingID {
		l.ponged = f.ID
		close(l.waking)
		l.waking = make(chan struct{})
	}
	l.pingMu.Unlock()
	if !ok {
		return
	}
	// Smoothed like TCP's (RFC 6298): one late answer is not a slow network.
	d := now.Sub(at)
	l.clock.sample(d, f.Time, l.g.now())
	if old := time.Duration(l.rtt.Load()); old > 0 {
		d = old + (d-old)/8
	}
	l.rtt.Store(int64(d))
}

// answers asks the peer for a sign of life and reports whether one came while
// ctx lasts.
func (l *link) answers(ctx context.Context) bool {
	id := l.ping()
	for {
		l.pingMu.Lock()
		there, again := l.ponged >= id, l.waking
		l.pingMu.Unlock()
		if there {
			return true
		}
		select {
		case <-again:
		case <-l.closed:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (l *link) read(ctx context.Context) error {
	pr := &progressReader{l.conn, l.g.t.keepalive, func() { l.heard.Store(int64(time.Since(l.opened))) }}
	r := bufio.NewReaderSize(pr, linkBuffer)
	for {
		k, body, n, err := readBody(r, MaxFrame)
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
		l.g.met.bytesIn.Add(float64(n))
		if l.limit.wait(ctx, l.closed, n) {
			l.g.met.throttled.Inc()
		}
		var f frame
		if k == kindPush {
			f, err = l.novel(body)
		} else {
			f, err = decodeFrame(k, body)
		}
		if err != nil {
			return err
		}
		if c := l.g.met.in[k]; c != nil {
			c.Inc()
		}
		if f == nil {
			continue // from a newer version, or nothing new
		}
		if err := l.handle(ctx, f); err != nil {
			return err
		}
	}
}

func (l *link) handle(ctx context.Context, f frame) error {
	switch f := f.(type) {
	case *ping:
		l.send(&pong{ID: f.ID, Time: l.g.now().UnixMicro()})
	case *pong:
		l.pong(f)
	case *request:
		l.serve(ctx, f)
	case *response:
		l.answered(f)
	case *bye:
		l.g.log.Info("peer leaves the cluster", "peer", l.name, "node", l.peer)
	case *refuse:
		return l.g.heed(&RefusedError{Code: f.Code, Reason: printable(f.Reason)})
	case *root, *same, *digest, *deltas, *records, *done, *push, *bucket:
		l.replicate(f)
	}
	return nil
}

// replicate gives a frame to the protocol and does what comes out.
func (l *link) replicate(f frame) {
	g := l.g
	l.given.note(f, l.sess.more, g.self)
	o := g.rep.handle(&l.sess, f)
	if _, ok := f.(*push); ok && len(o.reply) > 0 && !l.mayAsk() {
		o.reply = nil
	}
	if err := l.reply(o.reply); err != nil && g.logRate.allow("send "+string(l.peer), g.now()) {
		// The exchange breaks off; the next one takes over from there.
		g.log.Warn("exchange cut short", "peer", l.name, "err", err)
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
	if o.fresh != nil {
		g.forward(o.fresh, l.peer)
	}
}

// startSync opens an exchange.
func (l *link) startSync() {
	if l.queue.bulkWaits() {
		return // one is under way, and takes its time
	}
	l.g.met.rounds.Inc()
	f := l.g.rep.start()
	if r, ok := f.(*root); ok {
		r.Whole = l.g.rep.extents.whole(l.g.now())
	}
	l.reply([]frame{f})
}

// heardAt returns when the last frame came.
func (l *link) heardAt() time.Time { return l.opened.Add(time.Duration(l.heard.Load())) }
