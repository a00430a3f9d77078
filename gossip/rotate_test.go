package gossip

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodenet/state"
)

// withFile gives a node a secret file, as the daemon does.
func withFile(o *Options) { o.SecretFile = filepath.Join(o.StateDir, "cluster.secret") }

func (n *testNode) secretFile(t *testing.T) []byte {
	t.Helper()
	s, err := ReadSecret(n.opts.SecretFile)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// secretCluster is a cluster whose nodes have secret files and records.
func (l *lab) secretCluster(n int, edit ...func(*Options)) []*testNode {
	l.t.Helper()
	ns := l.cluster(n, all(edit), withFile, func(o *Options) {
		if err := WriteSecret(o.SecretFile, o.Secret); err != nil {
			l.t.Fatal(err)
		}
	})
	l.equal(ns...)
	l.allAlive(ns...)
	return ns
}

func (n *testNode) rotate(t *testing.T, o RotateOptions) (Rotation, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return n.Rotate(ctx, o)
}

// restart ends the node and starts it from its disk, with the file that lies there.
func (n *testNode) restart(t *testing.T) {
	t.Helper()
	n.stop()
	n.startAgain(t)
}

func (n *testNode) startAgain(t *testing.T) {
	t.Helper()
	var err error
	if n.opts.Cluster, err = LoadCluster(n.dir); err != nil {
		t.Fatal(err)
	}
	n.opts.Secret = n.secretFile(t)
	n.start(nil)
}

// count says how many lines of the log have all the parts.
func (l *logBuf) count(parts ...string) (sum int) {
	for line := range strings.Lines(l.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			sum++
		}
	}
	return sum
}

// The secret changes under load: no stream is lost, nobody is suspected.
func TestRotateUnderLoad(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	// The daemon's own times: with the shorter ones of these tests a busy
	// machine loses links by itself.
	ns := l.secretCluster(3, func(o *Options) { o.ProbeInterval, o.PingInterval = 0, 0 })
	var links map[*link]bool
	// Where two dialed each other at once, one link replaces the other.
	eventually(t, "a full mesh that stays", func() bool {
		seen := map[*link]bool{}
		for _, n := range ns {
			for _, l := range n.someLinks() {
				seen[l] = true
			}
		}
		stays := len(seen) == 6 && maps.Equal(seen, links)
		links = seen
		time.Sleep(200 * time.Millisecond)
		return stays
	})
	old := ns[0].secretFile(t)
	before := map[string]int{}
	quiet := []string{"member down", "peer disconnected", "node suspect", "node dead", "peer refused"}
	for _, n := range ns {
		for _, q := range quiet {
			before[n.name+q] = n.log.count(q)
		}
	}
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		// Steady, not as much as the machine can do: starved, nobody answers
		// a probe in time.
		pace := time.NewTicker(2 * time.Millisecond)
		defer pace.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- i
				return
			case <-pace.C:
				ns[i%3].write(name(fmt.Sprintf("host%d", i%50)), clusterName(fmt.Sprintf("svc%d", i)))
			}
		}
	}()
	var steps []string
	r, err := ns[1].rotate(t, RotateOptions{Progress: func(r Rotation) {
		if len(steps) == 0 || steps[len(steps)-1] != r.Step {
			steps = append(steps, r.Step)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Some rounds of probes with the new key.
	began := time.Now()
	for _, n := range ns {
		eventually(t, n.name+" has answers to later probes", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, p := range ns {
				if p != n && !n.track.members[p.id.ID].acked.After(began) {
					return false
				}
			}
			return true
		})
	}
	close(stop)
	t.Logf("%d writes meanwhile, steps %v", <-done, steps)
	if r.Step != StepDone || !slices.Equal(steps, []string{StepNone, StepAdd, StepUse, StepRetire, StepDone}) {
		t.Errorf("steps %v, then %s", steps, r.Step)
	}
	l.equal(ns...)
	now := ns[0].secretFile(t)
	if bytes.Equal(now, old) {
		t.Error("the secret is the same")
	}
	for _, n := range ns {
		for _, q := range quiet {
			if c := n.log.count(q); c != before[n.name+q] {
				t.Errorf("%s logged %q %d times", n.name, q, c-before[n.name+q])
			}
		}
		for _, l := range n.someLinks() {
			if !links[l] {
				t.Errorf("%s has a new link to %s", n.name, l.name)
			}
		}
		ring, err := LoadKeyring(n.dir)
		if err != nil || !ring.settled() || !bytes.Equal(ring.Primary, now) || !bytes.Equal(n.secretFile(t), now) {
			t.Errorf("%s: %v, %s, file %s", n.name, err, show(ring), Fingerprint(n.secretFile(t)))
		}
		if st, err := os.Stat(filepath.Join(n.dir, keyringFile)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode of the keyring: %v, %v", n.name, st.Mode(), err)
		}
		if k := n.memberKeys.GetKeys(); len(k) != 1 || bytes.Equal(k[0], mustKeys(t, old).member) {
			t.Errorf("%s: memberlist has %d keys", n.name, len(k))
		}
		if b, err := os.ReadFile(filepath.Join(n.dir, keyringFile)); err != nil || bytes.Contains(b, old) {
			t.Errorf("%s: the old secret is still on disk: %v", n.name, err)
		}
	}
	// New connections work, and a restart changes nothing.
	ns[2].restart(t)
	l.equal(ns...)
	ns[2].announce(false)
	l.allAlive(ns...)
}

func mustKeys(t *testing.T, secret []byte) *keys {
	t.Helper()
	k, err := deriveKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A node that is away holds the rotation up. When it is forced, the node is
// told why nobody talks to it, and a copied file brings it back as it was.
func TestRotateWithoutOne(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.secretCluster(3)
	a, b, c := ns[0], ns[1], ns[2]
	eventually(t, "peers saved", func() bool { c, err := LoadCluster(c.dir); return err == nil && len(c.Peers) == 2 })
	c.stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := a.Rotate(ctx, RotateOptions{Progress: func(r Rotation) {
		if r.Step == StepAdd && len(r.Waiting) == 1 && strings.HasPrefix(r.Waiting[0], "node3 does not answer") {
			cancel() // the operator gives up
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	if got := b.Secrets(context.Background()); got.Step != StepAdd || got.To == "" {
		t.Errorf("node2 sees %+v", got)
	}
	// It is back before anybody forces anything: the other node goes on.
	c.startAgain(t)
	l.equal(ns...)
	if _, err := b.rotate(t, RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.secretFile(t), a.secretFile(t)) {
		t.Error("node3 has another secret")
	}
	l.allAlive(ns...)

	// Away again, and now for good.
	eventually(t, "peers saved", func() bool { c, err := LoadCluster(c.dir); return err == nil && len(c.Peers) == 2 })
	c.stop()
	stale := c.secretFile(t)
	token, _, err := a.IssueToken(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.rotate(t, RotateOptions{Force: true, ForceAfter: 300 * time.Millisecond})
	if err != nil || !slices.Equal(r.Skipped, []string{"node3"}) && r.Step != StepDone {
		t.Fatalf("forced: %v, %+v", err, r)
	}
	if _, _, _, err := join(t, token); err == nil || !strings.Contains(err.Error(), "rotated away") {
		t.Errorf("a token of before: %v", err)
	}
	c.startAgain(t)
	if !bytes.Equal(c.Secret(), stale) {
		t.Fatal("node3 learned the secret from nobody")
	}
	eventually(t, "node3 says what happened", func() bool { return c.log.has("WARN", "was retired while it was away", "nodectl join") })
	eventually(t, "a member says it too", func() bool {
		return a.log.has("WARN", "holds the cluster secret that was retired") || b.log.has("WARN", "holds the cluster secret that was retired")
	})
	eventually(t, "its status says so", func() bool {
		return slices.ContainsFunc(c.Status().Refused, func(r Refusal) bool { return strings.Contains(r.Reason, "retired") })
	})
	if len(c.someLinks()) != 0 {
		t.Error("node3 is connected with the retired secret")
	}
	// The file of a member, copied while the daemon runs.
	if err := WriteSecret(c.opts.SecretFile, a.secretFile(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node3 is back and holds the new secret only", func() bool {
		ring, err := LoadKeyring(c.dir)
		return err == nil && ring.settled() && bytes.Equal(ring.Primary, a.Secret())
	})
	c.announce(false)
	l.equal(ns...)
	l.allAlive(ns...)
}

// Who is connected with the old secret and was given no new one is cut off,
// and nobody else is.
func TestRotateCutsOffOthers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.secretCluster(2)
	a, b := ns[0], ns[1]
	// It has the secret, but never says that it is a node.
	mole := l.node("mole", nodeOpts{cluster: &Cluster{}, secret: a.Secret(), join: []string{a.sync(), b.sync()}})
	eventually(t, "the mole is connected", func() bool { return a.link(mole.id.ID) != nil && b.link(mole.id.ID) != nil })
	kept := a.link(b.id.ID)
	if _, err := a.rotate(t, RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, n := range ns {
		eventually(t, n.name+" has closed the mole's connection", func() bool {
			return n.link(mole.id.ID) == nil && n.log.has("peer disconnected", "mole", "does not prove")
		})
	}
	eventually(t, "and refuses another", func() bool { return mole.log.has("WARN", "was retired while it was away") })
	eventually(t, "the others have proved it", func() bool { return a.link(b.id.ID) != nil })
	if a.link(b.id.ID) != kept {
		t.Error("the link between the nodes was replaced")
	}
	if bytes.Equal(mole.Secret(), a.Secret()) {
		t.Error("the mole got the new secret")
	}
	if bytes.Equal(secretProof(a.Secret(), []byte("n"), a.id.ID, b.id.ID), secretProof(a.Secret(), []byte("n"), b.id.ID, a.id.ID)) {
		t.Error("an answer can be sent back")
	}
}

// A token brings a node back that missed a rotation; it stays the node that
// it was.
func TestRejoinByToken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.secretCluster(2)
	a, b := ns[0], ns[1]
	a.stop() // the founder, of all nodes
	if _, err := b.rotate(t, RotateOptions{Force: true, ForceAfter: 200 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	token, _, err := b.IssueToken(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := Join(ctx, token, a.dir, a.opts.SecretFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := b.Cluster(); !c.Bootstrap || c.ID != want.ID || c.RingID != want.RingID {
		t.Errorf("after the join: %+v", c)
	}
	a.startAgain(t)
	l.equal(a, b)
	a.announce(false)
	l.allAlive(a, b)
	if id, err := LoadIdentity(a.dir); err != nil || id.ID != a.id.ID {
		t.Errorf("another identity: %v", err)
	}
}

// A token that was made before is good until the old secret is retired, and
// brings both.
func TestTokenDuringRotation(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: NewSecret()})
	a.announce(false)
	eventually(t, "it listens", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.syncPort != 0 })
	var tokens []string
	for range 2 {
		token, _, err := a.IssueToken(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	next := NewSecret()
	for i, step := range []func(Keyring) (Keyring, error){
		func(r Keyring) (Keyring, error) { return r.add(next) },
		func(r Keyring) (Keyring, error) { return r.use(Fingerprint(next)) },
	} {
		if err := a.change(step); err != nil {
			t.Fatal(err)
		}
		_, dir, path, err := join(t, tokens[i])
		if err != nil {
			t.Fatal(err)
		}
		want := a.secrets.Load().Keyring
		got, err := LoadKeyring(dir)
		if err != nil || !bytes.Equal(got.Primary, want.Primary) || !bytes.Equal(got.Next, want.Next) || !bytes.Equal(got.Previous, want.Previous) {
			t.Errorf("step %d: joined with %s: %v, want %s", i, show(got), err, show(want))
		}
		if s, err := ReadSecret(path); err != nil || !bytes.Equal(s, want.Primary) {
			t.Errorf("step %d: secret file %s: %v", i, Fingerprint(s), err)
		}
	}
}

// Two nodes understand each other as long as they have one secret in common,
// whichever each of them uses.
func TestOneSecretInCommon(t *testing.T) {
	x, y, z := NewSecret(), NewSecret(), NewSecret()
	rings := map[string]Keyring{
		"x": {Primary: x}, "x+y": {Primary: x, Next: y}, "y+x": {Primary: y, Previous: x}, "y": {Primary: y},
		"z": {Primary: z}, "y-x": {Primary: y, Retired: []Retired{{CA: caOf(x), At: 1}}},
	}
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for an, a := range rings {
		for bn, b := range rings {
			sa, err := newSecrets(a, id)
			if err != nil {
				t.Fatal(err)
			}
			sb, err := newSecrets(b, id)
			if err != nil {
				t.Fatal(err)
			}
			common := slices.ContainsFunc(a.all(), func(s []byte) bool { return b.find(Fingerprint(s)) != nil })
			got, err := sb.verify(connState(t, sa))
			if common != (err == nil) || got != id.ID {
				t.Errorf("%s presented to %s: %v", an, bn, err)
			}
			_, isRetired := errors.AsType[*retiredError](err)
			if want := an == "x" && bn == "y-x"; isRetired != want {
				t.Errorf("%s presented to %s: %v, want it retired: %t", an, bn, err, want)
			}
		}
	}
	// A second certificate of another key proves nothing.
	thief, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	own, _ := newSecrets(Keyring{Primary: z}, thief)
	good, _ := newSecrets(Keyring{Primary: x}, id)
	own.cert.Certificate = append(own.cert.Certificate, good.cert.Certificate...)
	if _, err := good.verify(connState(t, own)); !errors.Is(err, errNotSigned) {
		t.Errorf("a borrowed certificate: %v", err)
	}
}

// What another hand puts into the secret file.
func TestSecretFileChanges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.secretCluster(2)
	a, b := ns[0], ns[1]
	old, next := a.Secret(), NewSecret()
	// Configuration management writes a new one everywhere, one node later.
	if err := WriteSecret(a.opts.SecretFile, next); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node1 accepts it too", func() bool { return bytes.Equal(a.secrets.Load().Next, next) })
	a.restart(t)
	l.equal(a, b)
	if r := a.secrets.Load(); !bytes.Equal(r.Primary, old) || !bytes.Equal(r.Next, next) {
		t.Errorf("after a restart node1 holds %s", show(r.Keyring))
	}
	if err := WriteSecret(b.opts.SecretFile, next); err != nil {
		t.Fatal(err)
	}
	a.announce(false)
	if r, err := b.rotate(t, RotateOptions{}); err != nil || r.From != Fingerprint(next) {
		t.Fatalf("rotated to %s, want that of the file, %s: %v", r.From, Fingerprint(next), err)
	}
	// It puts the old one back: the node goes on, and says so.
	if err := WriteSecret(a.opts.SecretFile, old); err != nil {
		t.Fatal(err)
	}
	a.restart(t)
	l.equal(a, b)
	if !bytes.Equal(a.Secret(), next) || !a.log.has("ERROR", "holds a secret that was retired") {
		t.Error("the retired secret of the file was taken, or nobody said anything")
	}
	eventually(t, "it is seen on other nodes", func() bool {
		return slices.ContainsFunc(b.Secrets(context.Background()).Nodes, func(n NodeSecrets) bool { return strings.Contains(n.Note, "was retired") })
	})
	// The node ends between the two writes of a switch.
	third := NewSecret()
	b.stop()
	ring, err := LoadKeyring(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	ring, _ = ring.add(third)
	ring, _ = ring.use(Fingerprint(third))
	if err := ring.Save(b.dir); err != nil {
		t.Fatal(err)
	}
	b.startAgain(t)
	if got := b.secretFile(t); !bytes.Equal(got, third) {
		t.Errorf("the file holds %s, want it written again", Fingerprint(got))
	}
}

// A step that cannot be saved has not happened.
func TestRotateDiskFull(t *testing.T) {
	l := newLab(t)
	full := false
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: NewSecret(), edit: func(o *Options) {
		o.saveRing = func(r Keyring) error {
			if full {
				return errors.New("no space left on device")
			}
			return r.Save(o.StateDir)
		}
	}})
	a.announce(false)
	eventually(t, "the keyring is saved", func() bool { _, err := LoadKeyring(a.dir); return err == nil })
	full = true
	old := a.Secret()
	if _, err := a.rotate(t, RotateOptions{}); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("rotate: %v", err)
	}
	if r := a.secrets.Load(); !r.settled() || !bytes.Equal(r.Primary, old) || len(a.memberKeys.GetKeys()) != 1 {
		t.Errorf("it holds %s", show(r.Keyring))
	}
}

// Only a node with a record is given a secret; steps that make no sense are refused.
func TestSecretRequests(t *testing.T) {
	l := newLab(t)
	ns := l.cluster(2)
	a, b := ns[0], ns[1]
	l.equal(a, b)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	print := Fingerprint(a.Secret())
	for _, tt := range []struct {
		name string
		q    secretAsk
		want string // of the error; empty: none
	}{
		{"state", secretAsk{Op: opState}, ""},
		{"fetch what it holds", secretAsk{Op: opFetch, Print: print}, ""},
		{"fetch what it does not hold", secretAsk{Op: opFetch, Print: Fingerprint(NewSecret())}, "not held here"},
		{"add under a wrong name", secretAsk{Op: opAdd, Print: print, Secret: NewSecret()}, "not the one"},
		{"add a short one", secretAsk{Op: opAdd, Secret: []byte("short")}, "not the one"},
		{"use what it does not hold", secretAsk{Op: opUse, Print: "00"}, "not held here"},
		{"retire under what it does not use", secretAsk{Op: opRetire, Print: "00"}, "not in use"},
		{"retire with a damaged key", secretAsk{Op: opRetire, Print: print, OldCA: []byte{1}}, ""},
		{"retire what is in use", secretAsk{Op: opRetire, Print: print, OldCA: caOf(a.Secret())}, ""},
		{"abort what is in use", secretAsk{Op: opAbort, Print: print}, ""},
		{"something else", secretAsk{Op: "explode"}, "unknown operation"},
	} {
		_, err := b.askSecret(ctx, a.id.ID, tt.q)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if r := a.secrets.Load(); !r.settled() || Fingerprint(r.Primary) != print || len(r.Retired) != 0 {
			t.Fatalf("%s: it holds %s, retired %d", tt.name, show(r.Keyring), len(r.Retired))
		}
	}
	b.write(state.Put(state.Owner, state.KindNode, "self", state.Node{Name: b.name, Advertise: b.addr, Left: true}))
	eventually(t, "node2 has left", func() bool { return !a.isNode(b.id.ID) })
	if _, err := b.askSecret(ctx, a.id.ID, secretAsk{Op: opFetch, Print: print}); err == nil || !strings.Contains(err.Error(), "only a node with a record") {
		t.Errorf("a node that left gets the secret: %v", err)
	}
}

// connState is what the other side sees of the certificates.
func connState(t *testing.T, s *secrets) (cs tls.ConnectionState) {
	t.Helper()
	for _, der := range s.cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		cs.PeerCertificates = append(cs.PeerCertificates, c)
	}
	return cs
}
