package faults

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// flow is one long-lived conversation by TCP or UDP: numbers that come back,
// five hundred a second. A TCP flow ends with its first error; of a UDP flow
// the numbers that did not come back are counted.
type flow struct {
	name string
	conn net.Conn
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex
	sent    uint64
	got     uint64
	gap     time.Duration // longest between two answers
	last    time.Time
	refused int // UDP: an ICMP error came back
	err     error
}

// flowSeen is what a flow had seen at one moment.
type flowSeen struct {
	sent, got uint64
	gap       time.Duration
	refused   int
	err       error
}

// echo answers on a TCP and a UDP port of a namespace until the test ends.
func echo(t *testing.T, netns string, port int) {
	t.Helper()
	var l net.Listener
	var pc net.PacketConn
	must(t, inNetns(netns, func() (err error) {
		if l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err == nil {
			pc, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		}
		return err
	}))
	t.Cleanup(func() { l.Close(); pc.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := pc.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				pc.WriteTo(b[:n], from)
			}
		}
	}()
}

// startFlow begins a conversation from a namespace with an address.
func startFlow(t *testing.T, name, netns, network, addr string) *flow {
	t.Helper()
	f := &flow{name: name, stop: make(chan struct{}), last: time.Now()}
	must(t, inNetns(netns, func() (err error) {
		f.conn, err = net.DialTimeout(network, addr, 3*time.Second)
		return err
	}))
	t.Cleanup(func() { f.conn.Close() })
	f.done.Add(2)
	go f.write()
	go f.read()
	return f
}

func (f *flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, udp := f.conn.(*net.UDPConn); udp {
		f.refused++
		return
	}
	if f.err == nil {
		f.err = err
	}
}

func (f *flow) write() {
	defer f.done.Done()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var b [8]byte
	for i := uint64(1); ; i++ {
		binary.BigEndian.PutUint64(b[:], i)
		if _, err := f.conn.Write(b[:]); err != nil {
			f.fail(err)
			if _, udp := f.conn.(*net.UDPConn); !udp {
				return
			}
		}
		f.mu.Lock()
		f.sent = i
		f.mu.Unlock()
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
	}
}

func (f *flow) read() {
	defer f.done.Done()
	var b [8]byte
	for {
		_, err := io.ReadFull(f.conn, b[:])
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, unix.ECONNREFUSED):
			f.fail(err)
			continue
		case err != nil:
			f.fail(err)
			return
		}
		f.mu.Lock()
		now := time.Now()
		f.got++
		f.gap, f.last = max(f.gap, now.Sub(f.last)), now
		f.mu.Unlock()
	}
}

// seen returns what happened since it was asked last.
func (f *flow) seen() flowSeen {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := flowSeen{f.sent, f.got, max(f.gap, time.Since(f.last)), f.refused, f.err}
	f.gap = 0
	return s
}

// finish ends the conversation once what is under way has come back.
func (f *flow) finish() flowSeen {
	close(f.stop)
	time.Sleep(100 * time.Millisecond) // what is under way comes back or is lost
	s := f.seen()
	f.conn.Close()
	f.done.Wait()
	return s
}
