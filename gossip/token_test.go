package gossip

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// clockAt is a clock that a test sets.
type clockAt struct{ t atomic.Int64 }

func (c *clockAt) now() time.Time { return time.Unix(c.t.Load(), 0) }

func join(t *testing.T, token string) (*Cluster, string, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "etc", "cluster.secret")
	c, err := Join(ctx, token, dir, secret, nil)
	return c, dir, secret, err
}

func TestJoinToken(t *testing.T) {
	l := newLab(t)
	clock := &clockAt{}
	clock.t.Store(1_700_000_000)
	secret := NewSecret()
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret, edit: func(o *Options) { o.Now = clock.now }})
	token, expires, err := a.IssueToken(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if want := clock.now().Add(time.Minute); !expires.Equal(want) {
		t.Errorf("expires %s, want %s", expires, want)
	}
	if strings.ContainsAny(token, " \n\"'\\$") || !strings.HasPrefix(token, "nn1.") {
		t.Errorf("token %q does not survive a shell", token)
	}
	list, err := os.ReadFile(filepath.Join(a.dir, tokenFile))
	if err != nil {
		t.Fatal(err)
	}
	tk, err := ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(list, tk.Code) || bytes.Contains([]byte(token), secret) {
		t.Error("the code lies on disk, or the secret in the token")
	}

	a.stop()
	a.opts.Cluster.Bootstrap = true
	a.start(nil) // the token outlives a restart
	eventually(t, "the port is open again", func() bool {
		c, err := net.Dial("tcp", a.sync())
		if err == nil {
			c.Close()
		}
		return err == nil
	})

	c, dir, path, err := join(t, token)
	if err != nil {
		t.Fatal(err)
	}
	if want := a.Cluster(); c.ID != want.ID || c.RingID != want.RingID || c.Name != "prod" || c.Bootstrap || len(c.Seeds) == 0 || c.Seeds[0] != a.sync() {
		t.Errorf("joined %+v, want %+v", c, want)
	}
	if got, err := ReadSecret(path); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("secret saved: %v", err)
	}
	saved, err := LoadCluster(dir)
	if err != nil || saved.ID != c.ID {
		t.Errorf("cluster saved: %+v, %v", saved, err)
	}

	if _, _, _, err = join(t, token); err == nil || !strings.Contains(err.Error(), "was used at") {
		t.Errorf("second use: %v", err)
	}
	eventually(t, "the issuer says so too", func() bool { return a.log.has("WARN", "join refused", "was used at") })

	token, _, _ = a.IssueToken(time.Minute)
	clock.t.Add(61)
	if _, _, path, err = join(t, token); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("after expiry: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a refused join left a secret")
	}

	// The rest of what can be wrong with a token.
	token, _, _ = a.IssueToken(0)
	good, _ := ParseToken(token)
	other, _ := deriveKeys(NewSecret())
	for name, tt := range map[string]struct {
		edit func(*Token)
		want string
	}{
		"wrong code":    {func(t *Token) { t.Code = make([]byte, 16) }, "code is wrong"},
		"unknown":       {func(t *Token) { t.ID = make([]byte, 8) }, "did not issue"},
		"other cluster": {func(t *Token) { t.ClusterID = "elsewhere" }, "the token is for cluster elsewhere"},
		"other secret":  {func(t *Token) { t.CA = caHash(other.caPublic()) }, "another cluster's secret"},
		"nobody there":  {func(t *Token) { t.Seeds = []string{fmt.Sprintf("127.%d.%d.99", netA, l.b)} }, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := *good
			tt.edit(&bad)
			if _, _, _, err := join(t, bad.String()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
	// None of that used it up; the first seed may be down.
	good.Seeds = append([]string{fmt.Sprintf("127.%d.%d.99", netA, l.b)}, good.Seeds...)
	c, dir, path, err = join(t, good.String())
	if err != nil {
		t.Fatal(err)
	}

	// With what it was given, the node joins for real.
	sec, err := ReadSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	b := l.node("node2", nodeOpts{cluster: c, secret: sec})
	<-b.Synced()
	b.announce(false)
	l.equal(a, b)

	// A state directory that belongs somewhere is not overwritten.
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := NewCluster("mine").Save(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(ctx, token, dir, path, nil); err == nil || !strings.Contains(err.Error(), "nodectl leave") {
		t.Errorf("join over another cluster: %v", err)
	}
}

func TestIssueTokenLimits(t *testing.T) {
	l := newLab(t)
	a := l.node("node1", nodeOpts{cluster: NewCluster(""), secret: NewSecret()})
	if _, _, err := a.IssueToken(-time.Second); err == nil {
		t.Error("a negative lifetime is accepted")
	}
	if _, _, err := a.IssueToken(maxTTL + 1); err == nil {
		t.Error("a lifetime of over 30 days is accepted")
	}
	for range maxTokens {
		if err := a.tokens.add(issued{ID: []byte{1}, Expires: time.Now().Unix() + 9}, time.Now()); err != nil {
			t.Fatal(err)
		}
		a.tokens.path = "" // one write is enough
	}
	if _, _, err := a.IssueToken(0); err == nil {
		t.Error("the list grows without bound")
	}
	if _, _, err := a.IssueToken(0); err == nil {
		t.Error("the list grows without bound")
	}
}

func TestParseToken(t *testing.T) {
	good := Token{Seeds: []string{"192.0.2.1:7947"}, ClusterID: "c", CA: make([]byte, 32), ID: make([]byte, 8), Code: make([]byte, 16), Expires: 5}
	if got, err := ParseToken(" " + good.String() + "\n"); err != nil || got.Expires != 5 {
		t.Errorf("good token: %v", err)
	}
	noSeeds := good
	noSeeds.Seeds = nil
	for name, tt := range map[string]struct{ token, want string }{
		"empty":       {"", "begin"},
		"prose":       {"hello", "begin"},
		"cut off":     {good.String()[:30], "damaged"},
		"bad letters": {"nn1.!!!", "damaged"},
		"too long":    {"nn1." + strings.Repeat("A", 1<<20), "too long"},
		"no seeds":    {noSeeds.String(), "no address"},
		"empty map":   {"nn1.oA", "no address"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseToken(tt.token); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

func FuzzToken(f *testing.F) {
	f.Add((&Token{Seeds: []string{"192.0.2.1:7947"}, ClusterID: "c", CA: make([]byte, 32), ID: make([]byte, 8), Code: make([]byte, 16)}).String())
	f.Add("nn1.oA")
	f.Fuzz(func(t *testing.T, s string) {
		tk, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(tk.String())
		if err != nil {
			t.Fatalf("its own form is refused: %v", err)
		}
		if again.ClusterID != tk.ClusterID || !bytes.Equal(again.Code, tk.Code) {
			t.Fatal("changed on the way")
		}
	})
}
