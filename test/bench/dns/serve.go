package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"

	wire "github.com/miekg/dns"
	"golang.org/x/net/ipv4"

	"nodenet/config"
	"nodenet/dns"
	"nodenet/dns/batch"
)

// serveAs is the main function of the servers that are written in Go.
func serveAs(what string, port, up int) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	switch what {
	case "nodenet":
		return serveNodenet(ctx, port, up)
	case "echo":
		return serveBatched(port, func(q, out []byte) int {
			n := copy(out, q)
			out[2] |= 0x80
			return n
		})
	case "x/net-echo":
		return serveXNet(port)
	case "upstream":
		return serveBatched(port, addressForAll)
	case "naive":
		return serveNaive(port)
	}
	return fmt.Errorf("-serve %s: no such server", what)
}

// nodefile is the default server block, with rotation, cache and metrics; the
// upstream is one for all names outside.
const nodefile = `.:%d {
	errors
	cluster cluster.local in-addr.arpa ip6.arpa {
		pods insecure
		fallthrough in-addr.arpa ip6.arpa
	}
	hosts /etc/hosts {
		fallthrough
	}
	%s
	forward . 127.0.0.1:%d
	loadbalance
}
`

func serveNodenet(ctx context.Context, port, up int) error {
	cache := "cache 3600"
	if os.Getenv("NODENET_BENCH_NOCACHE") != "" {
		cache = ""
	}
	if up == 0 {
		up = 9
	}
	if file := os.Getenv("NODENET_BENCH_PROFILE"); file != "" {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	env := config.Env{Hostname: "bench", LookupEnv: func(string) (string, bool) { return "", false }}
	c, err := config.Parse("bench", strings.NewReader(fmt.Sprintf(nodefile, port, cache, up)), env)
	if err != nil {
		return err
	}
	s, err := dns.New(dns.Options{Servers: c.Servers})
	if err != nil {
		return err
	}
	s.Set(clusterView())
	s.SetAddrs([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})})
	return s.Run(ctx)
}

// serveBatched is as little as a server can do: it reads and writes batches.
func serveBatched(port int, answer func(q, out []byte) int) error {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	in, out := batch.NewReader(raw, 64, 4096), batch.NewWriter(raw, 64, 4096)
	for {
		n, err := in.Read()
		if err != nil {
			return err
		}
		for i := range n {
			if size := answer(in.Data(i), out.Room()); size > 0 {
				out.Reply(in, i, size)
			}
		}
		// A client that is gone is no error.
		_ = out.Flush()
	}
}

// serveXNet is the same echo on golang.org/x/net, which parses and allocates an
// address for each datagram.
func serveXNet(port int) error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return err
	}
	pc := ipv4.NewPacketConn(c)
	msgs := make([]ipv4.Message, 64)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{make([]byte, 4096)}
	}
	for {
		n, err := pc.ReadBatch(msgs, 0)
		if err != nil {
			return err
		}
		for i := range msgs[:n] {
			b := msgs[i].Buffers[0]
			msgs[i].Buffers[0] = b[:msgs[i].N]
			b[2] |= 0x80
		}
		for rest := msgs[:n]; len(rest) > 0; {
			k, err := pc.WriteBatch(rest, 0)
			if err != nil {
				k = 1 // a client that is gone
			}
			rest = rest[k:]
		}
		for i := range msgs[:n] {
			msgs[i].Buffers[0] = msgs[i].Buffers[0][:4096]
		}
	}
}

// addressForAll answers every question with 192.0.2.1 for an hour.
func addressForAll(q, out []byte) int {
	end := bytes.IndexByte(q[12:], 0)
	if end < 0 || len(q) < 12+end+5 {
		return 0
	}
	n := copy(out, q[:12+end+5])
	copy(out[2:], []byte{0x84 | q[2]&1, 0x80, 0, 1, 0, 1, 0, 0, 0, 0})
	return n + copy(out[n:], "\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xc0\x00\x02\x01")
}

// serveNaive is the usual shape of a name server in Go: miekg/dns with its
// goroutine a packet, a map, and a message packed for each answer.
func serveNaive(port int) error {
	type key struct {
		name  string
		qtype uint16
	}
	records := make(map[key][]wire.RR)
	exists := make(map[string]bool)
	for _, r := range clusterRecords() {
		rr, err := wire.NewRR(fmt.Sprintf("%s %d IN %s %s", r.owner, ttl, r.rrType, r.data))
		if err != nil {
			return err
		}
		k := key{r.owner, rr.Header().Rrtype}
		records[k] = append(records[k], rr)
		exists[r.owner] = true
	}
	soa, err := wire.NewRR(zone + " 5 IN SOA ns.dns." + zone + " hostmaster." + zone + " 1 7200 1800 86400 5")
	if err != nil {
		return err
	}
	h := wire.HandlerFunc(func(w wire.ResponseWriter, req *wire.Msg) {
		m := new(wire.Msg)
		m.SetReply(req)
		m.Authoritative, m.Compress = true, true
		if o := req.IsEdns0(); o != nil {
			m.SetEdns0(1232, o.Do())
		}
		name := strings.ToLower(req.Question[0].Name)
		if m.Answer = records[key{name, req.Question[0].Qtype}]; len(m.Answer) == 0 {
			m.Ns = []wire.RR{soa}
			if !exists[name] {
				m.Rcode = wire.RcodeNameError
			}
		}
		// A client that is gone is no error.
		_ = w.WriteMsg(m)
	})
	return (&wire.Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Net: "udp", Handler: h}).ListenAndServe()
}
