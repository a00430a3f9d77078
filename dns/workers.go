package dns

import (
	"sync"
	"time"
)

// maxWorkers bounds the questions that are in the chains at a time. Most of
// them wait for an upstream.
const maxWorkers = 2048

// workerIdle is how long a worker waits for more work.
const workerIdle = 5 * time.Second

// workers runs jobs on goroutines that are kept for a while, because a stack
// that has grown for a message is worth keeping. The zero value is not usable.
type workers struct {
	idle chan func()
	quit chan struct{}
	mu   sync.Mutex
	n    int
	most int
	wg   sync.WaitGroup
	once sync.Once
}

func newWorkers(most int) *workers {
	return &workers{idle: make(chan func()), quit: make(chan struct{}), most: most}
}

// do runs a job soon. It never blocks; false: all workers are busy.
func (w *workers) do(job func()) bool {
	select {
	case w.idle <- job:
		return true
	default:
	}
	w.mu.Lock()
	full := w.n >= w.most
	if !full {
		w.n++
		w.wg.Add(1)
	}
	w.mu.Unlock()
	if full {
		return false
	}
	go w.work(job)
	return true
}

func (w *workers) work(job func()) {
	defer func() {
		w.mu.Lock()
		w.n--
		w.mu.Unlock()
		w.wg.Done()
	}()
	t := time.NewTimer(workerIdle)
	defer t.Stop()
	for {
		job()
		t.Reset(workerIdle)
		select {
		case job = <-w.idle:
		case <-t.C:
			return
		case <-w.quit:
			return
		}
	}
}

// stop ends the workers that wait and returns when the others have ended too.
// do must not be called any more.
func (w *workers) stop() {
	w.once.Do(func() { close(w.quit) })
	w.wg.Wait()
}
