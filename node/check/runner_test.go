package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// world is backends that answer as they are told, and a place for results.
type world struct {
	mu     sync.Mutex
	asked  map[string][]time.Duration // since start, by service
	answer func(ctx context.Context, p Probe) error
	kept   map[string]Result
	log    []string
	broken bool // Store fails
	start  time.Time
}

func newWorld() *world {
	return &world{asked: map[string][]time.Duration{}, kept: map[string]Result{}, start: time.Now(), answer: func(context.Context, Probe) error { return nil }}
}

func (w *world) ask(ctx context.Context, p Probe) error {
	w.mu.Lock()
	w.asked[p.Service] = append(w.asked[p.Service], time.Since(w.start))
	answer := w.answer
	w.mu.Unlock()
	return answer(ctx, p)
}

func (w *world) load(key string) (Result, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.kept[key]
	return r, ok
}

func (w *world) store(_ context.Context, key string, r Result) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return errors.New("disk full")
	}
	w.kept[key] = r
	w.log = append(w.log, fmt.Sprintf("%s %t %q %d", key, r.OK, r.Why, r.Step))
	return nil
}

// took returns what was stored since the last call.
func (w *world) took() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.log
	w.log = nil
	return out
}

func (w *world) says(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = func(context.Context, Probe) error { return err }
}

// run starts a runner in a bubble of time.
func (w *world) run(t *testing.T, duties map[string]Duty) *Runner {
	t.Helper()
	r, err := New(Options{Load: w.load, Store: w.store, run: w.ask})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	r.Set(duties)
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done })
	synctest.Wait()
	return r
}

func tcp(name string) Duty { return Duty{Probe: Probe{Type: "tcp", Service: name}, Ready: true} }

func same(t *testing.T, what string, want, got []string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestRiseAndFall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		d := tcp("a")
		d.Interval, d.Rise, d.Fall = 10*time.Second, 2, 3
		w.run(t, map[string]Duty{"a": d})
		time.Sleep(time.Minute)
		same(t, "a backend that is well", nil, w.took())
		w.says(errors.New("refused"))
		time.Sleep(25 * time.Second) // two or three answers, for sure not four
		if n := len(w.took()); n > 1 {
			t.Errorf("%d results", n)
		}
		time.Sleep(15 * time.Second)
		if got, _ := w.load("a"); got.OK || got.Why != "refused" || time.Since(got.Since) > 25*time.Second {
			t.Errorf("got %+v", got)
		}
		w.took()
		time.Sleep(time.Minute)
		same(t, "failing for long", nil, w.took())
		w.says(nil)
		time.Sleep(11 * time.Second) // one answer, perhaps two
		w.says(errors.New("again"))
		time.Sleep(5 * time.Second)
		w.took()
		w.says(nil)
		time.Sleep(time.Minute)
		if got, _ := w.load("a"); !got.OK || got.Why != "" {
			t.Errorf("well again: %+v", got)
		}
	})
}

// The first answer about a backend of which nothing is known counts at once:
// one that does not listen yet gets no connections.
func TestFirstAnswerCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.says(errors.New("refused"))
		w.kept["known"] = Result{OK: true, Since: time.Now()}
		w.run(t, map[string]Duty{"new": tcp("new"), "known": tcp("known")})
		time.Sleep(time.Second)
		same(t, "after the first answers", []string{`new false "refused" 0`}, w.took())
		time.Sleep(3 * time.Second)
		same(t, "after the second", []string{`known false "refused" 0`}, w.took())
	})
}

// One that hangs, and a hundred that do, leave the others' schedule alone, and
// no check is asked while its last question is under way.
func TestHangingCheckDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		under := map[string]int{}
		w.answer = func(ctx context.Context, p Probe) error {
			if p.Service == "well" {
				return nil
			}
			w.mu.Lock()
			under[p.Service]++
			if under[p.Service] > 1 {
				t.Errorf("%s is asked twice at a time", p.Service)
			}
			w.mu.Unlock()
			<-ctx.Done()
			w.mu.Lock()
			under[p.Service]--
			w.mu.Unlock()
			return errTimeout
		}
		duties := map[string]Duty{"well": tcp("well")}
		for i := range 100 {
			name := fmt.Sprint("hangs-", i)
			d := tcp(name)
			d.Timeout = d.filled().Interval
			duties[name] = d
		}
		w.run(t, duties)
		time.Sleep(20*time.Second + 100*time.Millisecond)
		w.mu.Lock()
		defer w.mu.Unlock()
		at := w.asked["well"]
		if len(at) < 9 || len(at) > 12 {
			t.Errorf("asked at %v", at)
		}
		for i := 1; i < len(at); i++ {
			if gap := at[i] - at[i-1]; gap < 1800*time.Millisecond || gap > 2200*time.Millisecond {
				t.Errorf("%s between two questions", gap)
			}
		}
	})
}

func TestChecksSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		duties := map[string]Duty{}
		for i := range 200 {
			name := fmt.Sprint(i)
			duties[name] = tcp(name)
		}
		w.run(t, duties)
		time.Sleep(time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		var last []time.Duration
		for _, at := range w.asked {
			last = append(last, at[len(at)-1])
		}
		slices.Sort(last)
		if spread := last[len(last)-1] - last[0]; spread < time.Second {
			t.Errorf("after a minute all are asked within %s", spread)
		}
	})
}

// A slow start goes up by eighths, survives a restart and ends for good.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		d := tcp("a")
		d.SlowStart, d.Created = 80*time.Second, time.Now()
		ctx, stop := context.WithCancel(t.Context())
		r, _ := New(Options{Load: w.load, Store: w.store, run: w.ask})
		r.Set(map[string]Duty{"a": d})
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		time.Sleep(25 * time.Second)
		same(t, "first steps", []string{`a true "" 1`, `a true "" 2`, `a true "" 3`}, w.took())
		stop()
		<-done
		time.Sleep(20 * time.Second)
		w.run(t, map[string]Duty{"a": d})
		same(t, "after a restart", []string{`a true "" 5`}, w.took())
		time.Sleep(time.Hour)
		same(t, "to the end", []string{`a true "" 6`, `a true "" 7`, `a true "" 0`}, w.took())
		w.says(errors.New("refused"))
		time.Sleep(10 * time.Second)
		w.says(nil)
		time.Sleep(5 * time.Second)
		same(t, "well again it starts anew", []string{`a false "refused" 0`, `a true "" 1`}, w.took())
	})
}

// Without a check a slow start begins when the endpoint becomes ready, and a
// backend that was there before the service is not new.
func TestSlowStartWithoutCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		old := Duty{SlowStart: 8 * time.Second, Ready: true, Created: time.Now().Add(-time.Minute)}
		booting := Duty{SlowStart: 8 * time.Second, Created: time.Now()}
		r := w.run(t, map[string]Duty{"old": old})
		same(t, "old", []string{`old true "" 0`}, w.took())
		r.Set(map[string]Duty{"new": booting})
		time.Sleep(time.Minute)
		same(t, "not ready", []string{`new true "" 0`}, w.took())
		booting.Ready = true
		r.Set(map[string]Duty{"new": booting})
		time.Sleep(2500 * time.Millisecond)
		same(t, "ready", []string{`new true "" 1`, `new true "" 2`, `new true "" 3`}, w.took())
	})
}

func TestResultIsStoredLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.broken = true
		w.says(errors.New("refused"))
		w.run(t, map[string]Duty{"a": tcp("a")})
		time.Sleep(5 * time.Second)
		same(t, "while the disk is full", nil, w.took())
		w.mu.Lock()
		w.broken = false
		w.mu.Unlock()
		time.Sleep(1100 * time.Millisecond)
		same(t, "afterwards", []string{`a false "refused" 0`}, w.took())
	})
}

func TestSetChangesAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		r := w.run(t, map[string]Duty{"a": tcp("a"), "b": tcp("b")})
		time.Sleep(5 * time.Second)
		d := tcp("a2")
		d.Interval = 100 * time.Millisecond
		d.Always = true
		r.Set(map[string]Duty{"a": d})
		same(t, "told although it is well", []string{`a true "" 0`}, w.took())
		w.mu.Lock()
		b, a := len(w.asked["b"]), len(w.asked["a"])
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.asked["b"]) != b || len(w.asked["a"]) != a {
			t.Error("a check that ended goes on")
		}
		if n := len(w.asked["a2"]); n < 85 || n > 115 {
			t.Errorf("%d questions in 10 s, want about 100", n)
		}
	})
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	r, err := New(Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	r.metrics.ran("tcp", nil, time.Second)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range all {
		names = append(names, f.GetName())
	}
	same(t, "metrics", []string{"nodenet_service_check_backends", "nodenet_service_check_changes_total", "nodenet_service_check_failing",
		"nodenet_service_check_runs_total", "nodenet_service_check_seconds"}, names)
}
