package gossip

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	tokenPrefix = "nn1."
	tokenFile   = "tokens.json"
	tokenKeep   = 24 * time.Hour // used and expired ones are remembered, to say which it was
	maxTokens   = 256
	maxTTL      = 30 * 24 * time.Hour
)

// Token is what a join token says. It is a credential: whoever redeems it
// first gets the cluster secret.
type Token struct {
	Seeds     []string `cbor:"1,keyasint"` // host:port of the sync port, the issuer first
	ClusterID string   `cbor:"2,keyasint"`
	CA        []byte   `cbor:"3,keyasint"` // SHA-256 of the CA's public key
	ID        []byte   `cbor:"4,keyasint"` // names the code
	Code      []byte   `cbor:"5,keyasint"` // the secret part; never sent
	Expires   int64    `cbor:"6,keyasint"` // Unix seconds, by the issuer's clock
}

// String returns the printable form.
func (t *Token) String() string {
	b, err := frameEnc.Marshal(t)
	if err != nil {
		return ""
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads the printable form.
func ParseToken(s string) (*Token, error) {
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return nil, fmt.Errorf("join token: it does not begin with %q: copy the whole line that `nodectl token` printed", tokenPrefix)
	}
	if len(rest) > maxEarly {
		return nil, errors.New("join token: too long")
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil {
		return nil, errors.New("join token: damaged: copy the whole line that `nodectl token` printed")
	}
	var t Token
	if err := frameDec.Unmarshal(b, &t); err != nil {
		return nil, errors.New("join token: damaged or cut off: copy the whole line that `nodectl token` printed")
	}
	switch {
	case len(t.Seeds) == 0 || len(t.Seeds) > 64:
		return nil, errors.New("join token: no address in it: make a new one with `nodectl token`")
	case t.ClusterID == "" || len(t.CA) != sha256.Size || len(t.ID) != 8 || len(t.Code) != 16:
		return nil, errors.New("join token: incomplete: make a new one with `nodectl token`")
	}
	return &t, nil
}

// codeKey is what both sides derive from the code. The issuer keeps only this.
func codeKey(code []byte) []byte {
	k, err := hkdf.Key(sha256.New, code, nil, "nodenet join code v1", 32)
	if err != nil {
		panic(err) // only for a length beyond HKDF's limit
	}
	return k
}

// codeMAC proves knowledge of the code, bound to one TLS connection (exporter,
// RFC 8446 §7.5) and to one side of it.
func codeMAC(key, exporter []byte, side string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("nodenet join " + side))
	m.Write(exporter)
	return m.Sum(nil)
}

// issued is a token as its issuer remembers it.
type issued struct {
	ID      []byte `json:"id"`
	Key     []byte `json:"key"`
	Expires int64  `json:"expires"`
	Used    int64  `json:"used,omitempty"` // when; 0: not yet
	By      string `json:"by,omitempty"`
	CA      []byte `json:"ca,omitempty"` // hash of the CA in the token
}

// tokens is the issuer's list, in memory and in dir/tokens.json.
type tokens struct {
	path string // empty: memory only

	mu   sync.Mutex
	list []issued
}

// loadTokens reads the list. It is usable even with an error: then it is empty.
func loadTokens(dir string) (*tokens, error) {
	if dir == "" {
		return &tokens{}, nil
	}
	t := &tokens{path: filepath.Join(dir, tokenFile)}
	b, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, fmt.Errorf("read join tokens: %w", err)
	}
	if err := json.Unmarshal(b, &t.list); err != nil {
		return t, fmt.Errorf("read join tokens %s: %w: make new ones with `nodectl token`", t.path, err)
	}
	return t, nil
}

// save writes a changed list, which takes effect only when that succeeded.
func (t *tokens) save(list []issued) error {
	if t.path != "" {
		b, err := json.Marshal(list)
		if err != nil {
			return fmt.Errorf("save join tokens: %w", err)
		}
		if err := writeFile(t.path, b); err != nil {
			return fmt.Errorf("save join tokens: %w", err)
		}
	}
	t.list = list
	return nil
}

func (t *tokens) add(n issued, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]issued, 0, len(t.list)+1)
	for _, i := range t.list {
		if now.Unix()-max(i.Expires, i.Used) < int64(tokenKeep/time.Second) {
			list = append(list, i)
		}
	}
	if len(list) >= maxTokens {
		return fmt.Errorf("issue join token: %d are kept already: wait until some are a day past their end", len(list))
	}
	return t.save(append(list, n))
}

// find returns the token by its ID, or why it is of no use.
func (t *tokens) find(id []byte, now time.Time) (issued, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.list {
		if !bytes.Equal(i.ID, id) {
			continue
		}
		return i, i.usable(now)
	}
	return issued{}, errors.New("this node did not issue the token, or has forgotten it: make a new one with `nodectl token`")
}

func (i *issued) usable(now time.Time) error {
	switch {
	case i.Used != 0:
		return fmt.Errorf("the token was used at %s by %s: make a new one with `nodectl token`; if that was not you, rotate the cluster secret",
			time.Unix(i.Used, 0).UTC().Format(time.RFC3339), or(i.By, "an unnamed node"))
	case now.Unix() >= i.Expires:
		return fmt.Errorf("the token expired at %s by the issuer's clock: make a new one with `nodectl token`",
			time.Unix(i.Expires, 0).UTC().Format(time.RFC3339))
	}
	return nil
}

// use marks the token used, durably, before the secret leaves this node.
func (t *tokens) use(id []byte, by string, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := append([]issued(nil), t.list...)
	for k := range list {
		if bytes.Equal(list[k].ID, id) {
			if err := list[k].usable(now); err != nil {
				return err
			}
			list[k].Used, list[k].By = now.Unix(), by
			return t.save(list)
		}
	}
	return errors.New("the token is gone: make a new one with `nodectl token`")
}

// IssueToken makes a one-time credential to join the cluster. It can be
// redeemed at this node only, until expires (by this node's clock); a restart
// does not lose it, retiring the secret that it was made with voids it. ttl 0 means one hour; more than 30 days is an error.
func (g *Gossip) IssueToken(ttl time.Duration) (token string, expires time.Time, err error) {
	if ttl == 0 {
		ttl = time.Hour
	}
	if ttl < 0 || ttl > maxTTL {
		return "", time.Time{}, fmt.Errorf("issue join token for %s: want up to %s", ttl, maxTTL)
	}
	c := g.Cluster()
	if c.ID == "" {
		return "", time.Time{}, errors.New("issue join token: this node belongs to no cluster yet")
	}
	now := g.now()
	expires = now.Add(ttl).Truncate(time.Second)
	t := &Token{ClusterID: c.ID, CA: caHash(g.keys().caPublic()), ID: make([]byte, 8), Code: make([]byte, 16), Expires: expires.Unix()}
	rand.Read(t.ID) // never fails, see crypto/rand
	rand.Read(t.Code)
	t.Seeds = g.seeds()
	if err := g.tokens.add(issued{ID: t.ID, Key: codeKey(t.Code), Expires: t.Expires, CA: t.CA}, now); err != nil {
		return "", time.Time{}, err
	}
	g.log.Info("join token issued", "expires", expires)
	return t.String(), expires, nil
}

// seeds returns addresses for a new node: ours first, then a few others.
func (g *Gossip) seeds() []string {
	g.mu.Lock()
	port := or(g.syncPort, g.o.SyncPort)
	g.mu.Unlock()
	out := []string{netip.AddrPortFrom(g.o.Advertise, port).String()}
	for _, a := range g.peerAddrs() {
		if len(out) < 5 {
			out = append(out, a)
		}
	}
	return out
}
