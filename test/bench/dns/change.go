package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns"
	"nodenet/state"
)

// change: one endpoint gets another address. The clock runs from the record's
// write in the store to the new answer at a client's socket: the view, the
// zone and the way over loopback are in it.
func (b *bench) change() error {
	first := 0.0
	for _, n := range []int{1000, 10000, 100000} {
		took, err := b.changes(n)
		if err != nil {
			return err
		}
		ms := median(took)
		if first == 0 {
			first = ms
		}
		b.add(fmt.Sprintf("one endpoint of %d changes, to the answer on the wire", n), fmt.Sprintf("%.2f ms", ms), "≤ 5 ms", ms/first, ms <= 5)
	}
	return nil
}

func (b *bench) changes(n int) (took []float64, err error) {
	self := state.NodeIDFromKey(make([]byte, 32))
	store, err := state.NewStore(state.Options{Self: self})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	endpoint := func(i int, a netip.Addr) state.Op {
		e := state.Endpoint{ID: fmt.Sprint("e", i), Namespace: fmt.Sprint("ns-", i%50), Name: fmt.Sprint("pod-", i), Network: "pods", Addrs: []netip.Addr{a}, Ready: true}
		return state.Put(state.Owner, state.KindEndpoint, e.ID, e)
	}
	ip := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err = store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) {
		ops := []state.Op{
			state.Put(state.Owner, state.KindNode, "self", state.Node{Name: "bench", Advertise: ip(1)}),
			state.Put(state.Owner, state.KindNetwork, "pods", state.Network{Name: "pods", Prefix: netip.MustParsePrefix("10.0.0.0/8")}),
		}
		for i := range n {
			ops = append(ops, endpoint(i, ip(i)))
		}
		return ops, nil
	})
	if err != nil {
		return nil, err
	}
	store.SetLiveness(map[state.NodeID]state.Live{self: {State: state.Alive, Serving: true}})
	port := b.port()
	c, err := config.Parse("bench", strings.NewReader(fmt.Sprintf(nodefile, port, "cache", 9)), config.Env{Hostname: "bench", LookupEnv: func(string) (string, bool) { return "", false }})
	if err != nil {
		return nil, err
	}
	s, err := dns.New(dns.Options{Servers: c.Servers})
	if err != nil {
		return nil, err
	}
	s.Set(store.Snapshot().View())
	s.SetAddrs([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})})
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	conn, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buf := make([]byte, 2048)
	// address asks for pod i.
	address := func(i int) (a netip.Addr, err error) {
		m := new(wire.Msg)
		m.SetQuestion(fmt.Sprintf("pod-%d.ns-%d.pod.cluster.local.", i, i%50), wire.TypeA)
		q, err := m.Pack()
		if err != nil {
			return a, err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write(q); err != nil {
			return a, nil // not open yet
		}
		k, err := conn.Read(buf)
		if err != nil || k < 12+len(q)-12+16 || binary.BigEndian.Uint16(buf[6:]) != 1 {
			return a, nil
		}
		a, _ = netip.AddrFromSlice(buf[len(q)+12 : len(q)+16])
		return a, nil
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if a, err := address(n - 1); err != nil {
			return nil, err
		} else if a == ip(n-1) {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d endpoints: no answer", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	runtime.GC()
	for k := range 40 {
		i := k * (n / 40)
		want := ip(1<<20 + k)
		begin := time.Now()
		if _, err := store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) { return []state.Op{endpoint(i, want)}, nil }); err != nil {
			return nil, err
		}
		v := store.Snapshot().View()
		viewed := time.Since(begin)
		s.Set(v)
		for {
			a, err := address(i)
			if err != nil {
				return nil, err
			}
			if a == want {
				break
			}
			if time.Since(begin) > 30*time.Second {
				return nil, fmt.Errorf("%d endpoints: the change does not show", n)
			}
		}
		all := time.Since(begin)
		took = append(took, float64(all)/float64(time.Millisecond))
		if k%10 == 0 {
			fmt.Fprintf(os.Stderr, "%d endpoints: view %.2f ms, zone and wire %.2f ms\n", n, ms(viewed), ms(all-viewed))
		}
		time.Sleep(5 * time.Millisecond)
	}
	return took, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
