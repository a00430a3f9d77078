package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"nodenet/state"
)

// methodSecret is the RPC by which the nodes change their secret. The new
// secret goes from node to node in it, inside TLS, whose session keys do not
// follow from the old secret. It never enters the tables: there it would lie
// in every state file and snapshot, under the very secret that may have leaked.
const methodSecret = "gossip.secret"

// Operations of methodSecret.
const (
	opState  = "state"  // say what is held
	opAdd    = "add"    // accept a new secret, too
	opUse    = "use"    // make it the primary one
	opRetire = "retire" // do not accept the former any more
	opAbort  = "abort"  // drop a new one that is not used yet
	opFetch  = "fetch"  // hand over a secret that the asker lacks
	opProve  = "prove"  // prove that a secret is held
)

type secretAsk struct {
	Op     string `cbor:"1,keyasint"`
	Print  string `cbor:"2,keyasint,omitempty"` // of the secret that is meant
	Secret []byte `cbor:"3,keyasint,omitempty"` // add
	OldCA  []byte `cbor:"4,keyasint,omitempty"` // retire: how to recognise the former
	Nonce  []byte `cbor:"5,keyasint,omitempty"` // prove
}

// secretAnswer is what a node holds, after what was asked.
type secretAnswer struct {
	Primary  string   `cbor:"1,keyasint"`
	Next     string   `cbor:"2,keyasint,omitempty"`
	Previous string   `cbor:"3,keyasint,omitempty"`
	Retired  []string `cbor:"4,keyasint,omitempty"` // newest last
	Note     string   `cbor:"5,keyasint,omitempty"` // what the operator should know
	Secret   []byte   `cbor:"6,keyasint,omitempty"` // fetch
	PrevCA   []byte   `cbor:"7,keyasint,omitempty"` // public key of Previous
	Proof    []byte   `cbor:"8,keyasint,omitempty"` // prove
}

// openSecrets reads what the node holds: the keyring of an earlier run, and
// what was put into the secret file since.
func (g *Gossip) openSecrets() error {
	r := Keyring{Cluster: g.cluster.ID, Primary: g.o.Secret}
	what := fileSame
	if g.o.StateDir != "" && g.cluster.ID != "" {
		saved, err := LoadKeyring(g.o.StateDir)
		switch {
		case err == nil && saved.Cluster == g.cluster.ID:
			r, what = saved.seen(g.o.Secret)
			if what == fileNew {
				if err := r.Save(g.o.StateDir); err != nil {
					return err
				}
			}
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			g.log.Error("keyring not used, the secret file is", "err", err)
		}
	}
	s, err := newSecrets(r, g.o.Identity)
	if err != nil {
		return err
	}
	if g.memberKeys, err = memberlist.NewKeyring(s.member, s.member[0]); err != nil {
		return fmt.Errorf("make membership keyring: %w", err)
	}
	g.secrets.Store(s)
	g.fileStat, _ = g.statSecret()
	g.fileSays(what, r)
	return nil
}

// fileSays reacts to what the secret file holds.
func (g *Gossip) fileSays(what int, r Keyring) {
	note := ""
	switch what {
	case fileNew:
		g.log.Warn("the secret file holds a new secret: it is accepted, the cluster goes on with the one it had until `nodectl secret rotate` is run",
			"file", g.o.SecretFile, "secret", Fingerprint(r.Next))
	case fileStale:
		note = g.writeSecret(r)
	case fileRetired:
		note = fmt.Sprintf("%s holds a secret that was retired; the node goes on with the cluster's, %s: put that one into what writes the file",
			or(g.o.SecretFile, "the secret file"), Fingerprint(r.Primary))
	case fileThird:
		note = fmt.Sprintf("%s holds yet another secret in the middle of a rotation: it is not taken; finish or abort the rotation first",
			or(g.o.SecretFile, "the secret file"))
	}
	if note != "" {
		g.log.Error("secret file", "note", note)
	}
	g.fileNote.Store(note)
}

// writeSecret brings the secret file up to date and returns what the operator
// should know when that is not possible.
func (g *Gossip) writeSecret(r Keyring) string {
	if g.o.SecretFile == "" {
		return ""
	}
	if err := WriteSecret(g.o.SecretFile, r.Primary); err != nil {
		return fmt.Sprintf("the secret file is not up to date, the node itself is: %v", err)
	}
	g.fileStat, _ = g.statSecret()
	return ""
}

// fileStat tells whether a file is still the one it was.
type fileStat struct {
	size int64
	mod  time.Time
}

func (g *Gossip) statSecret() (fileStat, bool) {
	if g.o.SecretFile == "" {
		return fileStat{}, false
	}
	fi, err := os.Stat(g.o.SecretFile)
	if err != nil {
		return fileStat{}, false
	}
	return fileStat{fi.Size(), fi.ModTime()}, true
}

// readSecretFile looks whether somebody has put another secret into the file.
// g.ringMu is held.
func (g *Gossip) readSecretFile() {
	st, ok := g.statSecret()
	if !ok || st == g.fileStat {
		return
	}
	g.fileStat = st
	secret, err := ReadSecret(g.o.SecretFile)
	if err != nil {
		g.fileNote.Store(err.Error())
		g.log.Error("secret file changed, but it is not usable", "err", err)
		return
	}
	r, what := g.secrets.Load().seen(secret)
	if what == fileNew {
		if err := g.hold(r); err != nil {
			g.fileStat = fileStat{} // try again
			g.log.Error("secret of the changed file not taken", "err", err)
			return
		}
	}
	g.fileSays(what, r)
}

// hold makes r what the node holds: on disk first, then for new connections
// and packets. Connections that exist are not touched. g.ringMu is held.
func (g *Gossip) hold(r Keyring) error {
	r.Cluster = g.Cluster().ID
	old := g.secrets.Load()
	s, err := newSecrets(r, g.o.Identity)
	if err != nil {
		return err
	}
	if g.o.StateDir != "" && r.Cluster != "" {
		if err := g.saveRing(r); err != nil {
			return err
		}
	}
	for _, k := range s.member {
		if err := g.memberKeys.AddKey(k); err != nil {
			return fmt.Errorf("add membership key: %w", err)
		}
	}
	if err := g.memberKeys.UseKey(s.member[0]); err != nil {
		return fmt.Errorf("use membership key: %w", err)
	}
	for _, k := range old.member {
		if !slices.ContainsFunc(s.member, func(x []byte) bool { return bytes.Equal(x, k) }) {
			if err := g.memberKeys.RemoveKey(k); err != nil {
				return fmt.Errorf("remove membership key: %w", err)
			}
		}
	}
	g.secrets.Store(s)
	if Fingerprint(old.Primary) != Fingerprint(r.Primary) {
		// The ring is what counts, the file follows it; a start between the
		// two writes finds the former secret there and repeats this.
		g.fileNote.Store(g.writeSecret(r))
	}
	return nil
}

func (g *Gossip) saveRing(r Keyring) error {
	if g.o.saveRing != nil {
		return g.o.saveRing(r)
	}
	return r.Save(g.o.StateDir)
}

// change carries out a step.
func (g *Gossip) change(step func(Keyring) (Keyring, error)) error {
	g.ringMu.Lock()
	defer g.ringMu.Unlock()
	g.readSecretFile()
	old := g.secrets.Load().Keyring
	r, err := step(old)
	if err != nil || r.equal(old) {
		return err
	}
	if err := g.hold(r); err != nil {
		return err
	}
	g.log.Info("cluster secret", "uses", Fingerprint(r.Primary), "next", Fingerprint(r.Next), "previous", Fingerprint(r.Previous))
	wake(g.wakeKeys)
	return nil
}

// serveSecret answers another node, or ourselves.
func (g *Gossip) serveSecret(_ context.Context, from state.NodeID, req []byte) ([]byte, error) {
	var q secretAsk
	if err := frameDec.Unmarshal(req, &q); err != nil {
		return nil, fmt.Errorf("request about the secret: %w", err)
	}
	var err error
	switch q.Op {
	case opProve:
		s := g.secrets.Load().find(q.Print)
		if s == nil {
			return nil, fmt.Errorf("secret %s is not held here", printable(q.Print))
		}
		if len(q.Nonce) > 64 {
			return nil, errors.New("a nonce of more than 64 bytes")
		}
		return frameEnc.Marshal(&secretAnswer{Proof: secretProof(s, q.Nonce, from, g.self)})
	case opState, opFetch:
		g.ringMu.Lock()
		g.readSecretFile()
		g.ringMu.Unlock()
	case opAdd:
		if Fingerprint(q.Secret) != q.Print || q.Print == "" {
			return nil, errors.New("the secret is not the one that its fingerprint says")
		}
		err = g.change(func(r Keyring) (Keyring, error) { return r.add(q.Secret) })
	case opUse:
		err = g.change(func(r Keyring) (Keyring, error) { return r.use(q.Print) })
	case opRetire:
		err = g.change(func(r Keyring) (Keyring, error) { return r.retire(q.Print, q.OldCA, g.now()) })
	case opAbort:
		err = g.change(func(r Keyring) (Keyring, error) { return r.abort(q.Print) })
	default:
		return nil, fmt.Errorf("unknown operation %q: the other node runs another version", printable(q.Op))
	}
	if err != nil {
		return nil, err
	}
	a := g.heldSecrets()
	if q.Op == opFetch {
		if from != g.self && !g.isNode(from) {
			return nil, errors.New("only a node with a record of its own gets a secret: is that one declared yet?")
		}
		if a.Secret = g.secrets.Load().find(q.Print); a.Secret == nil {
			return nil, fmt.Errorf("secret %s is not held here", printable(q.Print))
		}
		if from != g.self {
			g.log.Info("handed a secret over", "peer", from, "secret", q.Print)
		}
	}
	return frameEnc.Marshal(a)
}

// heldSecrets describes what this node holds.
func (g *Gossip) heldSecrets() *secretAnswer {
	r := g.secrets.Load().Keyring
	a := &secretAnswer{Primary: Fingerprint(r.Primary), Next: Fingerprint(r.Next), Previous: Fingerprint(r.Previous)}
	for _, x := range r.Retired {
		a.Retired = append(a.Retired, printOf(x.CA))
	}
	a.PrevCA = caOf(r.Previous)
	a.Note, _ = g.fileNote.Load().(string)
	return a
}

// isNode says whether a node has a record and has neither left nor been
// forgotten.
func (g *Gossip) isNode(id state.NodeID) bool {
	sn := g.store.Snapshot()
	n, ok := state.Lookup[state.Node](sn, state.ID{Class: state.Owner, Kind: state.KindNode, Owner: id, Key: "self"})
	return ok && !n.Left && !sn.Gone().Node(id)
}

// askSecret asks one node, this one included.
func (g *Gossip) askSecret(ctx context.Context, to state.NodeID, q secretAsk) (*secretAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, min(secretTimeout, 30*g.t.sync))
	defer cancel()
	req, err := frameEnc.Marshal(&q)
	if err != nil {
		return nil, err
	}
	resp, err := g.Call(ctx, to, methodSecret, req)
	if err != nil {
		return nil, err
	}
	a := new(secretAnswer)
	if err := frameDec.Unmarshal(resp, a); err != nil {
		return nil, fmt.Errorf("answer about the secret: %w", err)
	}
	return a, nil
}

// keyLoop keeps a node that missed something of a rotation from staying
// behind, and notices a secret file that was changed.
func (g *Gossip) keyLoop(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-g.named:
	}
	g.ringMu.Lock()
	if err := g.hold(g.secrets.Load().Keyring); err != nil {
		g.log.Error("keyring not saved", "err", err)
	}
	g.ringMu.Unlock()
	tick := time.NewTicker(2 * g.t.sync)
	defer tick.Stop()
	for {
		g.ringMu.Lock()
		g.readSecretFile()
		g.ringMu.Unlock()
		if g.secrets.Load().settled() {
			g.proveLinks(ctx)
		} else {
			g.follow(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-g.wakeKeys:
		}
	}
}

// follow compares what this node holds with those it is connected to.
func (g *Gossip) follow(ctx context.Context) {
	for _, l := range g.someLinks() {
		a, err := g.askSecret(ctx, l.peer, secretAsk{Op: opState})
		if err != nil {
			continue // it may be older than this, or just gone
		}
		switch q := g.secrets.Load().follow(a); {
		case q.Op == "":
		case q.Op == opAdd:
			if !g.isNode(l.peer) {
				continue
			}
			if _, err := g.askSecret(ctx, l.peer, q); err == nil {
				g.log.Info("handed the new secret to a node that missed it", "peer", l.name, "secret", q.Print)
			}
		default:
			if _, err := g.askSecret(ctx, g.self, q); err != nil {
				g.log.Error("rotation not followed", "peer", l.name, "err", err)
			}
		}
	}
}

// follow says what a peer's state asks of this node (use, retire), or of the
// peer (add); an empty Op: nothing. Only what was decided is followed: that a
// new secret is held says nothing yet.
func (r Keyring) follow(peer *secretAnswer) secretAsk {
	primary, next, prev := Fingerprint(r.Primary), Fingerprint(r.Next), Fingerprint(r.Previous)
	switch {
	case next != "" && peer.Primary == next:
		return secretAsk{Op: opUse, Print: next}
	case prev != "" && peer.Primary == primary && slices.Contains(peer.Retired, prev):
		return secretAsk{Op: opRetire, Print: primary, OldCA: caOf(r.Previous)}
	case prev != "" && peer.Primary == prev && peer.Next == "" && peer.Previous == "":
		return secretAsk{Op: opAdd, Print: primary, Secret: r.Primary}
	}
	return secretAsk{}
}

// caOf returns the public key of the CA of a secret, nil for none.
func caOf(secret []byte) ed25519.PublicKey {
	k, err := deriveKeys(secret)
	if err != nil {
		return nil
	}
	return k.caPublic()
}

// keys returns what follows from the secret in use.
func (g *Gossip) keys() *keys { return g.secrets.Load().primary }

// Secret returns the secret in use. It is not to be changed.
func (g *Gossip) Secret() []byte { return g.secrets.Load().Primary }
