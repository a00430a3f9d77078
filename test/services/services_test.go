package services

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

// soon is for what a healthy machine does within a second or two.
const soon = 20 * time.Second

// TestServices is a day in the life of a service on two nodes.
func TestServices(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2})
	label := "--label nodenet.io/service=web --label nodenet.io/service-port=80 --label nodenet.io/service-check=tcp"
	var web []*scenario.Workload
	for i := 1; i <= 2; i++ {
		w := s.Workload(i, fmt.Sprintf("web-%d", i), label)
		w.Serve(80)
		web = append(web, w)
	}
	client := s.Workload(1, "client", "")
	show := func(node int, name string) (*api.Service, error) {
		c := s.Lab.Node(node).Client()
		defer c.Close()
		svc, err := c.Service(t.Context(), name+".default")
		return &svc, err
	}
	find := func(svc *api.Service, name string) *api.ServiceBackend {
		for i := range svc.Backends {
			if b := &svc.Backends[i]; b.Name == name || b.Addr.String() == name {
				return b
			}
		}
		return &api.ServiceBackend{}
	}
	// is waits until a node sees a backend as told.
	is := func(node int, service, name, what string, ok func(*api.ServiceBackend) bool) *api.ServiceBackend {
		t.Helper()
		var b *api.ServiceBackend
		s.Eventually(fmt.Sprintf("node%d sees %s of %s %s", node, name, service, what), soon, func() error {
			svc, err := show(node, service)
			if err != nil {
				return err
			}
			if b = find(svc, name); !ok(b) {
				return fmt.Errorf("%+v", *b)
			}
			return nil
		})
		return b
	}
	ready := func(b *api.ServiceBackend) bool { return b.Ready }
	addrs := func() string {
		out, _ := s.Exec("node2", "dig +short +tries=1 +time=2 @10.96.0.10 peers.default.svc.cluster.local")
		return out
	}

	// Declared by labels on both nodes, it is one service.
	for node := 1; node <= 2; node++ {
		is(node, "web", "web-1", "ready", ready)
		is(node, "web", "web-2", "ready", ready)
	}
	svc, err := show(1, "web")
	if err != nil || svc.Source != "label" || !svc.VIP.IsValid() || svc.Check != "tcp" {
		t.Fatalf("declared by labels: %+v, %v", svc, err)
	}
	s.Eventually("both answer", soon, func() error { return got(client, "http://web/", 20, "web-1", "web-2") })

	t.Run("what a person sees of it", func(t *testing.T) {
		vip, backend := svc.VIP.String(), regexp.QuoteMeta(web[0].Addr)+"|"+regexp.QuoteMeta(web[1].Addr)
		s.Want(s.Run("node1", "nodectl service show web"), `web-1 +node1 .* yes `, `web-2 +node2 .* yes `)
		s.Want(s.Run("node1", "nodectl lb trace --from "+client.Addr+" "+vip+":80/tcp"), `svc \{ `+regexp.QuoteMeta(vip)+` \. tcp \. 80 : `, `goes to (`+backend+`):80`)
		dump := s.Run("node1", "nodectl lb dump")
		s.Want(dump, `^table inet nodenet \{`, `^table bridge nodenet \{`, regexp.QuoteMeta(vip)+` \. tcp \. 80 \. 1 : (`+backend+`) \. 80`)
	})

	t.Run("a port that a process listens on is not published", func(t *testing.T) {
		// The daemon itself is the process, with its metrics.
		s.Want(s.Fail("node1", "nodectl publish add 9153 "+web[0].Addr+":80"), `nodectl.* listens on 127\.0\.0\.1:9153/tcp`)
		s.Reject(s.Run("node1", "nodectl publish ls"), `9153`)
	})

	t.Run("an http check flips a backend", func(t *testing.T) {
		health := map[int]*scenario.Process{}
		for i, w := range web {
			health[i] = w.Serve(81)
		}
		s.Run("node1", `nodectl service add shop --port 80 --select nodenet.io/service=web --check http --check-port 81 --check-interval 300ms --check-timeout 200ms`)
		s.Run("node1", `nodectl service add peers --vip none --port 80 --select nodenet.io/service=web --check http --check-port 81 --check-interval 300ms --check-timeout 200ms`)
		is(2, "shop", "web-2", "ready", ready)
		s.Eventually("both answer", soon, func() error { return got(client, "http://shop/", 20, "web-1", "web-2") })
		health[1].Stop()
		b := is(1, "shop", "web-2", "failing", func(b *api.ServiceBackend) bool { return !b.Ready && b.Health == "failing" })
		if !strings.Contains(b.Why, "GET http://") || !strings.Contains(b.Why, "connection refused") || b.Since == 0 || b.Node != "node2" {
			t.Errorf("it says %+v", b)
		}
		s.Eventually("the other one answers alone", soon, func() error { return got(client, "http://shop/", 20, "web-1") })
		s.Eventually("DNS has the other one alone", soon, func() error {
			if out := addrs(); strings.Contains(out, web[1].Addr) || !strings.Contains(out, web[0].Addr) {
				return fmt.Errorf("%q", out)
			}
			return nil
		})
		web[1].Serve(81)
		is(1, "shop", "web-2", "ready", ready)
		s.Eventually("both answer", soon, func() error { return got(client, "http://shop/", 20, "web-1", "web-2") })
		s.Want(s.Run("node1", "curl -sS -m 3 http://127.0.0.1:9153/metrics"), `nodenet_service_check_runs_total\{result="ok",type="http"\} [1-9]`)
	})

	t.Run("a canary of one in a hundred, live", func(t *testing.T) {
		s.Run("node1", "nodectl service weight web web-1 99")
		s.Run("node2", "nodectl service weight web web-2 1")
		is(1, "web", "web-2", "light", func(b *api.ServiceBackend) bool { return b.Weight == 1 })
		is(1, "web", "web-1", "heavy", func(b *api.ServiceBackend) bool { return b.Weight == 99 })
		// At 1 in 100 more than 25 of 600 have a probability of 1e-9.
		s.Eventually("few go to the canary", soon, func() error {
			n, err := count(client, "http://web/", 600)
			if err == nil && (n["web-2"] > 25 || n["web-1"] < 575) {
				err = fmt.Errorf("%v", n)
			}
			return err
		})
		s.Run("node1", "nodectl service weight web web-1 default")
		is(1, "web", "web-1", "as declared", func(b *api.ServiceBackend) bool { return b.Weight == 1 })
	})

	t.Run("drain with a deadline under a running connection", func(t *testing.T) {
		conn := keepAsking(t, "/run/netns/client", svc.VIP.String()+":80")
		on := conn.by
		s.Eventually("the connection is counted", soon, func() error {
			svc, err := show(2, "web")
			if err != nil {
				return err
			}
			if b := find(svc, on); b.Conns == nil || *b.Conns == 0 || len(b.ConnsFrom) != 2 {
				return fmt.Errorf("%+v", *b)
			}
			return nil
		})
		begin := time.Now()
		out := s.Run("node2", "nodectl service drain web "+on+" --deadline 4s")
		s.Want(out, `(?m)^\d+ connections? left, [1-4]s to the deadline, counted on node1 node2$`)
		s.Want(out, `(?m)^(the deadline is over: what was left is reset|no connections left)`)
		for node := 1; node <= 2; node++ {
			b := is(node, "web", on, "drained", func(b *api.ServiceBackend) bool { return b.Failed && b.Why == "drained" })
			if b.Ready {
				t.Errorf("node%d: %+v", node, b)
			}
		}
		// The deadline is a whole second of the clock.
		err := conn.wait()
		if after := conn.ended.Sub(begin); !errors.Is(err, unix.ECONNRESET) || after < 3*time.Second {
			t.Errorf("the connection ended %s after the drain began: %v, want a reset after 3 to 4 s", after.Round(time.Millisecond), err)
		}
		other := map[string]string{"web-1": "web-2", "web-2": "web-1"}[on]
		s.Eventually("the other one answers alone", soon, func() error { return got(client, "http://web/", 20, other) })
		s.Run("node1", "nodectl service drain web "+on+" --undo")
		is(2, "web", on, "ready", ready)
	})

	t.Run("two nodes add a backend each during a partition", func(t *testing.T) {
		s.Run("node1", "nodectl service add ext --port 80")
		s.Eventually("node2 has it", soon, func() error { _, err := show(2, "ext"); return err })
		if err := s.Lab.Cut("node1", "node2", false); err != nil {
			t.Fatal(err)
		}
		s.Run("node1", "nodectl service backend add ext 203.0.113.1:80")
		s.Run("node2", "nodectl service backend add ext 203.0.113.2:80 --weight 5")
		if err := s.Lab.Heal("", ""); err != nil {
			t.Fatal(err)
		}
		for node := 1; node <= 2; node++ {
			is(node, "ext", "203.0.113.1", "there", ready)
			is(node, "ext", "203.0.113.2", "there", func(b *api.ServiceBackend) bool { return b.Ready && b.Weight == 5 })
		}
		s.Run("node2", "nodectl service backend rm ext 203.0.113.1:80")
		is(1, "ext", "203.0.113.1", "gone", func(b *api.ServiceBackend) bool { return !b.Addr.IsValid() })
		s.Run("node1", "nodectl service rm ext")
	})

	t.Run("health port", func(t *testing.T) {
		s.Run("node1", "nodectl service add front --port 80 --select app=front --health-port 20080")
		w := s.Workload(1, "front", "--label app=front")
		w.Serve(80)
		for node, want := range map[int]string{1: `"localEndpoints":1\}\n200`, 2: `"localEndpoints":0\}\n503`} {
			s.Eventually(fmt.Sprintf("node%d says so", node), soon, func() error {
				out, err := s.Exec("node1", fmt.Sprintf("curl -sS -m 3 -w %%{http_code} http://192.168.1.%d:20080/healthz", 10+node))
				if err == nil && !regexp.MustCompile(want).MatchString(out) {
					err = fmt.Errorf("%q", out)
				}
				return err
			})
		}
	})

	t.Run("a service goes with the last that declares it", func(t *testing.T) {
		s.Run("node1", "nodectl service rm shop")
		s.Run("node1", "nodectl service rm peers")
		web[0].Detach()
		is(1, "web", "web-1", "gone", func(b *api.ServiceBackend) bool { return !b.Addr.IsValid() })
		web[1].Detach()
		s.Eventually("there is no such service", soon, func() error {
			if svc, err := show(1, "web"); err == nil {
				return fmt.Errorf("%+v", svc)
			}
			return nil
		})
	})
}

var tally = regexp.MustCompile(`(?m)^ *(\d+) (\S+)`)

// count makes requests and says who answered how many.
func count(w *scenario.Workload, url string, n int) (map[string]int, error) {
	out, err := w.Exec(fmt.Sprintf("nodectl lab get -n %d %s", n, url))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	who := map[string]int{}
	for _, m := range tally.FindAllStringSubmatch(out, -1) {
		who[m[2]], _ = strconv.Atoi(m[1])
	}
	return who, nil
}

// got is an answer for Eventually: do those, and no others, answer?
func got(w *scenario.Workload, url string, n int, want ...string) error {
	who, err := count(w, url, n)
	if err != nil {
		return err
	}
	for _, name := range want {
		if who[name] == 0 {
			return fmt.Errorf("%s does not answer: %v", name, who)
		}
	}
	if len(who) != len(want) {
		return fmt.Errorf("others answer: %v", who)
	}
	return nil
}
