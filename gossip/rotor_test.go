package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nodenet/state"
)

// modelNode is a node of the rotation model: what it holds in memory and what
// lies on its disk, and whether it runs.
type modelNode struct {
	id   state.NodeID
	disk Keyring
	mem  Keyring
	up   bool
	left bool
	away bool // cut off from whoever drives
}

// model is a cluster in which every durable write can be the last thing that
// a node does.
type model struct {
	nodes   []*modelNode
	clock   time.Time
	writes  int
	crashAt int  // the write at which its node dies; -1: none
	before  bool // it dies before the write, not after it
	asks    int  // left until the driver dies; -1: no end
	stop    context.CancelFunc
	driver  state.NodeID
	secrets byte
	broken  error
}

var errDown = errors.New("it is down")

func newModel(n int) *model {
	m := &model{clock: time.Unix(1_700_000_000, 0), crashAt: -1, asks: -1}
	first := Keyring{Cluster: "c", Primary: m.secret()}
	for i := range n {
		m.nodes = append(m.nodes, &modelNode{id: state.NodeID(fmt.Sprintf("node%d", i+1)), disk: first, mem: first, up: true})
	}
	return m
}

func (m *model) secret() []byte {
	m.secrets++
	b := make([]byte, SecretSize)
	b[0] = m.secrets
	return b
}

func (m *model) node(id state.NodeID) *modelNode {
	return m.nodes[slices.IndexFunc(m.nodes, func(n *modelNode) bool { return n.id == id })]
}

// ask is the network and the answering node in one.
func (m *model) ask(ctx context.Context, to state.NodeID, q secretAsk) (*secretAnswer, error) {
	if m.asks == 0 {
		m.stop()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.asks--
	n := m.node(to)
	if !n.up || n.away && to != m.driver {
		return nil, errDown
	}
	r, err := m.apply(n, q)
	if err != nil {
		return nil, err
	}
	if !r.equal(n.mem) {
		m.writes++
		dies := m.writes-1 == m.crashAt
		if !dies || !m.before {
			n.disk = r
		}
		if dies {
			n.up = false
			if to == m.driver {
				m.stop()
			}
			m.check()
			return nil, errDown
		}
		n.mem = r
	}
	m.check()
	a := &secretAnswer{Primary: Fingerprint(r.Primary), Next: Fingerprint(r.Next), Previous: Fingerprint(r.Previous), PrevCA: caOf(r.Previous)}
	for _, x := range r.Retired {
		a.Retired = append(a.Retired, printOf(x.CA))
	}
	if q.Op == opFetch {
		a.Secret = r.find(q.Print)
	}
	return a, nil
}

func (m *model) apply(n *modelNode, q secretAsk) (Keyring, error) {
	switch q.Op {
	case opAdd:
		return n.mem.add(q.Secret)
	case opUse:
		return n.mem.use(q.Print)
	case opRetire:
		return n.mem.retire(q.Print, q.OldCA, m.clock)
	case opAbort:
		return n.mem.abort(q.Print)
	}
	return n.mem, nil
}

// check is what has to hold at every moment, between any two nodes whether
// they run or will when they come back: each can prove a secret to the other,
// and understands its packets.
func (m *model) check() {
	for _, a := range m.nodes {
		for _, b := range m.nodes {
			if a.left || b.left || m.broken != nil {
				continue
			}
			if !slices.ContainsFunc(b.disk.all(), func(x []byte) bool { return bytes.Equal(x, a.disk.Primary) }) {
				m.broken = fmt.Errorf("%s encrypts with %s, %s does not hold it: %s, %s", a.id, Fingerprint(a.disk.Primary), b.id, show(a.disk), show(b.disk))
			}
		}
	}
}

func show(r Keyring) string {
	return fmt.Sprintf("{%s next %s previous %s}", Fingerprint(r.Primary), Fingerprint(r.Next), Fingerprint(r.Previous))
}

// drive runs a driver on a node until it ends, dies or makes no headway.
func (m *model) drive(on *modelNode, o RotateOptions) (Rotation, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.stop, m.driver = cancel, on.id
	waits := 0
	r := &rotor{
		self: on.id, ask: m.ask, fresh: m.secret, lanes: 1, o: o, tick: time.Second,
		now: func() time.Time { return m.clock },
		nodes: func() []NodeSecrets {
			var out []NodeSecrets
			for _, n := range m.nodes {
				if !n.left {
					out = append(out, NodeSecrets{ID: n.id, Name: string(n.id)})
				}
			}
			return out
		},
		pause: func(ctx context.Context, d time.Duration) error {
			m.clock = m.clock.Add(d)
			if waits++; waits > 20 {
				cancel()
			}
			return ctx.Err()
		},
	}
	if o.Abort {
		return r.abort(ctx)
	}
	return r.run(ctx)
}

// follow lets every node look at every other, as Gossip.follow does.
func (m *model) follow(t interface{ Fatalf(string, ...any) }) {
	m.crashAt, m.asks = -1, -1
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.stop = cancel
	for _, n := range m.nodes {
		for _, p := range m.nodes {
			if n == p || !n.up || !p.up || n.mem.settled() {
				continue
			}
			a, err := m.ask(ctx, p.id, secretAsk{Op: opState})
			if err != nil {
				continue
			}
			q := n.mem.follow(a)
			to := n
			if q.Op == opAdd {
				to = p
			}
			if q.Op != "" {
				if _, err := m.ask(ctx, to.id, q); err != nil {
					t.Fatalf("follow: %v", err)
				}
			}
		}
	}
}

func (m *model) heal() {
	m.crashAt, m.asks = -1, -1
	for _, n := range m.nodes {
		n.up, n.away, n.mem = true, false, n.disk
	}
}

// settledOn reports that all nodes hold one secret, the same.
func (m *model) settledOn() error {
	for _, n := range m.nodes {
		if n.left {
			continue
		}
		if !n.disk.settled() || !n.disk.equal(n.mem) || Fingerprint(n.disk.Primary) != Fingerprint(m.nodes[0].disk.Primary) {
			return fmt.Errorf("%s holds %s, %s %s", m.nodes[0].id, show(m.nodes[0].disk), n.id, show(n.disk))
		}
	}
	return m.broken
}

func TestRotation(t *testing.T) {
	m := newModel(3)
	old := Fingerprint(m.nodes[0].disk.Primary)
	var steps []string
	r, err := m.drive(m.nodes[1], RotateOptions{Progress: func(r Rotation) {
		if len(steps) == 0 || steps[len(steps)-1] != r.Step {
			steps = append(steps, r.Step)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.settledOn(); err != nil {
		t.Error(err)
	}
	if got := strings.Join(steps, " "); got != "none add use retire done" || r.Step != StepDone {
		t.Errorf("steps %s, then %s", got, r.Step)
	}
	if m.writes != 9 {
		t.Errorf("%d durable writes, want 3 a node", m.writes)
	}
	for _, n := range m.nodes {
		if _, ok := n.disk.retired(old); !ok || Fingerprint(n.disk.Primary) == old {
			t.Errorf("%s: %s, the old one is not retired", n.id, show(n.disk))
		}
	}
}

// A node dies at each of the durable writes, before or after it; meanwhile
// every pair of nodes can talk, and any node finishes what was begun.
func TestRotationCrashAtEveryWrite(t *testing.T) {
	for at := range 9 {
		for _, before := range []bool{true, false} {
			for driver := range 3 {
				for again := range 3 {
					name := fmt.Sprintf("write %d before=%t driver %d then %d", at, before, driver+1, again+1)
					m := newModel(3)
					m.crashAt, m.before = at, before
					old := Fingerprint(m.nodes[0].disk.Primary)
					_, err := m.drive(m.nodes[driver], RotateOptions{})
					if m.writes <= at {
						t.Fatalf("%s: the rotation has %d writes only", name, m.writes)
					}
					// Once the old one is being retired, nobody is waited for.
					if err == nil && at < 6 {
						t.Errorf("%s: finished without the dead node", name)
					}
					m.heal()
					m.follow(t)
					if _, err := m.drive(m.nodes[again], RotateOptions{}); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					if err := m.settledOn(); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					if Fingerprint(m.nodes[0].disk.Primary) == old {
						t.Errorf("%s: the old secret is in use", name)
					}
				}
			}
		}
	}
}

// A node that is down holds up the switch; with force it goes on, and the
// node is shut out.
func TestRotationWaits(t *testing.T) {
	m := newModel(3)
	down := m.nodes[2]
	down.up = false
	old := Fingerprint(down.disk.Primary)
	var last Rotation
	keep := RotateOptions{Progress: func(r Rotation) { last = r }}
	if _, err := m.drive(m.nodes[0], keep); !errors.Is(err, context.Canceled) {
		t.Fatalf("rotation without node3: %v", err)
	}
	if last.Step != StepAdd || len(last.Waiting) != 1 || !strings.HasPrefix(last.Waiting[0], "node3 does not answer") {
		t.Errorf("it waits for %q in step %s", last.Waiting, last.Step)
	}
	for _, n := range m.nodes {
		if Fingerprint(n.disk.Primary) != old {
			t.Errorf("%s switched already", n.id)
		}
	}
	keep.Force = true
	r, err := m.drive(m.nodes[1], keep)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Skipped, []string{"node3"}) && !slices.Equal(last.Skipped, []string{"node3"}) {
		t.Errorf("skipped %v, %v", r.Skipped, last.Skipped)
	}
	if m.broken == nil || Fingerprint(down.disk.Primary) != old || m.nodes[0].disk.find(old) != nil {
		t.Errorf("node3 %s, node1 %s", show(down.disk), show(m.nodes[0].disk))
	}
	// With the secret file of a member it is back.
	var what int
	down.disk, what = down.disk.seen(m.nodes[0].disk.Primary)
	if what != fileNew {
		t.Errorf("the copied file is %d", what)
	}
	m.heal()
	m.follow(t)
	m.follow(t)
	m.broken = nil // until then it was shut out
	if err := m.settledOn(); err != nil {
		t.Error(err)
	}
}

func TestRotationAbort(t *testing.T) {
	m := newModel(3)
	old := Fingerprint(m.nodes[0].disk.Primary)
	m.nodes[2].up = false
	m.drive(m.nodes[0], RotateOptions{})
	if m.nodes[1].disk.settled() {
		t.Fatal("nothing to abort")
	}
	if _, err := m.drive(m.nodes[1], RotateOptions{Abort: true}); err == nil || !strings.Contains(err.Error(), "node3") {
		t.Errorf("abort without node3: %v", err)
	}
	m.heal()
	if _, err := m.drive(m.nodes[1], RotateOptions{Abort: true}); err != nil {
		t.Fatal(err)
	}
	if err := m.settledOn(); err != nil || Fingerprint(m.nodes[0].disk.Primary) != old {
		t.Errorf("after the abort: %v, %s", err, show(m.nodes[0].disk))
	}
	// What is in use cannot be taken back.
	m.crashAt = m.writes + 4 // the first "use" has been written
	m.drive(m.nodes[0], RotateOptions{})
	m.heal()
	if _, err := m.drive(m.nodes[1], RotateOptions{Abort: true}); err == nil || !strings.Contains(err.Error(), "in use already") {
		t.Errorf("abort of what is used: %v", err)
	}
	// Two begun apart exclude each other, and abort clears both.
	m = newModel(2)
	for _, n := range m.nodes {
		n.disk, _ = n.disk.add(m.secret())
	}
	m.heal()
	if _, err := m.drive(m.nodes[0], RotateOptions{}); err == nil || !strings.Contains(err.Error(), "--abort") {
		t.Errorf("two rotations: %v", err)
	}
	if _, err := m.drive(m.nodes[0], RotateOptions{Abort: true}); err != nil {
		t.Error(err)
	}
	if err := m.settledOn(); err != nil {
		t.Error(err)
	}
}

// An abort that meets a switch on its way: the node that switched hands the
// secret to the one that dropped it.
func TestRotationAbortRace(t *testing.T) {
	m := newModel(2)
	s := m.secret()
	m.nodes[0].disk, _ = m.nodes[0].disk.add(s)
	m.nodes[0].disk, _ = m.nodes[0].disk.use(Fingerprint(s))
	m.heal()
	m.follow(t) // node1 gives
	m.follow(t) // node2 switches
	if got := m.nodes[1].disk; Fingerprint(got.Primary) != Fingerprint(s) {
		t.Errorf("node2 %s", show(got))
	}
	m.broken = nil
	if _, err := m.drive(m.nodes[1], RotateOptions{}); err != nil {
		t.Error(err)
	}
	if err := m.settledOn(); err != nil {
		t.Error(err)
	}
}

// Whatever fails, in whatever order: nobody is ever shut out, and in the end
// one run finishes.
func TestRotationUnderFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(rapid.IntRange(2, 5).Draw(t, "nodes"))
		pick := func() *modelNode { return m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")] }
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			switch rapid.IntRange(0, 6).Draw(t, "event") {
			case 0, 1: // a driver that may die, or take a node with it
				m.asks = rapid.IntRange(-1, 40).Draw(t, "asks")
				m.crashAt = m.writes + rapid.IntRange(-1, 12).Draw(t, "crash")
				m.before = rapid.Bool().Draw(t, "before")
				if n := pick(); n.up {
					m.drive(n, RotateOptions{})
				}
			case 2:
				if n := pick(); n.up {
					m.asks = rapid.IntRange(-1, 20).Draw(t, "asks")
					m.drive(n, RotateOptions{Abort: true})
				}
			case 3:
				pick().up = false
			case 4:
				n := pick()
				n.up, n.mem = true, n.disk
			case 5:
				pick().away = rapid.Bool().Draw(t, "away")
			case 6: // a node joins with a token of another one
				if from := pick(); from.up && len(m.nodes) < 7 {
					r := Keyring{Cluster: "c", Primary: from.mem.Primary, Next: from.mem.Next, Previous: from.mem.Previous}
					m.nodes = append(m.nodes, &modelNode{id: state.NodeID(fmt.Sprintf("node%d", len(m.nodes)+1)), disk: r, mem: r, up: true})
				}
			}
			if m.broken != nil {
				t.Fatal(m.broken)
			}
		}
		m.heal()
		m.follow(t)
		_, err := m.drive(pick(), RotateOptions{})
		if err != nil && strings.Contains(err.Error(), "--abort") {
			// Two were begun on different sides of a cut.
			if _, err := m.drive(pick(), RotateOptions{Abort: true}); err != nil {
				t.Fatal(err)
			}
			_, err = m.drive(pick(), RotateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.settledOn(); err != nil {
			t.Fatal(err)
		}
	})
}
