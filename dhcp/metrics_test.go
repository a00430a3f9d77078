package dhcp

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, err := New(Options{Leases: newBed(t).book, Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	s.metrics.requests.WithLabelValues("pods", "discover").Inc()
	s.metrics.replies.WithLabelValues("pods", "offer").Inc()
	s.metrics.dropped.WithLabelValues("pods", "rate").Inc()
	s.metrics.seconds.WithLabelValues("pods").Observe(0.001)
	s.current.Store(&[]*Scope{{Network: "pods"}})
	s.gauge()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		got = append(got, f.GetName())
	}
	want := []string{"nodenet_dhcp_dropped_total", "nodenet_dhcp_leases", "nodenet_dhcp_replies_total",
		"nodenet_dhcp_request_seconds", "nodenet_dhcp_requests_total"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := New(Options{Leases: newBed(t).book, Registry: reg}); err == nil {
		t.Error("a second server took the same registry")
	}
}
