package gossip

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nodenet/state"
)

// keyFile is the node's private key in its state directory.
const keyFile = "node.key"

// Identity is what makes a node itself: a key made at its first start, and
// the ID that is the hash of its public half. It is immutable.
type Identity struct {
	ID  state.NodeID
	Key ed25519.PrivateKey
}

// Public returns the public key.
func (id *Identity) Public() ed25519.PublicKey { return id.Key.Public().(ed25519.PublicKey) }

// NewIdentity makes an identity that is saved nowhere.
func NewIdentity() (*Identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	return identity(key), nil
}

func identity(key ed25519.PrivateKey) *Identity {
	return &Identity{ID: state.NodeIDFromKey(key.Public().(ed25519.PublicKey)), Key: key}
}

// LoadIdentity reads dir/node.key (PEM, PKCS #8) or, when there is none, makes
// it durably. A file that cannot be understood is an error and is left alone:
// a new key would make this a new node, and the old one's records would stay.
func LoadIdentity(dir string) (*Identity, error) {
	path := filepath.Join(dir, keyFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeIdentity(dir, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("read node key %s: %w: restore it from a backup; or remove it to start as a new node "+
			"and then run `nodectl node forget` for the old one elsewhere", path, err)
	}
	if err := private(path); err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	return identity(key), nil
}

func makeIdentity(dir, path string) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	id, err := NewIdentity()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.Key)
	if err != nil {
		return nil, fmt.Errorf("encode node key: %w", err)
	}
	if err := writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, fmt.Errorf("save node key: %w", err)
	}
	return id, nil
}

func parseKey(b []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM block of type PRIVATE KEY in it")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("not a PKCS #8 key: %w", err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T where Ed25519 is wanted", k)
	}
	return key, nil
}
