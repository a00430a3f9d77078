package names

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestSee: trace, wait and top of a real daemon.
func TestSee(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	w := s.Workload(1, "w", "--namespace apps")
	s.Workload(2, "b", "--namespace apps --label app=b --port http=80")

	// wait begins before there is anything to answer.
	waiting := s.Background("node1", "nodectl dns wait web.apps.svc.cluster.local --timeout 30s")
	if out, err := s.Exec("node1", "nodectl dns wait never.apps.svc.cluster.local --timeout 200ms"); err == nil ||
		!strings.Contains(out, "has no A after 200ms: NXDOMAIN") {
		t.Errorf("wait for nothing: %v %s", err, out)
	}
	s.Run("node2", "nodectl service add web.apps --vip 10.96.1.1 --port 80 --select app=b")
	select {
	case <-waiting.Done():
	case <-time.After(soon):
		t.Fatal("wait goes on")
	}
	s.Want(waiting.Output(), `(?m)^web\.apps\.svc\.cluster\.local\.\s+5\s+IN\s+A\s+10\.96\.1\.1$`)

	trace := func(args string) (out api.DNSTrace) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.Run("node1", "nodectl -o json dns trace "+args)), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	find := func(tr api.DNSTrace, plugin, decision string) *api.DNSStep {
		t.Helper()
		for i := range tr.Tries {
			for j := range tr.Tries[i].Steps {
				if st := &tr.Tries[i].Steps[j]; st.Plugin == plugin && st.Decision == decision {
					return st
				}
			}
		}
		t.Fatalf("no step of %s that is %q in %+v", plugin, decision, tr)
		return nil
	}
	record := func(st *api.DNSStep, kind, key, node string) {
		t.Helper()
		for _, r := range st.Records {
			if r.Kind == kind && r.Key == key && r.Node == node {
				if age := time.Since(time.Unix(r.Written, 0)); r.Version == "" || age < -time.Minute || age > time.Hour {
					t.Errorf("record %+v: written %s ago", r, age)
				}
				return
			}
		}
		t.Errorf("no %s %s of %s in %+v", kind, key, node, st.Records)
	}
	tr := trace("web --from w.apps")
	if len(tr.Tries) != 1 || tr.Tries[0].Search != "apps.svc.cluster.local." {
		t.Errorf("tries of web: %+v", tr.Tries)
	}
	record(find(tr, "cluster", "looked up"), "service", "apps/web", "node2")
	tr = trace("b.apps.pod.cluster.local --from w.apps")
	// Four dots are less than ndots: the resolver asks with the first search
	// domain, and the server goes on from there.
	if n := len(tr.Tries); n != 1 || tr.Tries[0].Search != "apps.svc.cluster.local." {
		t.Errorf("%d tries: %+v", n, tr.Tries)
	}
	var walked []string
	for _, st := range tr.Tries[0].Steps {
		if st.Plugin == "search" && st.Decision == "tried" {
			walked = append(walked, st.Name+" "+st.Rcode)
		}
	}
	if n := len(walked); n != 3 || walked[2] != "b.apps.pod.cluster.local. NOERROR" {
		t.Errorf("the server tried %q", walked)
	}
	st := find(trace("b.apps.pod.cluster.local."), "cluster", "looked up")
	if len(st.Records) != 1 || st.Records[0].Kind != "endpoint" || st.Records[0].Node != "node2" {
		t.Errorf("records of an endpoint's name: %+v", st.Records)
	}
	record(find(trace("node2.node.cluster.local."), "cluster", "looked up"), "node", "node2", "node2")
	st = find(trace("b.apps.pod.cluster.local. TXT"), "cluster", "looked up")
	if st.Rcode != "NOERROR" {
		t.Errorf("NODATA: %+v", st)
	}

	// The lab's outside host answers the rest: asked once, then cached.
	tr = trace("www.example.com.")
	st = find(tr, "forward", "asked")
	if st.Upstream == "" || st.Micros <= 0 {
		t.Errorf("forwarded: %+v", st)
	}
	find(tr, "cache", "miss")
	if st = find(trace("www.example.com."), "cache", "hit"); st.TTLMillis <= 0 {
		t.Errorf("cached: %+v", st)
	}

	// Many questions of one client for one name, fewer for another.
	w.Run("dig +short @10.96.0.10 web.apps.svc.cluster.local")
	top := s.Background("node1", "nodectl -o json dns top --interval 3s")
	asked := func() bool { // the watch has begun when its answer holds them
		for range 30 {
			if _, err := w.Exec("dig +short +tries=1 @10.96.0.10 web.apps.svc.cluster.local web.apps.svc.cluster.local none.apps.svc.cluster.local"); err != nil {
				t.Error(err)
			}
			select {
			case <-top.Done():
				return true
			default:
			}
		}
		return false
	}
	for !asked() {
	}
	var seen api.DNSTop
	if err := json.Unmarshal([]byte(top.Output()), &seen); err != nil {
		t.Fatalf("%v: %s", err, top.Output())
	}
	if seen.Queries == 0 || seen.Sampled != seen.Queries || seen.Every != 1 {
		t.Errorf("top: %+v", seen)
	}
	if len(seen.Names) < 2 || seen.Names[0].What != "web.apps.svc.cluster.local." || len(seen.Clients) != 1 || seen.Clients[0].What != w.Addr {
		t.Errorf("top names %+v, clients %+v", seen.Names, seen.Clients)
	}
	if len(seen.Rcodes) != 2 || seen.Rcodes[0].What != "NOERROR" || seen.Rcodes[1].What != "NXDOMAIN" {
		t.Errorf("top rcodes %+v", seen.Rcodes)
	}
	out := s.Run("node1", "nodectl dns top --once --interval 200ms")
	if !regexp.MustCompile(`^queries +[0-9.]+/s`).MatchString(out) {
		t.Errorf("top: %s", out)
	}
}
