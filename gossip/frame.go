package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"nodenet/state"
)

// A frame on the wire: length of what follows (4 bytes, big endian), version
// of the framing (1), kind (1), CBOR body. Kinds and fields that a version
// does not know are skipped, so that nodes can be upgraded one by one.
const (
	frameVersion = 1
	frameHeader  = 6
	// MaxFrame bounds a frame's length after the length field, in bytes.
	MaxFrame = 4 << 20
	// maxEarly bounds frames before the peer has proved to belong to the cluster.
	maxEarly = 16 << 10
)

type kind uint8

const (
	kindHello     kind = 1
	kindRefuse    kind = 2
	kindPing      kind = 3
	kindPong      kind = 4
	kindRoot      kind = 5
	kindSame      kind = 6
	kindDigest    kind = 7
	kindDeltas    kind = 8
	kindRecords   kind = 9
	kindDone      kind = 10
	kindPush      kind = 11
	kindRequest   kind = 12
	kindResponse  kind = 13
	kindBye       kind = 14
	kindBucket    kind = 15
	kindJoinHello kind = 32
	kindChallenge kind = 33
	kindProof     kind = 34
	kindGrant     kind = 35
)

var kindNames = map[kind]string{
	kindHello: "hello", kindRefuse: "refuse", kindPing: "ping", kindPong: "pong", kindRoot: "root", kindSame: "same",
	kindDigest: "digest", kindDeltas: "deltas", kindRecords: "records", kindDone: "done", kindPush: "push",
	kindRequest: "request", kindResponse: "response", kindBye: "bye", kindBucket: "bucket",
	kindJoinHello: "join-hello", kindChallenge: "challenge", kindProof: "proof", kindGrant: "grant",
}

func (k kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return "unknown"
}

type frame interface{ kind() kind }

// hello is the first frame in each direction.
type hello struct {
	Proto      uint         `cbor:"1,keyasint"`
	ClusterID  string       `cbor:"2,keyasint,omitempty"` // empty: wants to learn it
	Cluster    string       `cbor:"3,keyasint,omitempty"` // name
	RingID     string       `cbor:"4,keyasint,omitempty"`
	Node       state.NodeID `cbor:"5,keyasint"`
	Name       string       `cbor:"6,keyasint,omitempty"`
	Instance   []byte       `cbor:"7,keyasint"`            // random, one per process: tells a clone from a call to oneself
	Epoch      uint64       `cbor:"8,keyasint"`            // of the sender's writes
	Held       uint64       `cbor:"9,keyasint"`            // highest epoch that the sender knows of the receiver
	Addr       string       `cbor:"10,keyasint,omitempty"` // advertised
	GossipPort uint16       `cbor:"11,keyasint,omitempty"`
	SyncPort   uint16       `cbor:"12,keyasint,omitempty"`
	Bootstrap  bool         `cbor:"13,keyasint,omitempty"`
	Began      uint64       `cbor:"20,keyasint,omitempty"` // epoch at the start of the process: who has run longer
	Probe      bool         `cbor:"21,keyasint,omitempty"` // only asks who is there
	Started    int64        `cbor:"22,keyasint,omitempty"` // by the sender's clock, Unix microseconds
}

// refuse says why the sender closes the connection.
type refuse struct {
	Code   string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

type ping struct {
	ID uint64 `cbor:"1,keyasint"`
}

type pong struct {
	ID   uint64 `cbor:"1,keyasint"`
	Time int64  `cbor:"2,keyasint,omitempty"` // the sender's clock, Unix microseconds; 0: not told
}

// root opens an exchange: the hash of heads and buckets.
type root struct {
	Sum   []byte    `cbor:"1,keyasint"`
	Fresh bool      `cbor:"2,keyasint,omitempty"`
	AsOf  state.HLC `cbor:"3,keyasint,omitempty"` // of the snapshot that Sum is of; see extents
	Whole bool      `cbor:"4,keyasint,omitempty"` // answer with a digest also when equal
}

// same answers a root that is equal: nothing more to say. Fresh, here and
// elsewhere, says that the sender has never held all of the tables, so that
// being equal to it does not count as a full sync.
type same struct {
	Fresh bool      `cbor:"1,keyasint,omitempty"`
	AsOf  state.HLC `cbor:"2,keyasint,omitempty"`
}

// digest says what the sender holds. Answer marks the second one of an
// exchange; More says that the sender held something back to stay within its
// budget.
type digest struct {
	Heads   []state.Head `cbor:"1,keyasint"`
	Buckets []uint64     `cbor:"2,keyasint"`
	Answer  bool         `cbor:"3,keyasint,omitempty"`
	More    bool         `cbor:"4,keyasint,omitempty"`
	Fresh   bool         `cbor:"5,keyasint,omitempty"`
	// Signed says that the sender verifies signatures: it takes the unsigned
	// history of a node from that node only, and signed history in parts.
	Signed bool `cbor:"6,keyasint,omitempty"`
	// Parts says what the sender holds of a history in parts that has begun
	// on this connection: it is to go on from there.
	Parts []part `cbor:"7,keyasint,omitempty"`
	// Horizon is the sender's, AsOf that of its snapshot. Behind says that the
	// sender holds back its shared records until it has those of the peer,
	// whose horizon is higher. Extents are told in a whole exchange.
	Horizon state.HLC `cbor:"8,keyasint,omitempty"`
	AsOf    state.HLC `cbor:"9,keyasint,omitempty"`
	Behind  bool      `cbor:"10,keyasint,omitempty"`
	Whole   bool      `cbor:"11,keyasint,omitempty"`
	Extents []stamp   `cbor:"12,keyasint,omitempty"`
	// Forgotten is the epoch up to which the sender counts the receiver as forgotten.
	Forgotten uint64 `cbor:"13,keyasint,omitempty"`
}

// part is how far a history in parts has come.
type part struct {
	Owner   state.NodeID `cbor:"1,keyasint"`
	To      state.Mark   `cbor:"2,keyasint"`
	Replace bool         `cbor:"3,keyasint,omitempty"`
}

// deltas carries owner-scoped records. A delta with More is a part of a
// history whose signed end comes later; nothing is applied before it. Partial
// is how a version that does not sign says the same of a whole set: the only
// delta of the frame is to be continued by the next deltas frame.
type deltas struct {
	Deltas  []state.Delta `cbor:"1,keyasint"`
	Partial bool          `cbor:"2,keyasint,omitempty"`
}

// records carries records of the other classes.
type records struct {
	Records []state.Record `cbor:"1,keyasint"`
}

// done ends an exchange.
type done struct {
	More  bool `cbor:"1,keyasint,omitempty"`
	Fresh bool `cbor:"2,keyasint,omitempty"`
	// AsOf is that of the snapshot whose records the receiver now holds, with
	// the sender's extents in a whole exchange. Caught says that every bucket
	// in which the receiver differed was sent whole, as of Horizon.
	AsOf    state.HLC `cbor:"3,keyasint,omitempty"`
	Extents []stamp   `cbor:"4,keyasint,omitempty"`
	Caught  bool      `cbor:"5,keyasint,omitempty"`
	Horizon state.HLC `cbor:"6,keyasint,omitempty"`
}

// push carries fresh changes. Sent names nodes that need no copy from the receiver.
type push struct {
	Deltas  []state.Delta  `cbor:"1,keyasint,omitempty"`
	Records []state.Record `cbor:"2,keyasint,omitempty"`
	Sent    []state.NodeID `cbor:"3,keyasint,omitempty"`
}

type request struct {
	ID      uint64 `cbor:"1,keyasint"`
	Method  string `cbor:"2,keyasint"`
	Body    []byte `cbor:"3,keyasint,omitempty"`
	Timeout int64  `cbor:"4,keyasint,omitempty"` // milliseconds
}

type response struct {
	ID    uint64 `cbor:"1,keyasint"`
	Body  []byte `cbor:"2,keyasint,omitempty"`
	Error string `cbor:"3,keyasint,omitempty"`
}

// bye says that the sender leaves the cluster for good.
type bye struct{}

type joinHello struct {
	Proto     uint   `cbor:"1,keyasint"`
	ClusterID string `cbor:"2,keyasint"`
	Code      []byte `cbor:"3,keyasint"` // the code's ID, not the code
	Name      string `cbor:"4,keyasint,omitempty"`
}

type challenge struct {
	CA []byte `cbor:"1,keyasint"` // public key, checked against the token's hash
}

type proof struct {
	MAC []byte `cbor:"1,keyasint"`
}

type grant struct {
	MAC       []byte   `cbor:"1,keyasint"`
	Secret    []byte   `cbor:"2,keyasint"`
	ClusterID string   `cbor:"3,keyasint"`
	Cluster   string   `cbor:"4,keyasint,omitempty"`
	RingID    string   `cbor:"5,keyasint"`
	Seeds     []string `cbor:"6,keyasint"`
	// During a rotation Secret is the one that the token was made with, and
	// these are the issuer's keyring.
	Primary  []byte `cbor:"7,keyasint,omitempty"`
	Next     []byte `cbor:"8,keyasint,omitempty"`
	Previous []byte `cbor:"9,keyasint,omitempty"`
}

func (*hello) kind() kind     { return kindHello }
func (*refuse) kind() kind    { return kindRefuse }
func (*ping) kind() kind      { return kindPing }
func (*pong) kind() kind      { return kindPong }
func (*root) kind() kind      { return kindRoot }
func (*same) kind() kind      { return kindSame }
func (*digest) kind() kind    { return kindDigest }
func (*deltas) kind() kind    { return kindDeltas }
func (*records) kind() kind   { return kindRecords }
func (*done) kind() kind      { return kindDone }
func (*push) kind() kind      { return kindPush }
func (*request) kind() kind   { return kindRequest }
func (*response) kind() kind  { return kindResponse }
func (*bye) kind() kind       { return kindBye }
func (*joinHello) kind() kind { return kindJoinHello }
func (*challenge) kind() kind { return kindChallenge }
func (*proof) kind() kind     { return kindProof }
func (*grant) kind() kind     { return kindGrant }

func newFrame(k kind) frame {
	switch k {
	case kindHello:
		return new(hello)
	case kindRefuse:
		return new(refuse)
	case kindPing:
		return new(ping)
	case kindPong:
		return new(pong)
	case kindRoot:
		return new(root)
	case kindSame:
		return new(same)
	case kindDigest:
		return new(digest)
	case kindDeltas:
		return new(deltas)
	case kindRecords:
		return new(records)
	case kindDone:
		return new(done)
	case kindPush:
		return new(push)
	case kindRequest:
		return new(request)
	case kindResponse:
		return new(response)
	case kindBye:
		return new(bye)
	case kindBucket:
		return new(bucket)
	case kindJoinHello:
		return new(joinHello)
	case kindChallenge:
		return new(challenge)
	case kindProof:
		return new(proof)
	case kindGrant:
		return new(grant)
	}
	return nil
}

var (
	errFrameSize    = errors.New("frame is too large")
	errFrameVersion = errors.New("frame of another protocol version")
)

var frameEnc, frameDec = func() (cbor.EncMode, cbor.DecMode) {
	em, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	dm, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		MaxArrayElements: 1 << 17,
		MaxMapPairs:      1 << 10,
		MaxNestedLevels:  16,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return em, dm
}()

// encodeFrame returns the bytes of a frame as they go on the wire.
func encodeFrame(f frame) ([]byte, error) {
	body, err := frameEnc.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode %s frame: %w", f.kind(), err)
	}
	if len(body)+2 > MaxFrame {
		return nil, fmt.Errorf("encode %s frame of %d bytes: %w", f.kind(), len(body), errFrameSize)
	}
	b := make([]byte, frameHeader, frameHeader+len(body))
	binary.BigEndian.PutUint32(b, uint32(len(body)+2))
	b[4], b[5] = frameVersion, byte(f.kind())
	return append(b, body...), nil
}

// readFrame reads one frame of at most limit bytes. The frame is nil when its
// kind is unknown. n is what was taken off the wire.
func readFrame(r io.Reader, limit int) (f frame, n int, err error) {
	k, body, n, err := readBody(r, limit)
	if err != nil {
		return nil, n, err
	}
	f, err = decodeFrame(k, body)
	return f, n, err
}

// readBody reads a frame without looking into it.
func readBody(r io.Reader, limit int) (k kind, body []byte, n int, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, 0, err
	}
	size := int64(binary.BigEndian.Uint32(h[:]))
	k = kind(h[5])
	switch {
	case size < 2:
		return k, nil, 0, fmt.Errorf("read frame of %d bytes: want at least 2", size)
	case h[4] != frameVersion:
		return k, nil, 0, fmt.Errorf("read frame: %w: %d, want %d", errFrameVersion, h[4], frameVersion)
	case size > int64(limit):
		return k, nil, 0, fmt.Errorf("read %s frame of %d bytes: %w: at most %d", k, size, errFrameSize, limit)
	}
	body = make([]byte, size-2)
	if _, err := io.ReadFull(r, body); err != nil {
		return k, nil, 0, fmt.Errorf("read %s frame: %w", k, err)
	}
	return k, body, frameHeader + len(body), nil
}

// decodeFrame decodes what readBody returned; nil for an unknown kind.
func decodeFrame(k kind, body []byte) (frame, error) {
	f := newFrame(k)
	if f == nil {
		return nil, nil
	}
	if err := frameDec.Unmarshal(body, f); err != nil {
		return nil, fmt.Errorf("decode %s frame: %w", k, err)
	}
	return f, nil
}
