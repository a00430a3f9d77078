package gossip

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nodenet/state"
)

const (
	keyringFile = "keyring.json"
	// maxRetired bounds how many retired secrets are recognised.
	maxRetired = 32
)

// Keyring is the cluster secrets that a node holds, in dir/keyring.json with
// mode 0600. Outside a rotation there is one. During a rotation there are two,
// never three:
//
//	Primary        ── add ──►  Primary, Next  ── use ──►  Primary, Previous  ── retire ──►  Primary
//	                                └──── abort ──► Primary
//
// A peer is accepted when it can prove any of the secrets; Primary is what
// memberlist's packets are encrypted with. The methods return a changed copy,
// and carrying a step out twice changes nothing: who drives a rotation may
// lose an answer and ask again.
type Keyring struct {
	Cluster  string    `json:"cluster"` // ID; a ring of another cluster is not used
	Primary  []byte    `json:"primary"`
	Next     []byte    `json:"next,omitempty"`
	Previous []byte    `json:"previous,omitempty"`
	Retired  []Retired `json:"retired,omitempty"` // newest last
}

// Retired is what is remembered of a secret that the cluster does not accept
// any more: enough to recognise who still holds it, not to make a certificate.
type Retired struct {
	CA []byte `json:"ca"` // public key
	At int64  `json:"at"` // Unix seconds, by the clock of this node
}

// Fingerprint names a secret without giving it away: the first half of the
// hash of a public key derived from it, in hexadecimal.
func Fingerprint(secret []byte) string {
	if len(secret) == 0 {
		return ""
	}
	k, err := deriveKeys(secret)
	if err != nil {
		return ""
	}
	return printOf(k.caPublic())
}

func printOf(ca ed25519.PublicKey) string { return hex.EncodeToString(caHash(ca)[:16]) }

// LoadKeyring reads dir/keyring.json. The error is fs.ErrNotExist when there
// is none.
func LoadKeyring(dir string) (Keyring, error) {
	var r Keyring
	path := filepath.Join(dir, keyringFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("read keyring: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Keyring{}, fmt.Errorf("read keyring %s: %w", path, err)
	}
	if _, err := newSecrets(r, nil); err != nil {
		return Keyring{}, fmt.Errorf("read keyring %s: %w", path, err)
	}
	r.Retired = slices.DeleteFunc(r.Retired, func(x Retired) bool { return len(x.CA) != ed25519.PublicKeySize })
	return r, nil
}

// Save replaces dir/keyring.json atomically and durably.
func (r Keyring) Save(dir string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("save keyring: %w", err)
	}
	if err := writeFile(filepath.Join(dir, keyringFile), append(b, '\n')); err != nil {
		return fmt.Errorf("save keyring: %w", err)
	}
	return nil
}

// all returns the secrets that are accepted, the primary first.
func (r Keyring) all() [][]byte {
	out := [][]byte{r.Primary}
	for _, s := range [][]byte{r.Next, r.Previous} {
		if len(s) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// find returns the accepted secret of that fingerprint, nil when there is none.
func (r Keyring) find(print string) []byte {
	for _, s := range r.all() {
		if Fingerprint(s) == print {
			return s
		}
	}
	return nil
}

// settled says that no rotation is under way here.
func (r Keyring) settled() bool { return len(r.Next) == 0 && len(r.Previous) == 0 }

// retired returns when the secret of that fingerprint was retired.
func (r Keyring) retired(print string) (time.Time, bool) {
	for _, x := range r.Retired {
		if printOf(x.CA) == print {
			return time.Unix(x.At, 0), true
		}
	}
	return time.Time{}, false
}

// add accepts a new secret from now on, beside the one in use.
func (r Keyring) add(secret []byte) (Keyring, error) {
	if len(secret) != SecretSize {
		return r, fmt.Errorf("a secret of %d bytes: want %d", len(secret), SecretSize)
	}
	print := Fingerprint(secret)
	if at, ok := r.retired(print); ok {
		return r, fmt.Errorf("secret %s was retired at %s: a secret is never taken back, make a new one", print, at.UTC().Format(time.RFC3339))
	}
	switch {
	case bytes.Equal(secret, r.Primary) || bytes.Equal(secret, r.Next):
		return r, nil
	case len(r.Next) > 0:
		return r, fmt.Errorf("another rotation, to secret %s, is under way: finish or abort it first", Fingerprint(r.Next))
	case len(r.Previous) > 0:
		return r, fmt.Errorf("the rotation to secret %s is not finished: finish it first", Fingerprint(r.Primary))
	}
	r.Next = bytes.Clone(secret)
	return r, nil
}

// use makes the new secret the primary one; the former stays accepted.
func (r Keyring) use(print string) (Keyring, error) {
	switch print {
	case Fingerprint(r.Primary):
		return r, nil
	case Fingerprint(r.Next):
		r.Primary, r.Next, r.Previous = r.Next, nil, r.Primary
		return r, nil
	}
	return r, fmt.Errorf("secret %s is not held here", print)
}

// retire stops accepting what was used before. ca is the public key of it,
// from who asks: a node that joined since then has never held it, but should
// recognise it too.
func (r Keyring) retire(print string, ca ed25519.PublicKey, now time.Time) (Keyring, error) {
	if print != Fingerprint(r.Primary) {
		return r, fmt.Errorf("secret %s is not in use here: nothing is retired", print)
	}
	r.Retired = slices.Clone(r.Retired)
	note := func(ca ed25519.PublicKey) {
		_, known := r.retired(printOf(ca))
		if len(ca) == ed25519.PublicKeySize && !known && printOf(ca) != print {
			r.Retired = append(r.Retired, Retired{CA: ca, At: now.Unix()})
		}
	}
	if len(r.Previous) > 0 {
		k, err := deriveKeys(r.Previous)
		if err != nil {
			return r, err
		}
		note(k.caPublic())
		r.Previous = nil
	}
	if len(r.Next) == 0 || printOf(ca) != Fingerprint(r.Next) {
		note(ca)
	}
	r.Retired = r.Retired[max(0, len(r.Retired)-maxRetired):]
	return r, nil
}

// abort drops a secret that was added but never used.
func (r Keyring) abort(print string) (Keyring, error) {
	if print == Fingerprint(r.Primary) && len(r.Previous) > 0 {
		return r, fmt.Errorf("secret %s is in use: go on with the rotation, then begin another", print)
	}
	if len(r.Next) > 0 && print == Fingerprint(r.Next) {
		r.Next = nil
	}
	return r, nil
}

// What the secret file says, against what the node holds.
const (
	fileSame    = iota
	fileNew     // a secret that nobody has announced: it was added
	fileStale   // the one before: the node ended before it could write the file
	fileRetired // one that the cluster does not accept any more
	fileThird   // a new one in the middle of a rotation: not taken
)

// seen takes in what lies in the secret file: another secret there is a new
// one to be rotated to.
func (r Keyring) seen(file []byte) (Keyring, int) {
	switch {
	case bytes.Equal(file, r.Primary) || bytes.Equal(file, r.Next):
		return r, fileSame
	case bytes.Equal(file, r.Previous):
		return r, fileStale
	}
	if _, ok := r.retired(Fingerprint(file)); ok {
		return r, fileRetired
	}
	n, err := r.add(file)
	if err != nil {
		return r, fileThird
	}
	return n, fileNew
}

// equal compares what is held.
func (r Keyring) equal(o Keyring) bool {
	return r.Cluster == o.Cluster && bytes.Equal(r.Primary, o.Primary) && bytes.Equal(r.Next, o.Next) && bytes.Equal(r.Previous, o.Previous) &&
		slices.EqualFunc(r.Retired, o.Retired, func(a, b Retired) bool { return bytes.Equal(a.CA, b.CA) })
}

// secrets is a keyring with what follows from it. It is immutable.
type secrets struct {
	Keyring
	primary *keys
	accept  []ed25519.PublicKey // CAs, of the primary first
	member  [][]byte            // memberlist's keys, likewise
	cert    tls.Certificate     // one for each secret, so that any one in common is enough
}

// newSecrets derives the keys; without an identity it only checks them.
func newSecrets(r Keyring, id *Identity) (*secrets, error) {
	s := &secrets{Keyring: r}
	for i, secret := range r.all() {
		k, err := deriveKeys(secret)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			s.primary = k
		}
		s.accept, s.member = append(s.accept, k.caPublic()), append(s.member, k.member)
		if id == nil {
			continue
		}
		c, err := certificate(id, k.ca)
		if err != nil {
			return nil, err
		}
		s.cert.Certificate, s.cert.PrivateKey = append(s.cert.Certificate, c.Certificate...), c.PrivateKey
	}
	return s, nil
}

// verify returns the node that the peer's certificates belong to, and
// errNotSigned or a *retiredError when none is signed with a secret that is
// accepted.
func (s *secrets) verify(cs tls.ConnectionState) (id state.NodeID, err error) {
	id, err = verifyPeer(cs, s.accept...)
	if !errors.Is(err, errNotSigned) {
		return id, err
	}
	for _, x := range s.Retired {
		if _, e := verifyPeer(cs, x.CA); e == nil {
			return id, &retiredError{time.Unix(x.At, 0)}
		}
	}
	return id, err
}

// retiredError says that a peer holds a secret that was rotated away.
type retiredError struct{ at time.Time }

func (e *retiredError) Error() string {
	return fmt.Sprintf("its secret was retired at %s", e.at.UTC().Format(time.RFC3339))
}
