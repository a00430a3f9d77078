package state

// Log makes records durable. Commit returns when the batch would survive a
// crash; a batch is all or nothing. The Store calls it from one goroutine.
type Log interface {
	Commit(batch []Record) error
}

// NoLog keeps nothing: for tests and simulations.
type NoLog struct{}

// Commit implements Log.
func (NoLog) Commit([]Record) error { return nil }

// Dropper is a Log that can forget collected tombstones. It keeps the heads
// with their floors in the same transaction.
type Dropper interface {
	Drop(ids []ID, heads []Head) error
}

// HeadLog is a Log that can keep heads together with the records that they
// speak of: a floor taken over from a peer must not be known without what it
// replaced, nor the other way round.
type HeadLog interface {
	CommitHeads(batch []Record, heads []Head) error
}
