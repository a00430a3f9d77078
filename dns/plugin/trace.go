package plugin

import (
	"errors"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

// Trace is the way of one question through the chain, and of those that were
// asked on its behalf. Safe for concurrent use; the zero value is empty.
type Trace struct {
	mu    sync.Mutex
	steps []Step
}

// Step is one plugin that saw the question, or something it did.
type Step struct {
	Block  string // server block
	Plugin string // directive
	Depth  int    // 0: the client's question, else one asked on its behalf
	Name   string
	Type   uint16
	// Decision is what became of the question: answered, passed on, refused,
	// dropped, error; or, of a plugin's own record, a word of its own.
	Decision string
	Origin   string        // where the records come from: a service, a file and line, an upstream's zone
	Sources  []Source      // the records of the cluster behind it
	Age      time.Duration // of a cached answer
	TTL      time.Duration // that is left of a cached answer; negative: it is stale
	Upstream string        // that was asked
	Rcode    string        // of the answer; empty: none
	Err      string
	Took     time.Duration // with everything below it in the chain
}

// Source is a record of the cluster that a name comes from.
type Source struct {
	Kind  string // service, endpoint, lease, node, name; zone: the zone itself
	Key   string
	Owner string // the node's ID; empty: the kind's records may be any node's
}

// Steps returns what was recorded so far, in the order in which it began.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Step(nil), t.steps...)
}

func (t *Trace) open(s Step) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps = append(t.steps, s)
	return len(t.steps) - 1
}

func (t *Trace) shut(i int, passed bool, m *wire.Msg, err error, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.steps[i]
	s.Took = took
	switch {
	case errors.Is(err, ErrDrop):
		s.Decision = "dropped"
	case err != nil:
		s.Decision, s.Err = "error", err.Error()
	case passed:
		s.Decision = "passed on"
	case m == nil:
		s.Decision = "no answer"
	default:
		s.Decision = "answered"
	}
	if m != nil {
		s.Rcode = wire.RcodeToString[m.Rcode]
	}
}

// Record adds a step of the plugin itself when the question is traced. Block,
// depth and, where it is empty, the question are filled in.
func (q *Query) Record(s Step) {
	if q.Trace == nil {
		return
	}
	s.Block, s.Depth = q.Block, q.Depth
	if s.Name == "" {
		s.Name, s.Type = q.Name, q.Type
	}
	q.Trace.open(s)
}
