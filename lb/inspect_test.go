package lb

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInspect: what is read back from the kernel prints and traces as what was
// programmed, and with the kernel's elements, not those that should be there.
func TestInspect(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	w := &wish{testView(), testLocal()}
	if _, err := inspect(k, w); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("without tables: %v", err)
	}
	tab, _ := syncKernel(t, k, nil, Derive(w.v, w.l))
	rs, err := inspect(k, w)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tab.Ruleset().String(), rs.String()); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	for src, want := range map[string]string{"10.244.0.2": "nn-t0", "192.0.2.11": "", "192.0.2.1": "eth0"} {
		if got := rs.Arrival(addr(src)); got != want {
			t.Errorf("packets of %s arrive by %q, want %q", src, got, want)
		}
	}
	p := Packet{In: "eth0", Src: addr("192.0.2.1"), Dst: addr("10.96.0.23"), Proto: TCP, Dport: 80, Rand: 1}
	v := Trace(rs, p)
	if l := v.Lookups[len(v.Lookups)-1]; l.Chain != "translated" {
		t.Errorf("the last question is %s, want one of chain translated", l)
	}
	var asked []string
	for _, l := range v.Lookups {
		if l.Set == "svc" || l.Set == "bkt" || l.Set == "eps" {
			asked = append(asked, l.String())
		}
	}
	want := []string{"vip: svc { 10.96.0.23 . tcp . 80 : 0:2 }", "vip: bkt { 0:2 : goto lb-2 }", "lb-2: eps { 10.96.0.23 . tcp . 80 . 1 : 10.244.1.2 . 8080 }"}
	if diff := cmp.Diff(want, asked); diff != "" || v.String() != "accept to 10.244.1.2:8080 masquerade" {
		t.Errorf("%s (-want +got):\n%s", v, diff)
	}
	direct := Trace(rs, Packet{In: "nn-t0", Src: addr("10.244.0.2"), Dst: addr("10.244.0.3"), Proto: TCP, Dport: 80})
	if l := direct.Lookups[len(direct.Lookups)-1]; l.String() != "post: cluster { 10.244.0.3 } yes" {
		t.Errorf("the last question is %s, want whether it leaves the cluster", l)
	}
	s.nft("", "delete", "element", "inet", "nodenet", "svc", "{ 10.96.0.23 . tcp . 80 }")
	if rs, err = inspect(k, w); err != nil {
		t.Fatal(err)
	}
	if v := Trace(rs, p); v.Action != "reset" {
		t.Errorf("with the element gone: %s, want reset", v)
	}
	s.nft("", "flush", "chain", "inet", "nodenet", "vip")
	if _, err := inspect(k, w); err == nil || !strings.Contains(err.Error(), "chain vip differs") {
		t.Errorf("with a chain flushed: %v", err)
	}
}
