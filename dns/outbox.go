package dns

import (
	"net"
	"sync"

	"nodenet/dns/batch"
)

// outbox is the sending side of a socket that several goroutines share. What
// they put into it goes out together, with one system call, when one of them
// flushes it.
type outbox struct {
	conn *net.UDPConn
	mu   sync.Mutex
	w    *batch.Writer
}

func newOutbox(c *net.UDPConn, n, size int) (*outbox, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &outbox{conn: c, w: batch.NewWriter(raw, n, size)}, nil
}

// send queues a datagram for the peer of a connected socket.
func (o *outbox) send(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	if o.w.Full() {
		err = o.w.Flush()
	}
	o.w.Send(copy(o.w.Room(), b))
	return err
}

// reply lets write fill in a datagram for a client; 0: there is none.
func (o *outbox) reply(to *batch.Peer, write func(room []byte) int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w.Full() {
		_ = o.w.Flush() // a client that cannot be reached is no error of ours
	}
	n := write(o.w.Room())
	if n > 0 {
		o.w.To(to, n)
	}
	return n > 0
}

// flush sends what is queued, by whomever.
func (o *outbox) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w.Len() == 0 {
		return nil
	}
	return o.w.Flush()
}
