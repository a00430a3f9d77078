package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// latency: the 99th percentile at half of what the slower of nodenet and knot
// bears.
//
// A percentile of latencies is about the moments when something else had the
// core, so on a machine that others use it tells of them. Therefore servers and
// client run under SCHED_FIFO here, which others do not get in the way of;
// rounds are many and short; and a round counts only when the machine kept
// still: the client kept to its plan with each server, and the bare echo was
// quick. Neither depends on how nodenet or knot did. The figure is the median
// of the rounds' ratios with its 95 % interval.
func (b *bench) latency() error {
	w := clusterQuestions()
	realtime = true
	defer func() { realtime = false }()
	ours, err := b.own("nodenet", "nodenet", serverCore, 0)
	if err != nil {
		return err
	}
	defer ours.stop()
	knot, err := peers()[1].launch(b.dir, b.port(), 0)
	if err != nil || knot == nil {
		return err
	}
	defer knot.stop()
	echo, err := b.own("echo", "echo", serverCore, 0)
	if err != nil {
		return err
	}
	defer echo.stop()
	if err := fifo(1); err != nil {
		return err
	}
	defer fifo(0)
	rate, from := math.Inf(1), 0
	for _, s := range []*server{ours, knot} {
		var rates []float64
		for range 5 {
			t, err := saturate(s.port, w, &from, 100*time.Millisecond, 0)
			if err != nil {
				return err
			}
			rates = append(rates, float64(t.answers)/t.took.Seconds())
		}
		fmt.Fprintf(os.Stderr, "%-10s bears %.0f a second\n", s.name, median(rates))
		rate = min(rate, median(rates)/2)
	}
	servers := []*server{ours, knot, echo}
	p99 := make(map[string][]float64)
	dropped := 0
	for round := range roundsOfLatency * b.rounds {
		got := make(map[string]float64)
		reason := ""
		for i := range servers { // in another order each round
			s := servers[(i+round)%len(servers)]
			p, err := paced(s.port, w, rate, sliceOfLatency)
			if err != nil {
				return err
			}
			if len(p.took) == 0 { // it was started, and has answered: it did not run
				reason = s.name + " answered nothing"
			}
			got[s.name] = at(p.took, 0.99)
			fmt.Fprintf(os.Stderr, "round %d  %-10s at %.0f a second: p50 %.0f µs, p99 %.0f µs, p99.9 %.0f µs, %d lost; the client was %.0f µs late (p99)\n",
				round, s.name, rate, at(p.took, 0.5), got[s.name], at(p.took, 0.999), p.lost, at(p.late, 0.99))
			if at(p.late, 0.99) > lateClient {
				reason = "the client was late"
			}
		}
		if got["echo"] > slowEcho {
			reason = "the echo was slow"
		}
		if reason != "" {
			fmt.Fprintf(os.Stderr, "round %d is left out: %s\n", round, reason)
			dropped++
			continue
		}
		for name, v := range got {
			p99[name] = append(p99[name], v)
		}
	}
	figure := fmt.Sprintf("99th percentile at %s a second", perSecond(rate))
	var ratios []float64
	for i := range p99["nodenet"] {
		ratios = append(ratios, p99["nodenet"][i]/p99["knot"][i])
	}
	low, high, ok := interval(ratios)
	if !ok {
		b.rows = append(b.rows, row{figure, fmt.Sprintf("not valid: in %d of %d rounds the machine was busy", dropped, dropped+len(ratios)), "≤ 1.5 × knot", "—", false})
		return nil
	}
	b.rows = append(b.rows, row{
		figure, fmt.Sprintf("%.0f µs (echo %.0f µs)", median(p99["nodenet"]), median(p99["echo"])), fmt.Sprintf("≤ 1.5 × %.0f µs (knot)", median(p99["knot"])),
		fmt.Sprintf("%.2f (95 %%: %.2f to %.2f; %d rounds, %d left out)", median(ratios), low, high, len(ratios), dropped), high <= 1.5,
	})
	return nil
}

const (
	roundsOfLatency = 12 // for each round of the other figures
	sliceOfLatency  = 200 * time.Millisecond
	// A round counts only when the client kept to its plan and the bare echo was
	// quick: else it tells of the machine. In µs, 99th percentiles.
	lateClient = 500
	slowEcho   = 1000
)

// interval returns the 95 % confidence interval of the median, from order
// statistics; false: there are too few values for one.
func interval(v []float64) (low, high float64, ok bool) {
	n := len(v)
	if n < 6 { // that all lie on one side has a chance of 2^-(n-1)
		return 0, 0, false
	}
	v = slices.Clone(v)
	slices.Sort(v)
	k := max(0, int(math.Floor((float64(n)-1-1.96*math.Sqrt(float64(n)))/2)))
	return v[k], v[n-1-k], true
}

// realtime makes servers start under SCHED_FIFO.
var realtime bool

// fifo puts the calling thread, and those that it makes, under SCHED_FIFO with
// a priority; 0 takes it back.
func fifo(priority uint32) error {
	a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
	if priority == 0 {
		a.Policy = unix.SCHED_NORMAL
	}
	if err := unix.SchedSetAttr(0, &a, 0); err != nil {
		return fmt.Errorf("set the scheduling policy: %w", err)
	}
	return nil
}
