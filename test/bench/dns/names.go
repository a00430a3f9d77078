package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	wire "github.com/miekg/dns"

	"nodenet/state"
)

// The names of the cluster: numServices services with a VIP and one named
// port each.
const (
	numServices = 10000
	zone        = "cluster.local."
	ttl         = 5
)

func serviceName(i int) string { return fmt.Sprintf("svc-%d.ns-%d.svc.%s", i, i%50, zone) }

func serviceVIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

func reverseOf(i int) string { return fmt.Sprintf("%d.%d.96.10.in-addr.arpa.", byte(i), byte(i>>8)) }

// clusterView is what nodenet serves.
func clusterView() *state.View {
	var services []*state.ServiceView
	for i := range numServices {
		services = append(services, &state.ServiceView{
			Service: state.Service{
				Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("svc-%d", i),
				Ports: []state.ServicePort{{Name: "http", Protocol: "tcp", Port: 80}},
			},
			VIP: serviceVIP(i),
		})
	}
	return state.NewView(state.View{Rev: 1}, nil, services)
}

// record is one record of the same names, for those who read them from files.
type record struct{ owner, rrType, data string }

func clusterRecords() (out []record) {
	for i := range numServices {
		name := serviceName(i)
		out = append(out,
			record{name, "A", serviceVIP(i).String()},
			record{name, "SRV", "0 100 80 " + name},
			record{"_http._tcp." + name, "SRV", "0 100 80 " + name},
			record{reverseOf(i), "PTR", name})
	}
	return out
}

// workload is a list of packed questions to be asked over and over.
type workload struct {
	name    string
	packets [][]byte
	// want is the share of answers with records and of NXDOMAIN that the
	// questions must get, in percent.
	records, nxdomain int
}

// clusterQuestions: what pods ask. Of 100 questions 60 are A, 20 AAAA (there
// is none), 10 for names that do not exist (the search path), 5 SRV, 5 PTR;
// half of all have EDNS.
func clusterQuestions() workload {
	w := workload{name: "cluster", records: 70, nxdomain: 10}
	r := rand.New(rand.NewPCG(1, 2))
	for range 1 << 16 {
		i := r.IntN(numServices)
		name, qtype := serviceName(i), wire.TypeA
		switch k := r.IntN(100); {
		case k < 60:
		case k < 80:
			qtype = wire.TypeAAAA
		case k < 90:
			name = fmt.Sprintf("www.example-%d.com.ns-%d.svc.%s", i, i%50, zone)
		case k < 95:
			name, qtype = "_http._tcp."+name, wire.TypeSRV
		default:
			name, qtype = reverseOf(i), wire.TypePTR
		}
		w.add(r, name, qtype)
	}
	return w
}

// outsideQuestions are for names that an upstream has: few, so that a cache
// holds them, or each another one.
func outsideQuestions(different int) workload {
	w := workload{name: "outside", records: 100}
	r := rand.New(rand.NewPCG(3, uint64(different)))
	for i := range max(different, 1<<16) {
		w.add(r, fmt.Sprintf("host-%d.%d.example.org.", i%different, different), wire.TypeA)
	}
	r.Shuffle(len(w.packets), func(i, j int) { w.packets[i], w.packets[j] = w.packets[j], w.packets[i] })
	return w
}

func (w *workload) add(r *rand.Rand, name string, qtype uint16) {
	m := new(wire.Msg)
	m.SetQuestion(name, qtype)
	if r.IntN(2) == 0 {
		m.SetEdns0(1232, false)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err) // of names that are written above
	}
	w.packets = append(w.packets, b)
}
