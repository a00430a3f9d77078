package gossip

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"

	"nodenet/state"
)

// proofTries is how often a link may fail to prove the secret before it is
// closed: a node may be busy for a moment.
const proofTries = 3

var errNoProof = errors.New("peer does not prove that it holds the cluster's secret: it was not part of the rotation")

// proofOf is what a link has proved beyond its handshake.
type proofOf struct {
	print string // of a secret
	tries int    // failed, for another one
}

// secretProof shows that a node holds a secret, to one asker and for one
// question. With both IDs in it, an answer cannot be got from somebody else.
func secretProof(secret, nonce []byte, asker, answerer state.NodeID) []byte {
	k, err := hkdf.Key(sha256.New, secret, nil, "nodenet link proof v1", 32)
	if err != nil {
		panic(err) // only for a length beyond HKDF's limit
	}
	m := hmac.New(sha256.New, k)
	for _, part := range [][]byte{nonce, []byte(asker), []byte(answerer)} {
		n := sha256.Sum256(part) // of one length: no part can pass for another's
		m.Write(n[:])
	}
	return m.Sum(nil)
}

// proveLinks closes the connections of whoever does not hold the secret that
// is in use. A rotation leaves connections alone, so one that was opened with
// the former secret would otherwise outlive it.
func (g *Gossip) proveLinks(ctx context.Context) {
	s := g.secrets.Load()
	print := Fingerprint(s.Primary)
	for _, l := range g.someLinks() {
		if l.proof.print == print {
			continue
		}
		nonce := make([]byte, 16)
		rand.Read(nonce) // never fails, see crypto/rand
		a, err := g.askSecret(ctx, l.peer, secretAsk{Op: opProve, Print: print, Nonce: nonce})
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && hmac.Equal(a.Proof, secretProof(s.Primary, nonce, g.self, l.peer)):
			l.proof = proofOf{print: print}
		case l.proof.tries+1 >= proofTries:
			l.close(errNoProof)
		default:
			l.proof.tries++
		}
	}
}
