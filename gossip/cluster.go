package gossip

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	clusterFile = "cluster.json"
	// SecretSize is the length of a cluster secret in bytes.
	SecretSize = 32
)

// Cluster is what the state directory knows of the cluster, in
// dir/cluster.json. The secret lies in a file of its own. An empty ID means
// that the node has not met its cluster yet.
type Cluster struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	RingID    string   `json:"ringId"`
	Bootstrap bool     `json:"bootstrap,omitempty"` // this node made the cluster
	Synced    bool     `json:"synced,omitempty"`    // this node has held all of the tables once
	Seeds     []string `json:"seeds,omitempty"`     // host:port of the sync port, as joined by
	Peers     []string `json:"peers,omitempty"`     // last known sync addresses, kept up to date
}

// NewCluster makes a cluster with random IDs; the caller's node owns every
// range of its ring.
func NewCluster(name string) *Cluster {
	return &Cluster{ID: randomID(), Name: name, RingID: randomID(), Bootstrap: true}
}

// randomID returns 80 random bits in lower case.
func randomID() string {
	var b [10]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// LoadCluster reads dir/cluster.json. The error is fs.ErrNotExist when there
// is none.
func LoadCluster(dir string) (*Cluster, error) {
	path := filepath.Join(dir, clusterFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read cluster: %w", err)
	}
	var c Cluster
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("read cluster %s: %w: restore it from a backup, or remove it and join the cluster again with a token", path, err)
	}
	return &c, nil
}

// Save replaces dir/cluster.json atomically and durably.
func (c *Cluster) Save(dir string) error {
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return fmt.Errorf("save cluster: %w", err)
	}
	if err := writeFile(filepath.Join(dir, clusterFile), append(b, '\n')); err != nil {
		return fmt.Errorf("save cluster: %w", err)
	}
	return nil
}

func (c *Cluster) clone() *Cluster {
	d := *c
	d.Seeds, d.Peers = slices.Clone(c.Seeds), slices.Clone(c.Peers)
	return &d
}

// label is how messages name a cluster.
func label(name, id string) string {
	switch {
	case id == "":
		return "no cluster yet"
	case name == "":
		return fmt.Sprintf("cluster %s", id)
	}
	return fmt.Sprintf("cluster %q (%s)", name, id)
}

// NewSecret returns a random cluster secret.
func NewSecret() []byte {
	b := make([]byte, SecretSize)
	rand.Read(b) // never fails, see crypto/rand
	return b
}

// ReadSecret reads a secret: 32 bytes as base64 text. The error is
// fs.ErrNotExist when there is no such file.
func ReadSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read cluster secret: %w: copy the file from a node of the cluster, or run `nodectl join TOKEN`", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read cluster secret: %w", err)
	}
	secret, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil {
		return nil, fmt.Errorf("read cluster secret %s: not base64: want 32 random bytes as one line of base64, as in `head -c 32 /dev/urandom | base64`", path)
	}
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("read cluster secret %s: %d bytes: want %d, as in `head -c 32 /dev/urandom | base64`", path, len(secret), SecretSize)
	}
	if err := private(path); err != nil {
		return nil, fmt.Errorf("read cluster secret: %w", err)
	}
	return secret, nil
}

// WriteSecret saves a secret durably with mode 0600.
func WriteSecret(path string, secret []byte) error {
	if len(secret) != SecretSize {
		return fmt.Errorf("write cluster secret: %d bytes: want %d", len(secret), SecretSize)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write cluster secret: %w", err)
	}
	if err := writeFile(path, []byte(base64.StdEncoding.EncodeToString(secret)+"\n")); err != nil {
		return fmt.Errorf("write cluster secret: %w", err)
	}
	return nil
}
