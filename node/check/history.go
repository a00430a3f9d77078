package check

import (
	"reflect"
	"time"
)

// The defaults of a duty's zero fields.
const (
	DefaultInterval = 2 * time.Second
	DefaultTimeout  = time.Second
	DefaultRise     = 1
	DefaultFall     = 2
)

// Steps is in how many steps a backend gets to its whole share.
const Steps = 8

// Duty is one backend that this node checks, or whose slow start it counts.
type Duty struct {
	Probe             Probe // of Type "": none, the backend is always well
	Interval, Timeout time.Duration
	Rise, Fall        int // results in a row that take it in and out
	SlowStart         time.Duration
	Ready             bool      // but for its check it is to be used; SlowStart counts from then
	Created           time.Time // when it came to be
	// Always asks for a result even when it says what holds without one.
	Always bool
}

func (d Duty) filled() Duty {
	def := func(v *int, or int) {
		if *v == 0 {
			*v = or
		}
	}
	if d.Interval == 0 {
		d.Interval = DefaultInterval
	}
	if d.Timeout == 0 {
		d.Timeout = min(DefaultTimeout, d.Interval)
	}
	def(&d.Rise, DefaultRise)
	def(&d.Fall, DefaultFall)
	return d
}

func (d Duty) equal(o Duty) bool { return reflect.DeepEqual(d, o) }

// Result is what is known of a backend. Without one it is well and has its
// whole share, unless its service starts backends slowly.
type Result struct {
	OK    bool
	Why   string // it is not
	Since time.Time
	Step  uint8 // eighths of its share that it has by now; 0: all
}

// history makes results of single answers. It does no I/O and has no clock.
type history struct {
	duty      Duty
	ok        bool
	why       string
	since     time.Time
	untried   bool // nothing is known of it yet: the first answer counts at once
	good, bad int  // in a row
	start     time.Time
	kept      *Result // what is stored; nil: nothing
}

// begin takes up a duty with the result that is stored, if any.
func begin(d Duty, kept *Result, now time.Time) *history {
	h := &history{duty: d.filled(), ok: true, kept: kept, untried: kept == nil, since: now}
	switch {
	case kept != nil:
		h.ok, h.why, h.since = kept.OK || d.Probe.Type == "", kept.Why, kept.Since
		if kept.Step > 0 {
			h.start = kept.Since // goes on where it was
		}
	case !d.Created.IsZero() && d.Created.Before(now):
		h.since = d.Created
	}
	if kept == nil && d.Ready && now.Sub(h.since) < d.SlowStart {
		h.start = h.since
	}
	return h
}

// update changes the duty.
func (h *history) update(d Duty, now time.Time) {
	was := h.duty
	h.duty = d.filled()
	if d.Ready && !was.Ready {
		h.start = now
		if h.ok {
			h.since = now
		}
	}
	if !reflect.DeepEqual(was.Probe, h.duty.Probe) {
		h.good, h.bad = 0, 0
	}
	if h.duty.Probe.Type == "" {
		h.ok, h.why = true, ""
	}
}

// note takes one answer. It reports whether the backend came or went.
func (h *history) note(err error, now time.Time) (changed bool) {
	if err == nil {
		h.good, h.bad = h.good+1, 0
	} else {
		h.good, h.bad = 0, h.bad+1
	}
	first := h.untried
	h.untried = false
	switch {
	case err == nil && !h.ok && h.good >= h.duty.Rise:
		h.ok, h.why, h.since, h.start = true, "", now, now
		return true
	case err != nil && h.ok && (first || h.bad >= h.duty.Fall):
		h.ok, h.why, h.since, h.start = false, err.Error(), now, time.Time{}
		return true
	}
	return false
}

// step is how far the slow start is, and when the next step comes; zero: it is
// over.
func (h *history) step(now time.Time) (step uint8, next time.Time) {
	each := h.duty.SlowStart / Steps
	if h.start.IsZero() || each <= 0 || !h.ok {
		return 0, time.Time{}
	}
	k := 1 + max(0, now.Sub(h.start))/each
	if k >= Steps {
		return 0, time.Time{}
	}
	return uint8(k), h.start.Add(k * each)
}

// result is what is known now, and whether that has to be stored.
func (h *history) result(now time.Time) (Result, bool) {
	r := Result{OK: h.ok, Why: h.why, Since: h.since}
	r.Step, _ = h.step(now)
	if h.kept == nil {
		// With a slow start, no result means the first step: say that it is over.
		tried := !h.untried || h.duty.Probe.Type == ""
		return r, !r.OK || h.duty.SlowStart > 0 || h.duty.Always && tried
	}
	return r, r.OK != h.kept.OK || r.Step != h.kept.Step
}
