package state

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"nodenet/state/lthash"
)

// Errors of signed heads, by which callers branch.
var (
	// ErrForged: the signature, the key or the shape of a delta is not what
	// its owner would send.
	ErrForged = errors.New("not what its owner signed")
	// ErrDiffers: the owner's signature is right, but our records together
	// with those of the delta are not the set that it speaks of. Either the
	// sender changed something, or one of both replicas is damaged: ask for
	// the whole set.
	ErrDiffers = errors.New("records do not add up to the set that their owner signed")
	// ErrUnsigned: the delta carries no signature and did not come from its
	// owner.
	ErrUnsigned = errors.New("not signed, and not told by its owner itself")
)

// headDomain begins every statement, so that a signature made for one purpose
// is worth nothing for another. The last byte is the version of the statement.
const headDomain = "nodenet head\x00\x01"

const hashSize = 32 // of Head.Hash

// headStatement is what an owner signs: "my history up to mark left these records".
func headStatement(owner NodeID, m Mark, hash []byte) []byte {
	b := make([]byte, 0, len(headDomain)+1+len(owner)+16+hashSize)
	b = append(b, headDomain...)
	b = append(b, byte(len(owner)))
	b = append(b, owner...)
	b = binary.BigEndian.AppendUint64(b, m.Epoch)
	b = binary.BigEndian.AppendUint64(b, m.Seq)
	return append(b, hash...)
}

// Signed reports whether the head carries its owner's signature. It does not
// verify it: a Store holds only what it has verified.
func (h *Head) Signed() bool { return len(h.Sig) > 0 }

// Bare returns the head without its signature: what a digest needs.
func (h Head) Bare() Head { return Head{Owner: h.Owner, Mark: h.Mark, Floor: h.Floor} }

// sign fills in Hash, Key and Sig.
func (h *Head) sign(key ed25519.PrivateKey, sum *lthash.Sum) {
	h.Hash = sum.Digest()
	h.Key = key.Public().(ed25519.PublicKey)
	h.Sig = ed25519.Sign(key, headStatement(h.Owner, h.Mark, h.Hash))
}

// verify checks the signature, and that the key is the owner's: a node ID is
// the hash of its key, so that no other record is needed for it.
func (h *Head) verify() error {
	switch {
	case len(h.Key) != ed25519.PublicKeySize || NodeIDFromKey(h.Key) != h.Owner:
		return fmt.Errorf("head of %s: signed with the key of another node: %w", h.Owner.Short(), ErrForged)
	case len(h.Hash) != hashSize:
		return fmt.Errorf("head of %s: hash of %d bytes: %w", h.Owner.Short(), len(h.Hash), ErrForged)
	case !ed25519.Verify(h.Key, headStatement(h.Owner, h.Mark, h.Hash), h.Sig):
		return fmt.Errorf("head of %s: signature is wrong: %w", h.Owner.Short(), ErrForged)
	}
	return nil
}

// head is the head that d leads to.
func (d *Delta) head() Head {
	return Head{Owner: d.Owner, Mark: d.To, Floor: d.Floor, Hash: d.Hash, Key: d.Key, Sig: d.Sig}
}

// whole reports whether a signed delta is the owner's whole set.
func (d *Delta) whole() bool { return d.Replace || d.From == Mark{} }

// appendElement appends the canonical bytes of a record that is not deleted:
// everything that is signed of it. Each part has its length before it.
func appendElement(b []byte, r *Record) []byte {
	part := func(s string) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	b = append(b, byte(r.ID.Class))
	part(string(r.ID.Kind))
	part(string(r.ID.Owner))
	part(r.ID.Key)
	b = binary.BigEndian.AppendUint64(b, r.Version.Epoch)
	b = binary.BigEndian.AppendUint64(b, r.Version.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Value)))
	return append(b, r.Value...)
}

// summer adds records to and takes them from a sum. The zero summer is ready.
type summer struct {
	h   lthash.Hasher
	buf []byte
}

func (m *summer) add(s *lthash.Sum, r *Record) {
	if !r.Deleted {
		m.buf = appendElement(m.buf[:0], r)
		m.h.Add(s, m.buf)
	}
}

func (m *summer) sub(s *lthash.Sum, r *Record) {
	if !r.Deleted {
		m.buf = appendElement(m.buf[:0], r)
		m.h.Remove(s, m.buf)
	}
}

// sumShare is how many records are worth a goroutine: about a millisecond.
const sumShare = 256

// sumRecords returns s with some records added and others taken away. It uses
// all processors where that is worth it.
func sumRecords(s lthash.Sum, add, sub []*Record) *lthash.Sum {
	n := len(add) + len(sub)
	share := max(sumShare, (n+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	part := func(s *lthash.Sum, from, to int) {
		var m summer
		for i := from; i < to; i++ {
			if i < len(add) {
				m.add(s, add[i])
			} else {
				m.sub(s, sub[i-len(add)])
			}
		}
	}
	var wg sync.WaitGroup
	var parts []*lthash.Sum
	for from := share; from < n; from += share {
		p := new(lthash.Sum)
		parts = append(parts, p)
		wg.Go(func() { part(p, from, min(n, from+share)) })
	}
	part(&s, 0, min(n, share))
	wg.Wait()
	for _, p := range parts {
		s.AddSum(p)
	}
	return &s
}
