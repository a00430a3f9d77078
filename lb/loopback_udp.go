package lb

import (
	"errors"
	"net"
	"sync"
	"time"
)

const (
	udpIdle     = 60 * time.Second
	maxUDPFlows = 1024 // a port; more clients than that are not answered
)

// udpSession is a client's own socket to the target. It ends with the process:
// the client's next datagram makes another one.
type udpSession struct{ net.Conn }

func (s udpSession) halt() { s.Close() }

// serveUDP keeps one socket a client, which its answers come back by.
func (l *loopback) serveUDP(f *forwarder, pc net.PacketConn) {
	var mu sync.Mutex
	flows := make(map[string]net.Conn)
	buf := make([]byte, 65535)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // ICMP errors of earlier answers
		}
		mu.Lock()
		up, full := flows[from.String()], len(flows) >= maxUDPFlows
		mu.Unlock()
		if up == nil {
			if full {
				continue
			}
			if up, err = l.io.Dial(f.ctx, network("udp", f.target.Addr()), f.target.String()); err != nil {
				continue
			}
			flow := udpSession{up}
			if !f.hold(flow) {
				up.Close()
				return
			}
			mu.Lock()
			flows[from.String()] = up
			mu.Unlock()
			l.wg.Go(func() {
				answerUDP(pc, from, up)
				mu.Lock()
				delete(flows, from.String())
				mu.Unlock()
				f.drop(flow)
			})
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = up.Write(buf[:n]) // lost like any datagram
	}
}

// answerUDP returns answers to a client until the flow is idle or refused.
func answerUDP(pc net.PacketConn, to net.Addr, up net.Conn) {
	buf := make([]byte, 65535)
	for {
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		if _, err := pc.WriteTo(buf[:n], to); err != nil {
			return
		}
	}
}
