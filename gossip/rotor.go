package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"nodenet/state"
)

const (
	secretTimeout = 3 * time.Second // for one node's answer
	rotateAtOnce  = 16              // nodes asked at the same time
)

// Steps of a rotation, in Rotation.Step.
const (
	StepNone   = "none"   // no rotation is under way
	StepAdd    = "add"    // the nodes get the new secret; all use the old one
	StepUse    = "use"    // all hold both; one after the other uses the new one
	StepRetire = "retire" // all use the new one; the old one is removed
	StepDone   = "done"
	StepAbort  = "abort"
)

// RotateOptions says how to rotate.
type RotateOptions struct {
	// Force goes on without nodes that have not answered for ForceAfter.
	Force      bool
	ForceAfter time.Duration // 0: 5 s
	// Abort drops a new secret that no node uses yet.
	Abort bool
	// Progress, which may be nil, hears what each look at the nodes finds.
	Progress func(Rotation)
}

// Rotation is how far a rotation has come. Secrets are named by their fingerprints.
type Rotation struct {
	Step     string
	From, To string
	Nodes    []NodeSecrets // by name
	Waiting  []string      // what has to happen before it goes on
	Skipped  []string      // names of nodes that Force went on without
}

// NodeSecrets is what one node holds.
type NodeSecrets struct {
	ID       state.NodeID
	Name     string
	State    state.Liveness
	Answered bool
	Primary  string
	Next     string
	Previous string
	Note     string // what its operator should know
	Err      string // why it did not answer, or did not do what was asked

	retired []string
	prevCA  []byte
}

func (n *NodeSecrets) holds(print string) bool { return n.Primary == print || n.Next == print }

// rotor drives a rotation. It keeps nothing on disk and decides only by what
// the nodes answer: any node can go on where another one stopped.
type rotor struct {
	self  state.NodeID
	nodes func() []NodeSecrets // who counts: ID, Name and State
	ask   func(context.Context, state.NodeID, secretAsk) (*secretAnswer, error)
	fresh func() []byte
	now   func() time.Time
	pause func(context.Context, time.Duration) error
	tick  time.Duration // between looks while something is missing
	rest  time.Duration // between use and retire: what is on the way arrives
	lanes int           // nodes asked at the same time
	o     RotateOptions

	begun   time.Time
	heard   map[state.NodeID]time.Time
	started bool // a secret was made or found
	refused map[state.NodeID]string
	rested  bool
}

// Rotate replaces the cluster's secret, or goes on with a rotation that is
// under way, until it is finished or ctx ends. Ending it loses nothing: the
// next call, on whatever node, goes on. Existing connections are not touched.
func (g *Gossip) Rotate(ctx context.Context, o RotateOptions) (Rotation, error) {
	if g.Cluster().ID == "" {
		return Rotation{Step: StepNone}, errors.New("rotate the cluster secret: this node belongs to no cluster yet")
	}
	if !g.rotating.CompareAndSwap(false, true) {
		return Rotation{Step: StepNone}, errors.New("rotate the cluster secret: this node does that already; wait, or interrupt the other command")
	}
	defer g.rotating.Store(false)
	r := g.rotor(o)
	if o.Abort {
		return r.abort(ctx)
	}
	return r.run(ctx)
}

// Secrets asks every node what it holds.
func (g *Gossip) Secrets(ctx context.Context) Rotation {
	r := g.rotor(RotateOptions{})
	s := r.look(ctx)
	s.judge(r)
	return s.Rotation
}

func (g *Gossip) rotor(o RotateOptions) *rotor {
	return &rotor{
		self: g.self, nodes: g.rotateNodes, ask: g.askSecret, fresh: NewSecret, now: time.Now, tick: g.t.sync, rest: g.t.probe, lanes: rotateAtOnce,
		pause: func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-t.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}, o: o,
	}
}

// rotateNodes lists the nodes that have to take part: all that have a record
// and have neither left nor been forgotten, and this one.
func (g *Gossip) rotateNodes() []NodeSecrets {
	sn := g.store.Snapshot()
	gone, live := sn.Gone(), sn.Live()
	out := []NodeSecrets{{ID: g.self, Name: or(g.o.Name, g.self.Short()), State: state.Alive}}
	for r, n := range state.All[state.Node](sn) {
		if id := r.ID.Owner; id != g.self && !n.Left && !gone.Node(id) {
			out = append(out, NodeSecrets{ID: id, Name: or(n.Name, id.Short()), State: live[id].State})
		}
	}
	slices.SortFunc(out, func(a, b NodeSecrets) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.ID), string(b.ID)))
	})
	return out
}

// survey is what one look found.
type survey struct {
	Rotation
	missing []*NodeSecrets // not answered, and not skipped
	used    bool           // some node uses the new secret: that was decided
	retired bool           // likewise, some node has retired the old one
	oldCA   []byte
}

// look asks all nodes what they hold.
func (r *rotor) look(ctx context.Context) *survey {
	if r.heard == nil {
		r.heard, r.refused, r.begun = map[state.NodeID]time.Time{}, map[state.NodeID]string{}, r.now()
	}
	s := &survey{Rotation: Rotation{Step: StepNone, Nodes: r.nodes()}}
	var mu sync.Mutex
	r.each(s.Nodes, func(n *NodeSecrets) {
		a, err := r.ask(ctx, n.ID, secretAsk{Op: opState})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			n.Err = err.Error()
			return
		}
		r.heard[n.ID] = r.now()
		n.Answered = true
		n.Primary, n.Next, n.Previous, n.Note = printable(a.Primary), printable(a.Next), printable(a.Previous), printable(a.Note)
		n.retired, n.prevCA = a.Retired, a.PrevCA
		n.Err = r.refused[n.ID]
	})
	return s
}

func (r *rotor) each(nodes []NodeSecrets, fn func(*NodeSecrets)) {
	slots := make(chan struct{}, r.lanes)
	var wg sync.WaitGroup
	for i := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			fn(&nodes[i])
		})
	}
	wg.Wait()
}

// judge finds which rotation is under way, if any, and how far it is.
func (s *survey) judge(r *rotor) error {
	news, primaries, olds := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if !n.Answered {
			if r.skips(n) {
				s.Skipped = append(s.Skipped, n.Name)
			} else {
				s.missing = append(s.missing, n)
			}
			continue
		}
		primaries[n.Primary] = true
		if n.Next != "" {
			news[n.Next] = true
		}
		if n.Previous != "" {
			news[n.Primary] = true
			olds[n.Previous] = true
			s.oldCA = n.prevCA
		}
	}
	for i := range s.Nodes {
		// A node that was away may still have to finish the rotation before
		// this one; it does so by itself, see Gossip.follow.
		if n := &s.Nodes[i]; n.Answered && n.Next != "" {
			delete(news, n.Primary)
		}
	}
	switch {
	case len(news) == 0 && len(primaries) > 1:
		return fmt.Errorf("the nodes use %d different secrets and none holds two of them: %s", len(primaries), s.who(func(n *NodeSecrets) string { return n.Primary }))
	case len(news) == 0:
		for p := range primaries {
			s.From = p
		}
		return nil
	case len(news) > 1:
		return fmt.Errorf("more than one new secret is on its way: %s; drop those that nobody uses yet with `nodectl secret rotate --abort`, then begin again",
			s.who(func(n *NodeSecrets) string {
				if n.Previous != "" {
					return n.Primary + " (used)"
				}
				return n.Next
			}))
	}
	for p := range news {
		s.To = p
	}
	for p := range primaries {
		if p != s.To {
			olds[p] = true
		}
	}
	s.From = strings.Join(slices.Sorted(maps.Keys(olds)), ",")
	all, allUse := true, true
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if !n.Answered {
			continue
		}
		all, allUse = all && n.holds(s.To), allUse && n.Primary == s.To
		s.used = s.used || n.Primary == s.To
		if n.Primary == s.To && n.Previous == "" {
			for old := range olds {
				s.retired = s.retired || slices.Contains(n.retired, old)
			}
		}
	}
	whole := len(s.missing) == 0
	s.Step = StepAdd
	if all && whole || s.used {
		s.Step = StepUse
	}
	if all && allUse && (whole || s.retired) {
		s.Step = StepRetire
	}
	for _, n := range s.missing {
		s.Waiting = append(s.Waiting, fmt.Sprintf("%s does not answer (seen %s)", n.Name, n.State))
	}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Answered && n.Err != "" {
			s.Waiting = append(s.Waiting, n.Name+": "+n.Err)
		}
	}
	return nil
}

func (s *survey) who(of func(*NodeSecrets) string) string {
	var out []string
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Answered {
			if v := of(n); v != "" {
				out = append(out, n.Name+" "+v)
			}
		}
	}
	return strings.Join(out, ", ")
}

// skips says whether to go on without a node that has not answered.
func (r *rotor) skips(n *NodeSecrets) bool {
	since := r.heard[n.ID]
	if since.IsZero() {
		since = r.begun
	}
	return r.o.Force && r.now().Sub(since) >= or(r.o.ForceAfter, 5*time.Second)
}

func (r *rotor) tell(s *survey) {
	if r.o.Progress != nil {
		r.o.Progress(s.Rotation)
	}
}

// run looks, does what the next step asks, and looks again, until nothing is
// left. Each step rests on a fresh answer of every node that takes part.
func (r *rotor) run(ctx context.Context) (Rotation, error) {
	for {
		s := r.look(ctx)
		if err := ctx.Err(); err != nil {
			return s.Rotation, err
		}
		if err := s.judge(r); err != nil {
			r.tell(s)
			return s.Rotation, err
		}
		if s.To == "" && r.started {
			s.Step = StepDone
			r.tell(s)
			return s.Rotation, nil
		}
		if s.To == "" {
			r.tell(s)
			secret := r.fresh()
			if _, err := r.ask(ctx, r.self, secretAsk{Op: opAdd, Print: Fingerprint(secret), Secret: secret}); err != nil {
				return s.Rotation, fmt.Errorf("begin the rotation: %w", err)
			}
			r.started = true
			continue
		}
		r.started = true
		r.tell(s)
		moved, err := r.step(ctx, s)
		if err != nil {
			return s.Rotation, err
		}
		if moved {
			continue
		}
		if err := r.pause(ctx, r.tick); err != nil {
			return s.Rotation, err
		}
	}
}

// step does for each node what the survey allows, and reports whether any
// node did something.
func (r *rotor) step(ctx context.Context, s *survey) (moved bool, err error) {
	var secret []byte
	asks := map[state.NodeID]secretAsk{}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		switch {
		case !n.Answered:
		case !n.holds(s.To):
			if secret == nil {
				if secret, err = r.secret(ctx, s); err != nil {
					return false, err
				}
			}
			asks[n.ID] = secretAsk{Op: opAdd, Print: s.To, Secret: secret}
		case n.Primary != s.To && s.Step != StepAdd:
			asks[n.ID] = secretAsk{Op: opUse, Print: s.To}
		case n.Previous != "" && s.Step == StepRetire:
			asks[n.ID] = secretAsk{Op: opRetire, Print: s.To, OldCA: s.oldCA}
		case s.Step == StepRetire && s.oldCA != nil && !slices.Contains(n.retired, printOf(s.oldCA)):
			asks[n.ID] = secretAsk{Op: opRetire, Print: s.To, OldCA: s.oldCA} // it never held the old one
		}
	}
	if s.Step == StepRetire && !r.rested {
		r.rested = true
		if err := r.pause(ctx, r.rest); err != nil {
			return false, err
		}
		return true, nil // and look again: somebody new may have come
	}
	// The others first: while they have not done it, this node still shows
	// that there is something to go on with.
	own, mine := asks[r.self]
	delete(asks, r.self)
	moved = r.tellNodes(ctx, s, asks)
	if mine && ctx.Err() == nil {
		moved = r.tellNodes(ctx, s, map[state.NodeID]secretAsk{r.self: own}) || moved
	}
	return moved, ctx.Err()
}

func (r *rotor) tellNodes(ctx context.Context, s *survey, asks map[state.NodeID]secretAsk) (moved bool) {
	var mu sync.Mutex
	r.each(s.Nodes, func(n *NodeSecrets) {
		q, ok := asks[n.ID]
		if !ok {
			return
		}
		_, err := r.ask(ctx, n.ID, q)
		mu.Lock()
		defer mu.Unlock()
		delete(r.refused, n.ID)
		if err != nil {
			r.refused[n.ID] = err.Error()
			return
		}
		moved = true
	})
	return moved
}

// secret gets the new secret from whoever holds it, this node first.
func (r *rotor) secret(ctx context.Context, s *survey) ([]byte, error) {
	var holders []*NodeSecrets
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Answered && n.holds(s.To) {
			holders = append(holders, n)
		}
	}
	slices.SortStableFunc(holders, func(a, b *NodeSecrets) int {
		switch r.self {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	var errs []error
	for _, n := range holders {
		a, err := r.ask(ctx, n.ID, secretAsk{Op: opFetch, Print: s.To})
		switch {
		case err != nil:
			errs = append(errs, err)
		case Fingerprint(a.Secret) != s.To:
			errs = append(errs, fmt.Errorf("%s handed over another secret than it said", n.Name))
		default:
			return a.Secret, nil
		}
	}
	return nil, fmt.Errorf("get the new secret %s from a node that holds it: %w", s.To, errors.Join(errs...))
}

// abort drops new secrets that no node uses.
func (r *rotor) abort(ctx context.Context) (Rotation, error) {
	for {
		s := r.look(ctx)
		if err := ctx.Err(); err != nil {
			return s.Rotation, err
		}
		// What judge says about several new secrets is what abort is for.
		conflict := s.judge(r)
		used, next := map[string]bool{}, map[string]bool{}
		for i := range s.Nodes {
			n := &s.Nodes[i]
			if n.Answered {
				used[n.Primary] = true
			}
			if n.Next != "" {
				next[n.Next] = true
			}
		}
		drop := map[string]bool{}
		for p := range next {
			drop[p] = !used[p]
		}
		maps.DeleteFunc(drop, func(_ string, yes bool) bool { return !yes })
		s.Step = StepAbort
		switch {
		case len(drop) == 0 && s.used && conflict == nil:
			return s.Rotation, fmt.Errorf("abort the rotation: secret %s is in use already: %s; go on with `nodectl secret rotate`, then rotate again if need be",
				s.To, s.who(func(n *NodeSecrets) string { return n.Primary }))
		case len(s.missing) > 0 && (len(drop) > 0 || s.used):
			r.tell(s)
			if !r.o.Force {
				return s.Rotation, fmt.Errorf("abort the rotation: %s; a node that cannot be asked may use the new secret already: wait for it, or say --force",
					strings.Join(s.Waiting, "; "))
			}
			if err := r.pause(ctx, r.tick); err != nil {
				return s.Rotation, err
			}
			continue
		case len(drop) == 0:
			s.Waiting = nil
			r.tell(s)
			return s.Rotation, nil
		}
		r.tell(s)
		moved := false
		for p := range drop {
			asks := map[state.NodeID]secretAsk{}
			for i := range s.Nodes {
				if n := &s.Nodes[i]; n.Answered && n.Next == p {
					asks[n.ID] = secretAsk{Op: opAbort, Print: p}
				}
			}
			moved = r.tellNodes(ctx, s, asks) || moved
		}
		if !moved {
			if err := r.pause(ctx, r.tick); err != nil {
				return s.Rotation, err
			}
		}
	}
}
