package gossip

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdentityFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !a.ID.Valid() {
		t.Errorf("ID %q", a.ID)
	}
	b, err := LoadIdentity(dir)
	if err != nil || b.ID != a.ID {
		t.Errorf("second start: %v, %v", b, err)
	}
	path := filepath.Join(dir, keyFile)
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	for _, junk := range []string{"", "junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		os.WriteFile(path, []byte(junk), 0o600)
		if _, err := LoadIdentity(dir); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
			t.Errorf("%q: %v", junk, err)
		}
		if got, _ := os.ReadFile(path); string(got) != junk {
			t.Error("a damaged key was overwritten")
		}
	}
}

func TestClusterFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadCluster(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	c := NewCluster("prod")
	c.Peers = []string{"192.0.2.1:7947"}
	if err := c.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := LoadCluster(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, got); d != "" {
		t.Error(d)
	}
	if fi, _ := os.Stat(filepath.Join(dir, clusterFile)); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	os.WriteFile(filepath.Join(dir, clusterFile), []byte("{"), 0o600)
	if _, err := LoadCluster(dir); err == nil || !strings.Contains(err.Error(), "join the cluster again") {
		t.Errorf("damaged: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestSecretFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "cluster.secret")
	if _, err := ReadSecret(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	s := NewSecret()
	if err := WriteSecret(path, s); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSecret(path); err != nil || !bytes.Equal(got, s) {
		t.Errorf("read back: %v", err)
	}
	if err := WriteSecret(path, s[:5]); err == nil {
		t.Error("a short secret is written")
	}
	for content, want := range map[string]string{"!!": "not base64", "AAAA\n": "3 bytes: want 32"} {
		os.WriteFile(path, []byte(content), 0o600)
		if _, err := ReadSecret(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", content, err, want)
		}
	}
	WriteSecret(path, s)
	os.Chmod(path, 0o640)
	if _, err := ReadSecret(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by the group: %v", err)
	}
}

func TestKeys(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, SecretSize)
	a, err := deriveKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := deriveKeys(secret)
	if !a.ca.Equal(b.ca) || !bytes.Equal(a.member, b.member) {
		t.Error("two derivations differ")
	}
	if bytes.Equal(a.member, a.ca.Seed()) || bytes.Equal(a.member, secret) {
		t.Error("keys are not independent")
	}
	if _, err := deriveKeys(nil); err == nil {
		t.Error("no secret is accepted")
	}

	other, _ := deriveKeys(NewSecret())
	id, _ := NewIdentity()
	thief, _ := NewIdentity()
	state := func(id *Identity, k *keys) tls.ConnectionState {
		c, err := certificate(id, k.ca)
		if err != nil {
			t.Fatal(err)
		}
		x, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return tls.ConnectionState{PeerCertificates: []*x509.Certificate{x}}
	}
	if got, err := verifyPeer(state(id, a), a.caPublic()); err != nil || got != id.ID {
		t.Errorf("good: %s, %v", got, err)
	}
	if got, err := verifyPeer(state(id, other), a.caPublic()); !errors.Is(err, errNotSigned) || got != id.ID {
		t.Errorf("other CA: %s, %v", got, err)
	}
	// Somebody with the secret takes another node's name, with a key of their own.
	if _, err := verifyPeer(state(&Identity{ID: id.ID, Key: thief.Key}, a), a.caPublic()); err == nil {
		t.Error("a node ID was taken over")
	}
	if _, err := verifyPeer(tls.ConnectionState{}, a.caPublic()); err == nil {
		t.Error("no certificate is accepted")
	}
}
