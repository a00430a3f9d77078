package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/dns/batch"
)

const (
	loadSockets = 16
	loadWindow  = 8 // questions on the way, a socket
	lostAfter   = 200 * time.Millisecond
)

// flow is one client socket.
type flow struct {
	conn *net.UDPConn
	in   *batch.Reader
	out  *batch.Writer
	open int // on the way
	last time.Time
	sent []time.Time // by ID, of paced load
}

func flows(port, n, window int) (out []*flow, err error) {
	for range n {
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			return nil, err
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, err
		}
		f := &flow{conn: c, in: batch.NewReader(raw, window, 4096), out: batch.NewWriter(raw, window, 512), last: time.Now()}
		f.out.Singly() // as clients send
		out = append(out, f)
	}
	return out, nil
}

func closeAll(fs []*flow) {
	for _, f := range fs {
		f.conn.Close()
	}
}

// tally is what came back.
type tally struct {
	answers, records, nxdomain, failed, lost int
	took                                     time.Duration
}

func (t *tally) see(b []byte) {
	if len(b) < 12 || b[2]&0x80 == 0 {
		return
	}
	t.answers++
	switch rcode := b[3] & 0xF; {
	case rcode == 3:
		t.nxdomain++
	case rcode != 0:
		t.failed++
	case binary.BigEndian.Uint16(b[6:]) > 0:
		t.records++
	}
}

// check says whether the answers are those of a server that knows the names.
func (t *tally) check(w workload) error {
	if t.answers == 0 {
		return fmt.Errorf("no answer")
	}
	share := func(n int) float64 { return 100 * float64(n) / float64(t.answers) }
	if math.Abs(share(t.records)-float64(w.records)) > 8 || math.Abs(share(t.nxdomain)-float64(w.nxdomain)) > 8 || share(t.failed) > 0.1 {
		return fmt.Errorf("of %d answers %.1f %% have records, %.1f %% say NXDOMAIN, %.2f %% are errors; %d %%, %d %% and none were expected",
			t.answers, share(t.records), share(t.nxdomain), share(t.failed), w.records, w.nxdomain)
	}
	return nil
}

// saturate asks as fast as answers come. With limit it stops after that many
// questions.
func saturate(port int, w workload, from *int, d time.Duration, limit int) (tally, error) {
	var t tally
	fs, err := flows(port, loadSockets, loadWindow)
	if err != nil {
		return t, err
	}
	defer closeAll(fs)
	begin := time.Now()
	sent := 0
	for now := begin; now.Sub(begin) < d; now = time.Now() {
		idle := true
		for _, f := range fs {
			n, err := f.in.Poll()
			if err != nil {
				return t, err
			}
			idle = idle && n == 0
			for i := range n {
				t.see(f.in.Data(i))
			}
			f.open = max(0, f.open-n)
			if n > 0 {
				f.last = now
			} else if f.open > 0 && now.Sub(f.last) > lostAfter {
				t.lost += f.open
				f.open, f.last = 0, now
			}
			for ; f.open < loadWindow && (limit == 0 || sent < limit); f.open++ {
				p := w.packets[*from%len(w.packets)]
				*from++
				sent++
				room := f.out.Room()
				copy(room, p)
				binary.BigEndian.PutUint16(room, uint16(*from))
				f.out.Send(len(p))
			}
			if err := f.out.Flush(); err != nil {
				return t, err
			}
		}
		if limit > 0 && t.answers+t.lost >= limit {
			break
		}
		if idle { // the upstream may want this core
			unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
	t.took = time.Since(begin)
	return t, nil
}

// pace is what a steady rate of questions showed.
type pace struct {
	tally
	took []time.Duration // of each answer, sorted
	late []time.Duration // of each question, behind its plan, sorted
}

// at returns a quantile, in µs.
func at(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	return float64(d[min(len(d)-1, int(q*float64(len(d))))]) / float64(time.Microsecond)
}

// paced asks at a steady rate. It sleeps while there is nothing to do, so that
// the load does not take the time of what it measures.
func paced(port int, w workload, rate float64, d time.Duration) (p pace, err error) {
	t := &p.tally
	fs, err := flows(port, 4, 64)
	if err != nil {
		return p, err
	}
	defer closeAll(fs)
	var fds []unix.PollFd
	for _, f := range fs {
		f.sent = make([]time.Time, 1<<16)
		raw, err := f.conn.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}) })
		}
		if err != nil {
			return p, err
		}
	}
	gap := time.Duration(float64(time.Second) / rate)
	begin := time.Now()
	next := begin
	sent := 0
	for now := begin; now.Sub(begin) < d+50*time.Millisecond; now = time.Now() {
		for k := 0; k < 16 && !next.After(now) && now.Sub(begin) < d; k++ {
			f := fs[sent%len(fs)]
			id := uint16(sent / len(fs))
			q := w.packets[sent%len(w.packets)]
			room := f.out.Room()
			copy(room, q)
			binary.BigEndian.PutUint16(room, id)
			p.late = append(p.late, now.Sub(next))
			f.sent[id] = next // as planned: a late question counts as a slow answer
			f.out.Send(len(q))
			next = next.Add(gap)
			sent++
		}
		for _, f := range fs {
			if f.out.Len() == 0 {
				continue
			}
			if err := f.out.Flush(); err != nil {
				return p, err
			}
		}
		rest := max(0, time.Until(next))
		if now.Sub(begin) >= d {
			rest = time.Millisecond
		}
		timeout := unix.NsecToTimespec(int64(rest))
		if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && err != unix.EINTR {
			return p, fmt.Errorf("wait for answers: %w", err)
		}
		for i, f := range fs {
			if fds[i].Revents == 0 {
				continue
			}
			n, err := f.in.Poll()
			if err != nil {
				return p, err
			}
			seen := time.Now()
			for i := range n {
				b := f.in.Data(i)
				t.see(b)
				p.took = append(p.took, seen.Sub(f.sent[binary.BigEndian.Uint16(b)]))
			}
		}
	}
	t.took = time.Since(begin)
	t.lost = sent - t.answers
	slices.Sort(p.took)
	slices.Sort(p.late)
	return p, nil
}

// wait waits until the server answers anything.
func (s *server) wait() error {
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.port})
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 4096)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		// A refused port is one that is not open yet.
		c.Write([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05svc-1\x04ns-1\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"))
		if n, err := c.Read(b); err == nil && n >= 12 && b[3]&0xF != 2 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s does not answer on port %d", s.name, s.port)
}
