package gossip

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	"nodenet/state"
)

// Protocols negotiated on the sync port (ALPN).
const (
	alpnSync = "nodenet-sync/1"
	alpnJoin = "nodenet-join/1"
)

// errNotSigned says that a peer does not hold the secret that we hold.
var errNotSigned = errors.New("its certificate is not signed with this cluster's secret")

// keys is everything that follows from the cluster secret. Whoever holds the
// secret can make a certificate for any key, but not for another node's ID:
// the ID is the hash of the key.
type keys struct {
	member []byte             // memberlist, AES-256
	ca     ed25519.PrivateKey // signs node certificates
}

// deriveKeys expands the secret (HKDF, RFC 5869) into independent keys.
func deriveKeys(secret []byte) (*keys, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("cluster secret of %d bytes: want %d", len(secret), SecretSize)
	}
	member, err := hkdf.Key(sha256.New, secret, nil, "nodenet memberlist v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive membership key: %w", err)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "nodenet ca v1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive CA key: %w", err)
	}
	return &keys{member: member, ca: ed25519.NewKeyFromSeed(seed)}, nil
}

func (k *keys) caPublic() ed25519.PublicKey { return k.ca.Public().(ed25519.PublicKey) }

// certificate makes the certificate of a node key, signed by signer. The dates
// have to be there but nobody looks at them: see verifyPeer.
func certificate(id *Identity, signer ed25519.PrivateKey) (tls.Certificate, error) {
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: string(id.ID)},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no expiry
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "nodenet"}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, id.Public(), signer)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make node certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: id.Key}, nil
}

// tlsConfig accepts any certificate, because a refusal within the handshake
// could not say why; what counts is verifyPeer, called before anything else is
// sent or read.
func tlsConfig(cert tls.Certificate, protos ...string) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{cert},
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true,
		NextProtos:             protos,
		SessionTicketsDisabled: true, // a resumed session would skip the certificate
	}
}

// peerID returns the ID that the peer's key proves, without saying anything
// about whether it belongs to the cluster.
func peerID(cs tls.ConnectionState) (state.NodeID, *x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", nil, errors.New("it sent no certificate")
	}
	cert := cs.PeerCertificates[0]
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", nil, fmt.Errorf("its certificate holds a key of type %s: want Ed25519", cert.PublicKeyAlgorithm)
	}
	id := state.NodeIDFromKey(pub)
	if cert.Subject.CommonName != string(id) {
		return "", nil, errors.New("its certificate names another node than its key does")
	}
	return id, cert, nil
}

// maxCerts is how many certificates of a peer are looked at: it sends one for
// each secret that it holds, of which there are two at most.
const maxCerts = 4

// verifyPeer checks that one of the peer's certificates is signed by one of
// the CAs and returns the node that it belongs to. TLS proves the first one's
// key; the others count when they are of the same key. Dates are ignored on
// purpose: a wrong clock must not split the cluster.
func verifyPeer(cs tls.ConnectionState, cas ...ed25519.PublicKey) (state.NodeID, error) {
	id, first, err := peerID(cs)
	if err != nil {
		return "", err
	}
	for _, cert := range cs.PeerCertificates[:min(len(cs.PeerCertificates), maxCerts)] {
		if cert.SignatureAlgorithm != x509.PureEd25519 || cert.Subject.CommonName != string(id) || !bytes.Equal(cert.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
			continue
		}
		for _, ca := range cas {
			if ed25519.Verify(ca, cert.RawTBSCertificate, cert.Signature) {
				return id, nil
			}
		}
	}
	return id, errNotSigned
}

// caHash is how a join token names the CA.
func caHash(ca ed25519.PublicKey) []byte {
	sum := sha256.Sum256(ca)
	return sum[:]
}

func sameKey(ca ed25519.PublicKey, hash []byte) bool {
	return len(ca) == ed25519.PublicKeySize && bytes.Equal(caHash(ca), hash)
}
