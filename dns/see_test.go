package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"nodenet/dns/plugin"
)

// TestOrigins: a trace names the records that an answer comes from.
func TestOrigins(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ".:53 {\n cluster cluster.local in-addr.arpa {\n pods insecure\n }\n hosts testdata/hosts {\n 192.0.2.99 inline.example\n fallthrough\n }\n}\n")}, testView())
	trace := func(name, qtype string) []plugin.Step {
		t.Helper()
		m := new(wire.Msg)
		m.SetQuestion(wire.Fqdn(name), wire.StringToType[qtype])
		_, steps, err := s.Trace(context.Background(), m, client, false)
		if err != nil {
			t.Fatal(err)
		}
		return steps
	}
	for _, tt := range []struct{ name, qtype, want string }{
		{"web-service.apps.svc.cluster.local", "A", "service apps/web-service"},
		{"dns-version.cluster.local", "TXT", "zone cluster.local."},
		{"cache-1.apps.pod.cluster.local", "A", "endpoint apps.Cache-1.10.244.1.9@n1"},
		{"redis.apps.pod.cluster.local", "AAAA", "endpoint apps.Cache-1.10.244.1.9@n1"},
		{"printer.default.pod.cluster.local", "A", "lease default.printer.lan.10.244.2.77@n2"},
		{"node2.node.cluster.local", "A", "node Node2@n2"},
		{"eat.web-server", "A", "name eat.web-server CNAME food.web-server, name food.web-server A 192.168.1.10, name food.web-server AAAA 2001:db8::10"},
		{"10-1-2-3.apps.pod.cluster.local", "A", "address in the name 10-1-2-3.apps.pod.cluster.local."},
		{"nothing.apps.svc.cluster.local", "A", ""},
	} {
		steps := trace(tt.name, tt.qtype)
		i := slices.IndexFunc(steps, func(s plugin.Step) bool { return s.Plugin == "cluster" && s.Decision == "looked up" })
		if i < 0 {
			t.Errorf("%s: no step of cluster in %+v", tt.name, steps)
			continue
		}
		var got []string
		for _, src := range steps[i].Sources {
			text := src.Kind + " " + src.Key
			if src.Owner != "" {
				text += "@" + src.Owner
			}
			got = append(got, text)
		}
		if d := cmp.Diff(tt.want, strings.Join(got, ", ")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
		if !strings.HasSuffix(steps[i].Origin, ", revision 7") {
			t.Errorf("%s: origin %q", tt.name, steps[i].Origin)
		}
	}
	for name, want := range map[string]string{"inline.example": "server block .:53: 192.0.2.99 inline.example", "web": "testdata/hosts:3, testdata/hosts:4", "db": "testdata/hosts:5"} {
		steps := trace(name, "A")
		if i := slices.IndexFunc(steps, func(s plugin.Step) bool { return s.Plugin == "hosts" && s.Origin == want }); i < 0 {
			t.Errorf("%s: no origin %q in %+v", name, want, steps)
		}
	}
}

// TestChanged: who waits hears of new data and of new blocks.
func TestChanged(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ". {\n cluster\n}\n")}, testView())
	ch := s.Changed()
	s.Set(bigView(3))
	select {
	case <-ch:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing heard of new data")
	}
	if r := ask(t, s, "web-service.apps.svc.cluster.local", "A"); r.Rcode != wire.RcodeNameError {
		t.Errorf("the zone is still the old one: %s", render(r))
	}
}

// TestMetricNames lists what the name server exports, with the labels.
func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	up := newUpstream(t, says("A 192.0.2.7"))
	s := running(t, Options{Servers: servers(t, ". {\n cluster\n cache\n forward . "+up.addr.String()+"\n}\n"), Registry: reg}, testView())
	ask(t, s, "web-service.apps.svc.cluster.local", "A")
	ask(t, s, "www.example.", "A")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		got = append(got, strings.TrimSpace(f.GetName()+" "+strings.Join(labels, ",")))
	}
	want := []string{
		"nodenet_dns_block_queries_total block,rcode,source",
		"nodenet_dns_cache_hits_total",
		"nodenet_dns_cache_misses_total",
		"nodenet_dns_forward_queries_total result,upstream",
		"nodenet_dns_forward_shed_total",
		"nodenet_dns_limited_total",
		"nodenet_dns_panics_total",
		"nodenet_dns_queries_total proto,rcode,source,type",
		"nodenet_dns_query_seconds source",
		"nodenet_dns_reloads_total",
		"nodenet_dns_shed_total",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("metrics (-want +got):\n%s", d)
	}
}

// TestBothPathsCount: a question counts once, whether the receive loop or the
// chain answers it; by block too; and top sees both.
func TestBothPathsCount(t *testing.T) {
	port := freePort(t)
	reg := prometheus.NewRegistry()
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\nwho.example:%[1]d {\n whoami\n}\n", port)), Registry: reg}, testView(), addr("127.0.0.1"))
	at := netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))
	waitFor(t, "the socket", func() bool { return len(s.Status().Listening) == 1 })

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	type result struct {
		top *Top
		err error
	}
	done := make(chan result)
	const d = 2 * time.Second
	go func() {
		top, err := s.Watch(ctx, d, 3)
		done <- result{top, err}
	}()
	waitFor(t, "the watch", func() bool { return s.metrics.watches.list() != nil })
	for _, q := range []struct {
		proto, name string
		n           int
	}{
		{"udp", "web-service.apps.svc.cluster.local", 20}, // packed
		{"tcp", "web-service.apps.svc.cluster.local", 3},  // chain
		{"udp", "none.apps.svc.cluster.local", 5},         // packed
		{"udp", "who.example", 4},                         // chain, other block
	} {
		for range q.n {
			if _, err := over(q.proto, at, q.name, wire.TypeA); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	counts := func(items []TopItem) (out []string) {
		for _, it := range items {
			out = append(out, fmt.Sprintf("%s %d", it.What, it.Count))
		}
		return out
	}
	for what, pair := range map[string][2][]string{
		"names":   {counts(r.top.Names), {"web-service.apps.svc.cluster.local. 23", "none.apps.svc.cluster.local. 5", "who.example. 4"}},
		"clients": {counts(r.top.Clients), {"127.0.0.1 32"}},
		"rcodes":  {counts(r.top.Rcodes), {"NOERROR 27", "NXDOMAIN 5"}},
		"sources": {counts(r.top.Sources), {"cluster 28", "whoami 4"}},
	} {
		if diff := cmp.Diff(pair[1], pair[0]); diff != "" {
			t.Errorf("top %s (-want +got):\n%s", what, diff)
		}
	}
	if r.top.Queries != 32 || r.top.Sampled != 32 || r.top.Latency.Count != 7 || r.top.Latency.P50 == 0 || r.top.Latency.Max < r.top.Latency.P99 {
		t.Errorf("top %+v", r.top)
	}
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "nodenet_dns_block_queries_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			key := ""
			for _, l := range m.GetLabel() {
				key += l.GetValue() + " "
			}
			if n := m.GetCounter().GetValue(); n > 0 {
				got[key] = n
			}
		}
	}
	want := map[string]float64{
		fmt.Sprintf(".:%d NOERROR cluster ", port):          23,
		fmt.Sprintf(".:%d NXDOMAIN cluster ", port):         5,
		fmt.Sprintf("who.example:%d NOERROR whoami ", port): 4,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("by block (-want +got):\n%s", diff)
	}
	if s.metrics.watches.list() != nil {
		t.Error("the watch goes on")
	}
}

// TestPercentiles: the upper ends of buckets.
func TestPercentiles(t *testing.T) {
	w := newWatch(1)
	for i := range 100 {
		w.took(time.Duration(i+1) * time.Millisecond)
	}
	l := percentiles(&w.latency)
	for _, tt := range []struct {
		what     string
		got, min time.Duration
	}{{"p50", l.P50, 50 * time.Millisecond}, {"p90", l.P90, 90 * time.Millisecond}, {"p99", l.P99, 99 * time.Millisecond}, {"max", l.Max, 100 * time.Millisecond}} {
		if tt.got < tt.min || float64(tt.got) > float64(tt.min)*latencyStep*1.001 {
			t.Errorf("%s is %s, want %s or up to a quarter more", tt.what, tt.got, tt.min)
		}
	}
}
