package dns

import (
	"math/rand/v2"
	"slices"
)

// desk is where one goroutine answers clients for whom a reply has come from
// elsewhere. Answers to the same socket go out together.
type desk struct {
	r     responder
	boxes []*outbox // with something in them
	srv   *Server   // of the tally
}

func newDesk() *desk { return &desk{r: responder{turn: rand.Uint64() | 1}} }

// touch notes that an outbox has to be flushed.
func (d *desk) touch(s *Server, o *outbox) {
	d.srv = s
	if !slices.Contains(d.boxes, o) {
		d.boxes = append(d.boxes, o)
	}
}

func (d *desk) flush() {
	for _, o := range d.boxes {
		_ = o.flush() // a client that cannot be reached is no error of ours
	}
	clear(d.boxes)
	d.boxes = d.boxes[:0]
	if d.srv != nil {
		d.r.tally.flush(d.srv.metrics)
	}
}
