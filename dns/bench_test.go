package dns

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	wire "github.com/miekg/dns"

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
