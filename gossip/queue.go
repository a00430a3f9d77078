package gossip

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	queueFrames = 1024
	queueBytes  = 16 << 20
	// queueBulk bounds the frames of exchanges that wait: with so many left,
	// the replies of a further exchange are dropped as a whole.
	queueBulk = 64
	// pieceBytes is what must get through within a keepalive for a peer to
	// count as slow and not as stuck: also the size of a TLS record.
	pieceBytes = 16 << 10

	// What one peer may send for long. A healthy one stays far below; one that
	// does not is read more slowly, and TCP slows it down.
	frameRate  = 5000 // a second
	frameBurst = 5000
	byteRate   = 64 << 20 // a second
	byteBurst  = 16 << 20
)

// sendQueue holds what waits for a link's writer, in three classes:
//
//   - urgent: pings, answers to them, refusals. Nothing else delays a sign of life
//     by more than one frame.
//   - fresh: pushes, requests and answers, encoded. Bounded in frames and bytes.
//   - bulk: what an exchange sends, in its order. Frames are encoded when the
//     writer takes them, one at a time, so that a replacement of any size
//     costs little while it waits; the values belong to the store's snapshot.
//
// What does not fit is dropped: anti-entropy brings it later.
type sendQueue struct {
	urgent chan []byte
	fresh  chan []byte

	mu    sync.Mutex
	bytes int // of fresh
	bulk  []frame
	ready chan struct{} // bulk is no longer empty
}

func newSendQueue() sendQueue {
	return sendQueue{urgent: make(chan []byte, 64), fresh: make(chan []byte, queueFrames), ready: make(chan struct{}, 1)}
}

// put queues an encoded frame. It never blocks.
func (q *sendQueue) put(b []byte, urgent bool) error {
	c := q.fresh
	if urgent {
		c = q.urgent
	} else {
		q.mu.Lock()
		fits := q.bytes+len(b) <= queueBytes
		if fits {
			q.bytes += len(b)
		}
		q.mu.Unlock()
		if !fits {
			return errQueueFull
		}
	}
	select {
	case c <- b:
		return nil
	default:
		if !urgent {
			q.sent(b)
		}
		return errQueueFull
	}
}

// sent gives the room of a fresh frame back.
func (q *sendQueue) sent(b []byte) {
	q.mu.Lock()
	q.bytes -= len(b)
	q.mu.Unlock()
}

// putBulk queues the frames of one exchange, all or none. It never blocks.
func (q *sendQueue) putBulk(fs []frame) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.bulk) >= queueBulk {
		return errQueueFull
	}
	q.bulk = append(q.bulk, fs...)
	if len(q.bulk) > 0 {
		wake(q.ready)
	}
	return nil
}

// bulkWaits reports whether frames of an exchange wait.
func (q *sendQueue) bulkWaits() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.bulk) > 0
}

// takeBulk returns the next frame of an exchange, or nil.
func (q *sendQueue) takeBulk() frame {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.bulk) == 0 {
		return nil
	}
	f := q.bulk[0]
	q.bulk[0] = nil
	if q.bulk = q.bulk[1:]; len(q.bulk) == 0 {
		q.bulk = nil // let the array go
	}
	return f
}

// pieceWriter gives each piece of a frame a deadline of its own.
type pieceWriter struct {
	conn net.Conn
	w    *bufio.Writer
	each time.Duration
}

func newPieceWriter(c net.Conn, each time.Duration) *pieceWriter {
	return &pieceWriter{c, bufio.NewWriterSize(c, pieceBytes), each}
}

func (p *pieceWriter) write(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), pieceBytes)
		p.conn.SetWriteDeadline(time.Now().Add(p.each))
		if _, err := p.w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (p *pieceWriter) flush() error {
	p.conn.SetWriteDeadline(time.Now().Add(p.each))
	return p.w.Flush()
}

// progressReader gives each read a deadline of its own and notes that the
// peer is there: a large frame over a slow path is no silence.
type progressReader struct {
	conn  net.Conn
	each  time.Duration
	heard func()
}

func (p *progressReader) Read(b []byte) (int, error) {
	p.conn.SetReadDeadline(time.Now().Add(p.each))
	n, err := p.conn.Read(b)
	if n > 0 {
		p.heard()
	}
	return n, err
}

var _ io.Reader = (*progressReader)(nil)

// throttle slows down what one peer sends.
type throttle struct {
	frames, bytes *rate.Limiter
}

func newThrottle() throttle {
	return throttle{rate.NewLimiter(frameRate, frameBurst), rate.NewLimiter(byteRate, byteBurst)}
}

// wait returns when a frame of n bytes may be handled, and whether it had to wait.
func (t *throttle) wait(ctx context.Context, closed <-chan struct{}, n int) bool {
	now := time.Now()
	d := max(t.frames.ReserveN(now, 1).DelayFrom(now), t.bytes.ReserveN(now, n).DelayFrom(now))
	if d <= 0 {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-closed:
	case <-ctx.Done():
	}
	return true
}
