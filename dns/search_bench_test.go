package dns

import (
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// BenchmarkSearch is what getaddrinfo(3) of a name with ndots:5 costs a server,
// without the sockets: all questions of the walk, until one has an address.
func BenchmarkSearch(b *testing.B) {
	up := newUpstream(b, func(r *wire.Msg, _ bool) bool {
		rr, err := wire.NewRR("www.example.com. 300 IN A 192.0.2.80")
		if err != nil {
			b.Error(err)
		}
		soa, err := wire.NewRR("example.com. 300 IN SOA ns.example.com. hostmaster.example.com. 1 7200 1800 86400 300")
		if err != nil {
			b.Error(err)
		}
		r.Rcode, r.Ns = wire.RcodeNameError, []wire.RR{soa}
		if r.Question[0].Name == "www.example.com." {
			r.Rcode = wire.RcodeSuccess
			if r.Question[0].Qtype == wire.TypeA {
				r.Answer = append(r.Answer, rr)
			}
		}
		return true
	})
	for _, mode := range []string{"off", "cluster.local"} {
		s := running(b, Options{Servers: servers(b, ". {\n search "+mode+"\n cache 30\n cluster cluster.local\n forward . "+up.addr.String()+"\n}\n")}, testView())
		for _, name := range []string{"www.example.com", "web-service.apps"} {
			_, search, _ := WorkloadConfig("cluster.local", "default", addr("10.96.0.10"), nil)
			var queries [][]byte
			for _, suffix := range append(search, "") {
				for _, qtype := range []uint16{wire.TypeA, wire.TypeAAAA} {
					m := new(wire.Msg)
					m.SetQuestion(strings.TrimSuffix(name+"."+suffix, ".")+".", qtype)
					q, err := m.Pack()
					if err != nil {
						b.Fatal(err)
					}
					queries = append(queries, q)
				}
			}
			bench := func(b *testing.B, anew bool) {
				r := &responder{turn: 1}
				r.client = addr(fromDefault)
				var out [defaultBufsize]byte
				t, asked := s.live.Load().main, 0
				b.ReportAllocs()
				began := cpuTime(b)
				for b.Loop() {
					if anew { // as after each change in the cluster
						c := *s.clients.Load()
						s.clients.Store(&c)
					}
					r.now, r.clients = time.Now(), s.clients.Load()
					for i, q := range queries {
						reply := out[:r.respond(t, q, out[:])]
						if len(reply) == 0 {
							reply = s.answerPacket(b.Context(), t, q, client, "udp")
						}
						asked++
						if i%2 == 1 && reply[3]&0xF == 0 {
							break
						}
					}
				}
				b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op")
				b.ReportMetric(float64(asked)/float64(b.N), "questions/op")
			}
			b.Run(mode+"/"+name, func(b *testing.B) { bench(b, false) })
			if mode != "off" {
				b.Run("anew/"+name, func(b *testing.B) { bench(b, true) })
			}
		}
	}
}

// cpuTime is what the process has used; on a busy machine the clock tells of
// the others.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
