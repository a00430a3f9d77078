package gossip

import (
	"bytes"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"nodenet/state"
)

// wirePush is a push with its deltas encoded: the same bytes on the wire.
type wirePush struct {
	Deltas  []cbor.RawMessage `cbor:"1,keyasint,omitempty"`
	Records []state.Record    `cbor:"2,keyasint,omitempty"`
	Sent    []state.NodeID    `cbor:"3,keyasint,omitempty"`
}

func (*wirePush) kind() kind { return kindPush }

// place is what must be known of a delta to tell whether it brings anything.
type place struct {
	Owner   state.NodeID `cbor:"1,keyasint"`
	To      state.Mark   `cbor:"3,keyasint"`
	Replace bool         `cbor:"4,keyasint,omitempty"`
}

// encodedBytes bounds what encoded keeps.
const encodedBytes = 1 << 20

// encoded keeps the last deltas that were pushed as they go on the wire: the
// same ones leave on several links within a moment. The zero value is ready;
// it is safe for concurrent use.
type encoded struct {
	mu    sync.Mutex
	last  map[state.NodeID]encodedDelta
	bytes int // of last
}

type encodedDelta struct {
	from, to state.Mark
	sig      []byte
	records  int
	raw      cbor.RawMessage
}

// delta returns what an owner changed after a mark, encoded. It reports false
// when that is more than a push carries.
func (e *encoded) delta(sn *state.Snapshot, owner state.NodeID, from state.Mark) (encodedDelta, bool) {
	h := sn.Head(owner)
	e.mu.Lock()
	c, ok := e.last[owner]
	e.mu.Unlock()
	if ok && c.from == from && c.to == h.Mark && from.Compare(h.Floor) >= 0 && bytes.Equal(c.sig, h.Sig) {
		return c, true
	}
	d := sn.Delta(owner, from, chunkRecords)
	if d.Replace || d.To != h.Mark {
		return encodedDelta{}, false
	}
	raw, err := frameEnc.Marshal(&d)
	if err != nil {
		return encodedDelta{}, false
	}
	c = encodedDelta{d.From, d.To, d.Sig, len(d.Records), raw}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bytes += len(raw); e.last == nil || e.bytes > encodedBytes {
		e.last, e.bytes = map[state.NodeID]encodedDelta{}, len(raw)
	}
	e.bytes -= len(e.last[owner].raw)
	e.last[owner] = c
	return c, true
}
