package lb

import (
	"fmt"
	"net/netip"
	"testing"

	"nodenet/state"
)

// benchView has n services with ten backends each.
func benchView(n int) *state.View {
	var services []*state.ServiceView
	for i := range n {
		s := svc(fmt.Sprintf("s%05d", i), netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}).String(), "tcp", 80, 0)
		for b := range 10 {
			s.Backends = append(s.Backends, state.BackendOf{Addr: netip.AddrFrom4([4]byte{10, 244, byte(1 + b), byte(i)}), Targets: []uint16{8080}, Ready: true})
		}
		services = append(services, s)
	}
	return state.NewView(state.View{Rev: 1}, nil, services)
}

// BenchmarkUpdateBackend takes one backend of one service away and back: diff
// and transaction, without Derive.
func BenchmarkUpdateBackend(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			k := newSpace(b).kernel()
			v := benchView(n)
			with := Derive(v, testLocal())
			mid := v.Service(fmt.Sprintf("default/s%05d", n/2))
			mid.Backends = mid.Backends[:9]
			without := Derive(v, testLocal())
			cur, _ := syncKernel(b, k, nil, with)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				next := without
				if i%2 == 1 {
					next = with
				}
				cur, _ = syncKernel(b, k, cur, next)
			}
		})
	}
}

// BenchmarkStart loads services into an empty kernel, and finds them there
// again.
func BenchmarkStart(b *testing.B) {
	tab := Derive(benchView(10000), testLocal())
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			k := newSpace(b).kernel()
			syncKernel(b, k, nil, tab)
		}
	})
	b.Run("restart", func(b *testing.B) {
		k := newSpace(b).kernel()
		syncKernel(b, k, nil, tab)
		for b.Loop() {
			if _, ops := syncKernel(b, k, nil, tab); !ops.Empty() {
				b.Fatalf("%d operations", ops.Count())
			}
		}
	})
}

func BenchmarkDerive(b *testing.B) {
	v := benchView(10000)
	for b.Loop() {
		Derive(v, testLocal())
	}
}
