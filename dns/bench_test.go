package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/state"
)

// manyServices is a view of n services with two backends each.
func manyServices(n int) *state.View {
	var services []*state.ServiceView
	for i := range n {
		services = append(services, &state.ServiceView{
			Service: state.Service{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("svc-%d", i), Ports: []state.ServicePort{{Name: "http", Protocol: "tcp", Port: 80}}},
			VIP:     netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}),
			Backends: []state.BackendOf{
				{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Targets: []uint16{80}, Ready: true},
				{Addr: netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)}), Targets: []uint16{80}, Ready: true},
			},
		})
	}
	return state.NewView(state.View{Rev: 1}, nil, services)
}

func BenchmarkBuildZone(b *testing.B) {
	v := manyServices(10000)
	for b.Loop() {
		buildZone(v, testZoneOptions())
	}
}

func BenchmarkAnswer(b *testing.B) {
	s := running(b, Options{Servers: servers(b, ". {\n errors\n cache 30\n cluster\n loadbalance\n}\n")}, manyServices(10000))
	m := new(wire.Msg)
	m.SetQuestion("svc-77.ns-27.svc.cluster.local.", wire.TypeA)
	t := s.live.Load().main
	b.ReportAllocs()
	for b.Loop() {
		if s.answer(context.Background(), t, m, client, false) == nil {
			b.Fatal("no answer")
		}
	}
}

// BenchmarkPacked is what the packed path adds to reading and writing.
func BenchmarkPacked(b *testing.B) {
	s := running(b, Options{Servers: servers(b, ". {\n errors\n cache 30\n hosts {\n fallthrough\n}\n cluster\n loadbalance\n}\n")}, manyServices(10000))
	var queries [][]byte
	for i := range 1 << 14 {
		m := new(wire.Msg)
		i = i * 7919 % 10000
		m.SetQuestion(fmt.Sprintf("svc-%d.ns-%d.svc.cluster.local.", i, i%50), wire.TypeA)
		m.SetEdns0(1232, false)
		q, err := m.Pack()
		if err != nil {
			b.Fatal(err)
		}
		queries = append(queries, q)
	}
	t, r := s.live.Load().main, &responder{turn: 1}
	var out [defaultBufsize]byte
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i++; r.respond(t, queries[i%len(queries)], out[:]) == 0 {
			b.Fatal("no packed answer")
		}
	}
}

// BenchmarkBatch is the same for batches as the receive loop answers them, of
// the questions of `make bench-dns`.
func BenchmarkBatch(b *testing.B) {
	s := running(b, Options{Servers: servers(b, ". {\n errors\n cache 30\n hosts {\n fallthrough\n}\n cluster\n loadbalance\n}\n")}, manyServices(10000))
	var queries [][]byte
	for range 1 << 15 {
		m := new(wire.Msg)
		i := rand.IntN(10000)
		name, qtype := fmt.Sprintf("svc-%d.ns-%d.svc.cluster.local.", i, i%50), wire.TypeA
		switch k := rand.IntN(100); {
		case k < 60:
		case k < 80:
			qtype = wire.TypeAAAA
		case k < 90:
			name = "www.example.com." + name
		case k < 95:
			name, qtype = "_http._tcp."+name, wire.TypeSRV
		default:
			name, qtype = fmt.Sprintf("%d.%d.96.10.in-addr.arpa.", byte(i), byte(i>>8)), wire.TypePTR
		}
		m.SetQuestion(name, qtype)
		if rand.IntN(2) == 0 {
			m.SetEdns0(1232, false)
		}
		q, err := m.Pack()
		if err != nil {
			b.Fatal(err)
		}
		queries = append(queries, q)
	}
	t, r := s.live.Load().main, &responder{turn: 1}
	var out [defaultBufsize]byte
	at := 0
	round := func() {
		r.warm(t, batchSize, func(i int) []byte { return queries[(at+i)%len(queries)] })
		for i := range batchSize {
			r.recall(i)
			if r.respond(t, queries[(at+i)%len(queries)], out[:]) == 0 {
				b.Fatal("no packed answer")
			}
		}
		at += batchSize
		r.tally.flush(s.metrics)
	}
	for range len(queries) / batchSize {
		round()
	}
	b.ReportAllocs()
	n, began := 0, cpuTime(b)
	for b.Loop() {
		round()
		n += batchSize
	}
	b.ReportMetric(float64((cpuTime(b)-began).Nanoseconds())/float64(n), "cpu-ns/question")
}

// manyEndpoints is a view of n workloads with a name each.
func manyEndpoints(n int) *state.View {
	var endpoints []*state.EndpointView
	for i := range n {
		endpoints = append(endpoints, &state.EndpointView{Owner: "n1", Serving: true, Endpoint: &state.Endpoint{
			ID: fmt.Sprint("e", i), Namespace: fmt.Sprint("ns-", i%50), Name: fmt.Sprintf("pod-%d", i), Network: "pods",
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		}})
	}
	return state.NewView(state.View{Rev: 1}, endpoints, nil)
}

// BenchmarkZoneMemory reports what a zone takes for each name in it: an
// address or a pointer, with the names above them.
func BenchmarkZoneMemory(b *testing.B) {
	v := manyEndpoints(50000) // 100 000 names: an address and a pointer each
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		z := buildZone(v, zoneOptions{forward: plugin.Zones{"cluster.local."}, reverse: plugin.Zones{"in-addr.arpa."}, ttl: 5})
		b.ReportMetric(float64(heap()-before)/float64(z.names.n), "B/name")
		runtime.KeepAlive(z)
	}
	runtime.KeepAlive(v)
}
