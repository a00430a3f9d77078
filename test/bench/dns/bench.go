package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

type bench struct {
	rounds int
	each   time.Duration
	dir    string
	next   int // port
	rows   []row
}

// row is a line of the table.
type row struct {
	figure, measured, goal, ratio string
	met                           bool
}

func (b *bench) port() int {
	b.next++
	return 35300 + b.next
}

// own starts one of the servers of this program.
func (b *bench) own(name, what string, core, up int, env ...string) (*server, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	port := b.port()
	argv := append(append([]string{"/usr/bin/env"}, env...), exe, "-serve", what, "-port", strconv.Itoa(port), "-upstream", strconv.Itoa(up))
	return start(name, b.dir, port, core, argv...)
}

func (b *bench) all(want func(string) bool) error {
	dir, err := os.MkdirTemp("", "nodenet-bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.dir = dir
	for _, part := range []struct {
		name string
		run  func() error
	}{{"cluster", b.cluster}, {"latency", b.latency}, {"hit", b.hit}, {"miss", b.miss}, {"change", b.change}} {
		if !want(part.name) {
			continue
		}
		if err := part.run(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	b.print()
	return nil
}

// compete measures servers in turn, round by round, and returns the queries a
// CPU-second of each, by name, a value a round.
func (b *bench) compete(servers []*server, questions func(round int, s *server) (workload, int), limit int) (map[string][]float64, error) {
	out := make(map[string][]float64)
	from := 0
	for round := range b.rounds + 1 { // the first warms up
		for _, s := range servers {
			w, n := questions(round, s)
			if n > 0 {
				limit = n
			}
			before, err := s.cpu()
			if err != nil {
				return nil, err
			}
			t, err := saturate(s.port, w, &from, b.each, limit)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			time.Sleep(20 * time.Millisecond) // for the kernel to account the last tick
			after, err := s.cpu()
			if err != nil {
				return nil, err
			}
			if !strings.HasSuffix(s.name, "echo") && round > 0 {
				if err := t.check(w); err != nil {
					return nil, fmt.Errorf("%s: %w", s.name, err)
				}
			}
			rate := float64(t.answers) / (after - before).Seconds()
			fmt.Fprintf(os.Stderr, "round %d  %-10s %8.0f queries a CPU-second, %8.0f a second, %d lost, %.0f MiB\n",
				round, s.name, rate, float64(t.answers)/t.took.Seconds(), t.lost, s.memory())
			if round > 0 {
				out[s.name] = append(out[s.name], rate)
			}
		}
	}
	return out, nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// ratio is the median over the rounds of a divided by b.
func ratio(a, b []float64) float64 {
	var r []float64
	for i := range min(len(a), len(b)) {
		r = append(r, a[i]/b[i])
	}
	return median(r)
}

func (b *bench) add(figure string, measured, goal string, ratio float64, met bool) {
	b.rows = append(b.rows, row{figure, measured, goal, fmt.Sprintf("%.2f", ratio), met})
}

func perSecond(v float64) string { return fmt.Sprintf("%.0fk", v/1000) }

// cluster: names of the cluster, all servers saturated.
func (b *bench) cluster() error {
	w := clusterQuestions()
	servers, err := b.field(0)
	defer stopAll(servers)
	if err != nil {
		return err
	}
	got, err := b.compete(servers, func(int, *server) (workload, int) { return w, 0 }, 0)
	if err != nil {
		return err
	}
	ours := got["nodenet"]
	for _, s := range servers {
		theirs := got[s.name]
		r := ratio(ours, theirs)
		figure := "queries a CPU-second, cluster names, beside " + s.name
		switch s.name {
		case "nodenet":
			b.add("memory, 10 000 services", fmt.Sprintf("%.0f MiB", s.memory()), "—", 1, true)
		case "echo":
			b.add("queries a CPU-second, cluster names, beside a bare echo on the same system calls", perSecond(median(ours)), "≥ 0.8 × "+perSecond(median(theirs)), r, r >= 0.8)
		case "x/net-echo":
			b.add("… beside a bare echo on golang.org/x/net", perSecond(median(ours)), "≥ 0.8 × "+perSecond(median(theirs)), r, r >= 0.8)
		case "naive":
			b.add("… beside a goroutine a packet", perSecond(median(ours)), "≥ 3 × "+perSecond(median(theirs)), r, r >= 3)
		default:
			b.add(figure, perSecond(median(ours)), "> "+perSecond(median(theirs)), r, r > 1)
			b.add("memory beside "+s.name, "", fmt.Sprintf("%.0f MiB", s.memory()), servers[0].memory()/s.memory(), true)
		}
	}
	return nil
}

// field starts nodenet, the limit, the naive loop and the peers.
func (b *bench) field(up int) (servers []*server, err error) {
	for _, what := range []string{"nodenet", "echo", "x/net-echo", "naive"} {
		s, err := b.own(what, what, serverCore, up)
		if err != nil {
			return servers, err
		}
		servers = append(servers, s)
	}
	for _, p := range peers() {
		s, err := p.launch(b.dir, b.port(), up)
		if err != nil {
			return servers, err
		}
		if s == nil {
			fmt.Fprintf(os.Stderr, "%s is not installed, it is left out: run .ci/deps-bench\n", p.name)
			continue
		}
		servers = append(servers, s)
	}
	return servers, nil
}

func stopAll(servers []*server) {
	for _, s := range servers {
		s.stop()
	}
}

// hit: names outside that the cache holds.
func (b *bench) hit() error {
	up, err := b.own("upstream", "upstream", clientCore, 0)
	if err != nil {
		return err
	}
	defer up.stop()
	ours, err := b.own("nodenet", "nodenet", serverCore, up.port)
	if err != nil {
		return err
	}
	defer ours.stop()
	// The same server twice: cluster names are the yardstick.
	same := *ours
	same.name = "nodenet, cluster"
	servers := []*server{ours, &same}
	peer, err := peers()[2].launch(b.dir, b.port(), up.port)
	if err != nil {
		return err
	}
	if peer != nil {
		defer peer.stop()
		servers = append(servers, peer)
	}
	inside, outside := clusterQuestions(), outsideQuestions(5000)
	for _, s := range servers { // every name twice, however long that takes
		from := 0
		for range 2 {
			if _, err := saturate(s.port, outside, &from, time.Minute, len(outside.packets)/2); err != nil {
				return err
			}
		}
	}
	got, err := b.compete(servers, func(_ int, s *server) (workload, int) {
		if s == &same {
			return inside, 0
		}
		return outside, 0
	}, 0)
	if err != nil {
		return err
	}
	hits := got["nodenet"]
	r := ratio(hits, got[same.name])
	b.add("queries a CPU-second, cache hit", perSecond(median(hits)), "≥ 0.6 × "+perSecond(median(got[same.name]))+" (cluster names)", r, r >= 0.6)
	if peer != nil {
		r := ratio(hits, got["unbound"])
		b.add("queries a CPU-second, cache hit, beside unbound", perSecond(median(hits)), perSecond(median(got["unbound"])), r, true)
	}
	return nil
}

// miss: names outside, each asked once.
func (b *bench) miss() error {
	up, err := b.own("upstream", "upstream", clientCore, 0)
	if err != nil {
		return err
	}
	defer up.stop()
	ours, err := b.own("nodenet", "nodenet", serverCore, up.port)
	if err != nil {
		return err
	}
	defer ours.stop()
	servers := []*server{ours}
	peer, err := peers()[2].launch(b.dir, b.port(), up.port)
	if err != nil {
		return err
	}
	if peer != nil {
		defer peer.stop()
		servers = append(servers, peer)
	}
	b.each *= 3 // the upstream shares a core with the load
	defer func() { b.each /= 3 }()
	fresh := 0
	got, err := b.compete(servers, func(int, *server) (workload, int) {
		fresh++
		return outsideQuestions(100000 + fresh), 60000
	}, 60000)
	if err != nil {
		return err
	}
	if peer != nil {
		r := ratio(got["nodenet"], got["unbound"])
		b.add("queries a CPU-second, cache miss (forward)", perSecond(median(got["nodenet"])), "≥ "+perSecond(median(got["unbound"]))+" (unbound)", r, r >= 1)
	}
	return nil
}

func (b *bench) print() {
	fmt.Println("| figure | measured | goal | ratio | met |\n|---|---|---|---|---|")
	for _, r := range b.rows {
		met := "yes"
		if !r.met {
			met = "no"
		}
		fmt.Printf("| %s | %s | %s | %s | %s |\n", r.figure, r.measured, r.goal, r.ratio, met)
	}
}
