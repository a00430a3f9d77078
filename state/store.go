package state

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Errors by which callers branch.
var (
	// ErrGap: a delta begins after what we hold; ask for what lies between.
	ErrGap = errors.New("delta does not join on to what is held")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("state store is closed")
	// ErrForeignWriter: a peer holds records of our own ID that we never wrote.
	ErrForeignWriter = errors.New("somebody else writes with this node's identity")
)

const (
	// maxBatch bounds how many requests one group commit takes along.
	maxBatch = 256
	// saveDelay is how long what owners say of themselves may wait for the Log, and
	// saveRecords how many records of it: they travel to the disk together. A
	// crash before that loses what peers hold, and tell again.
	saveDelay   = 50 * time.Millisecond
	saveRecords = 4096
	// saveRetry is the wait after a save that failed, when nothing else saves.
	saveRetry = 5 * time.Second
)

// Options configures a Store.
type Options struct {
	Self    NodeID
	Epoch   uint64   // of our own writes; see SetEpoch
	Log     Log      // nil: NoLog
	Clock   *Clock   // nil: a clock that reads time.Now
	Records []Record // what the Log held at start
	Heads   []Head   // heads that the Log held at start
	Logger  *slog.Logger
	// Key signs our own head; Self is the hash of its public half. Nil, for
	// tests: own records are not signed, and others' need not be.
	Key ed25519.PrivateKey
}

// Store is the tables of one node. One goroutine commits; everything else
// reads immutable snapshots. All methods are safe for concurrent use.
type Store struct {
	self    NodeID
	log     Log
	clock   *Clock
	logger  *slog.Logger
	key     ed25519.PrivateKey // nil: nothing is signed
	deriver *deriver
	cur     atomic.Pointer[Snapshot]
	epoch   atomic.Uint64
	wrote   atomic.Bool // an own record was written in this epoch

	saveErr atomic.Pointer[error] // of the last commit; nil: it went well

	queue  chan *request
	closed chan struct{}
	done   chan struct{}
	close  sync.Once
	audits sync.WaitGroup

	interner interner

	feedsMu sync.Mutex
	feeds   map[*Feed]struct{}

	// How far our own history went when it was last known to be whole: at
	// start, and after a Reissue; the committer's own.
	loaded   Mark
	began    uint64 // epoch of this run's first own write
	reissues int
	catching HLC // see CatchUp; the committer's own
	// Merged, not yet in the Log; the committer's own.
	unsaved      []Record
	unsavedHeads []Head
	due          *time.Timer // when to save them
	waiting      bool        // due is set
	undropped    []ID        // collected, still in the Log
	summer       summer
}

type request struct {
	write   func(*Snapshot) ([]Op, error)
	deltas  []*checked
	merge   []Record
	durable bool
	live    map[NodeID]Live
	collect time.Time // tombstones older than this go
	step    func(*batch) error
	held    *Mark  // what a peer holds of us; see Reissue
	doubt   *entry // does not match its records; see audit

	ctx     context.Context
	applied int
	rev     uint64
	err     error
	done    chan struct{}
}

// Op is one change of a Write.
type Op struct {
	Class  Class
	Kind   Kind
	Key    string
	Value  any // nil with Delete
	Delete bool
	// Gen is the generation of a Lease or Ring record; 0 means one above the
	// current one.
	Gen uint64
}

// Put returns an Op that stores v.
func Put(c Class, k Kind, key string, v any) Op { return Op{Class: c, Kind: k, Key: key, Value: v} }

// Del returns an Op that leaves a tombstone. Deleting what is not there is no change.
func Del(c Class, k Kind, key string) Op { return Op{Class: c, Kind: k, Key: key, Delete: true} }

// NewStore loads the records and starts the committer. A record whose ID is
// impossible is left out with a warning: nothing of it is lost on disk.
func NewStore(o Options) (*Store, error) {
	if !o.Self.Valid() {
		return nil, fmt.Errorf("open state: %q is not a node ID", o.Self)
	}
	if o.Key != nil && NodeIDFromKey(o.Key.Public().(ed25519.PublicKey)) != o.Self {
		return nil, fmt.Errorf("open state: the key is not that of node %s", o.Self)
	}
	s := &Store{
		self: o.Self, log: o.Log, clock: o.Clock, logger: o.Logger, key: o.Key, deriver: &deriver{},
		queue:  make(chan *request, 4*maxBatch),
		closed: make(chan struct{}), done: make(chan struct{}),
		feeds: make(map[*Feed]struct{}),
	}
	if s.log == nil {
		s.log = NoLog{}
	}
	if s.clock == nil {
		s.clock = &Clock{}
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	b := s.begin(&Snapshot{
		self: o.Self, tables: newTables(), heads: newTree(compareEntries), live: map[NodeID]Live{}, conflicts: map[ID]Conflict{}, deriver: s.deriver,
	})
	for i := range o.Records {
		r := o.Records[i]
		if err := r.ID.Validate(); err != nil {
			s.logger.Warn("saved record left out", "err", err)
			continue
		}
		s.understand(&r)
		// Our wall clock may have been set back since this was written.
		s.clock.Observe(r.Version.HLC)
		b.put(&r)
	}
	if b.sweep(b.horizon().Before) > 0 { // a crash came between the horizon and what it collects
		s.undropped = b.drops
	}
	for _, h := range o.Heads {
		e := b.edit(h.Owner)
		e.head.Floor = h.Floor
		// Records beyond the head come from a version that did not sign.
		if e.head.Mark.Compare(h.Mark) <= 0 {
			e.head.Mark, e.head.Hash, e.head.Key, e.head.Sig = h.Mark, h.Hash, h.Key, h.Sig
		}
	}
	if h := b.head(o.Self); s.key != nil && h.Mark != (Mark{}) && (!h.Signed() || h.verify() != nil) {
		b.own = sumOf(b.next, b.entry(o.Self))
		b.sign()
		s.unsavedHeads = b.saves
	}
	s.publish(b)
	s.loaded = s.Snapshot().Head(o.Self).Mark
	s.epoch.Store(max(o.Epoch, s.loaded.Epoch))
	go s.run()
	s.audits.Go(s.audit)
	return s, nil
}

// Close stops the committer after the batch that it is at; writes that still
// wait fail with ErrClosed and were not done.
func (s *Store) Close() error {
	s.close.Do(func() { close(s.closed) })
	<-s.done
	s.audits.Wait()
	return nil
}

// Self returns the ID under which own records are written.
func (s *Store) Self() NodeID { return s.self }

// Epoch returns the epoch of own writes.
func (s *Store) Epoch() uint64 { return s.epoch.Load() }

// SetEpoch raises the epoch of own writes. After the first own write it
// changes nothing: an epoch belongs to one run of the daemon.
func (s *Store) SetEpoch(e uint64) {
	for !s.wrote.Load() {
		cur := s.epoch.Load()
		if e <= cur || s.epoch.CompareAndSwap(cur, e) {
			return
		}
	}
}

// SaveError returns why the last batch could not be made durable, or nil. It
// stands until a later batch goes well.
func (s *Store) SaveError() error {
	if e := s.saveErr.Load(); e != nil {
		return *e
	}
	return nil
}

// Snapshot returns the newest state.
func (s *Store) Snapshot() *Snapshot { return s.cur.Load() }

// Write runs fn on the newest state and commits the ops that it returns as
// one transaction: all or none, durable before Write returns. Writes run one
// after another, each seeing those before it. fn must be quick and must not
// call the Store. No ops means no new revision.
func (s *Store) Write(ctx context.Context, fn func(*Snapshot) ([]Op, error)) (uint64, error) {
	r := &request{write: fn, ctx: ctx}
	if err := s.do(ctx, r); err != nil {
		return 0, err
	}
	return r.rev, r.err
}

// Merge applies records of the non-owner classes. With durable it returns
// when they would survive a crash. It returns how many were new.
func (s *Store) Merge(recs []Record, durable bool) (int, error) {
	for i := range recs {
		r := &recs[i]
		if r.ID.Class == Owner {
			return 0, fmt.Errorf("merge record %s: owner-scoped records come as deltas", r.ID)
		}
		if err := r.ID.Validate(); err != nil {
			return 0, fmt.Errorf("merge: %w", err)
		}
		s.understand(r)
	}
	r := &request{merge: recs, durable: durable}
	if err := s.do(context.Background(), r); err != nil {
		return 0, err
	}
	return r.applied, r.err
}

// Flush returns when all that was merged so far would survive a crash.
func (s *Store) Flush() error {
	_, err := s.Merge(nil, true)
	return err
}

// understand decodes a record's value. One that this version cannot read is
// kept and passed on all the same; no view will show it.
func (s *Store) understand(r *Record) {
	if r.val != nil {
		return // somebody else's, who reads it
	}
	if err := r.decode(); err != nil {
		s.logger.Warn("record kept but not understood", "err", err)
	}
	if r.val != nil {
		s.interner.record(r)
	}
}

// SetLiveness replaces the liveness table.
func (s *Store) SetLiveness(m map[NodeID]Live) {
	_ = s.do(context.Background(), &request{live: maps.Clone(m)})
}

// Collect removes own and foreign owner-scoped tombstones written before the
// given time and raises the owners' floors.
func (s *Store) Collect(before time.Time) (int, error) {
	r := &request{collect: before}
	if err := s.do(context.Background(), r); err != nil {
		return 0, err
	}
	return r.applied, r.err
}

func (s *Store) do(ctx context.Context, r *request) error {
	r.done = make(chan struct{})
	select {
	case <-s.closed:
		return ErrClosed
	default:
	}
	select {
	case s.queue <- r:
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-r.done:
		return nil
	case <-s.done:
		select {
		case <-r.done:
			return nil
		default:
			return ErrClosed
		}
	}
}

func (s *Store) run() {
	defer close(s.done)
	s.due = time.NewTimer(saveDelay)
	defer s.due.Stop()
	s.waiting = true
	for {
		var batch []*request
		select {
		case r := <-s.queue:
			batch = append(batch, r)
		case <-s.due.C:
			s.waiting = false
			s.flush()
		case <-s.closed:
			s.flush()
			return
		}
	drain:
		for len(batch) < maxBatch {
			select {
			case r := <-s.queue:
				batch = append(batch, r)
			default:
				break drain
			}
		}
		s.commit(batch)
	}
}

// commit handles a batch in two steps. What peers said is applied to memory
// whatever the disk does, and saved a moment later with what comes after it:
// they hold it too. Own writes exist only once the Log has them, and all that
// they may build on.
func (s *Store) commit(reqs []*request) {
	b := s.begin(s.cur.Load())
	for _, r := range reqs {
		switch {
		case r.deltas != nil:
			for _, c := range r.deltas {
				c.Applied, c.Err = b.delta(c)
			}
		case r.merge != nil:
			r.applied = b.merge(r.merge, b.stale(r.durable))
		case r.step != nil:
			r.err = r.step(b)
		case r.live != nil:
			b.next.live, b.next.liveRev = r.live, b.next.rev+1
			b.touched = true
		case !r.collect.IsZero():
			r.applied, r.err = b.collect(r.collect)
		case r.doubt != nil && r.doubt.head.Owner != s.self:
			b.doubt(r.doubt)
		}
	}
	s.unsaved = append(s.unsaved, b.out...)
	s.unsavedHeads = append(s.unsavedHeads, b.saves...)
	s.undropped = append(s.undropped, b.drops...)
	s.publish(b)
	for _, r := range reqs {
		if !r.waits() {
			close(r.done)
		}
	}

	w := s.begin(s.cur.Load())
	for _, r := range reqs {
		switch {
		case r.write != nil:
			r.err = w.write(r)
		case r.held != nil:
			r.applied, r.err = w.reissue(*r.held)
		case r.doubt != nil && r.doubt.head.Owner == s.self:
			w.restate(r.doubt)
		}
	}
	w.sign()
	var err error
	if urgent(reqs) || anyShared(b.out) || len(w.out) > 0 || len(w.saves) > 0 || len(s.unsaved) >= saveRecords {
		err = s.saveAll(w.out, w.saves)
	} else if !s.waiting && len(s.unsaved)+len(s.unsavedHeads) > 0 {
		s.due.Reset(saveDelay)
		s.waiting = true
	}
	var derr error
	if err == nil {
		s.publish(w)
		if w.begun {
			s.loaded = s.cur.Load().Head(s.self).Mark
		}
		s.undropped = append(s.undropped, w.drops...)
		derr = s.drop()
	}
	rev := s.cur.Load().rev
	for _, r := range reqs {
		if !r.waits() {
			continue
		}
		if err != nil && r.err == nil && (r.write != nil || r.held != nil || r.durable) {
			r.err = fmt.Errorf("save state: %w", err)
		}
		if derr != nil && !r.collect.IsZero() && r.err == nil {
			r.err = fmt.Errorf("collect tombstones: %w", derr)
		}
		r.rev = rev
		close(r.done)
	}
}

// waits reports whether a request is done only when the Log has what it led to.
func (r *request) waits() bool {
	return r.write != nil || r.held != nil || r.durable || r.doubt != nil || !r.collect.IsZero()
}

// anyShared reports whether some of the records are of the classes that any node
// writes. They say what this node may give out (ranges, leases, VIPs), so that
// a crash must not make it forget them: they are saved at once.
func anyShared(recs []Record) bool {
	return slices.ContainsFunc(recs, func(r Record) bool { return r.ID.Class != Owner })
}

func urgent(reqs []*request) bool {
	return slices.ContainsFunc(reqs, (*request).waits)
}

// saveAll commits what peers said and, after it, own records and heads.
func (s *Store) saveAll(own []Record, ownHeads []Head) error {
	batch := append(append([]Record(nil), s.unsaved...), own...)
	heads := append(append([]Head(nil), s.unsavedHeads...), ownHeads...)
	if len(batch)+len(heads) == 0 {
		return nil
	}
	if err := s.save(batch, heads); err != nil {
		s.saveErr.Store(&err)
		s.logger.Error("records not saved", "records", len(batch), "err", err)
		s.unsaved = dedupe(s.unsaved, func(r *Record) ID { return r.ID })
		s.unsavedHeads = dedupe(s.unsavedHeads, func(h *Head) NodeID { return h.Owner })
		if !s.waiting {
			s.due.Reset(saveRetry)
			s.waiting = true
		}
		return err
	}
	s.unsaved, s.unsavedHeads = nil, nil
	s.saveErr.Store(nil)
	return nil
}

// flush saves what waits. An error has been told of, and it is tried again.
func (s *Store) flush() {
	if s.saveAll(nil, nil) != nil {
		return
	}
	if err := s.drop(); err != nil {
		s.logger.Warn("tombstones stay on disk for now", "err", err)
	}
}

// save commits a batch, with the heads that belong to it where the Log can.
func (s *Store) save(batch []Record, heads []Head) error {
	if l, ok := s.log.(HeadLog); ok && len(heads) > 0 {
		return l.CommitHeads(batch, heads)
	}
	return s.log.Commit(batch)
}

// drop makes the Log forget collected tombstones. The heads that go with
// that name marks, so everything up to those marks must be saved by now: a
// mark without its records would never be asked for again.
func (s *Store) drop() error {
	if len(s.unsaved)+len(s.unsavedHeads) > 0 {
		return nil // after they are saved
	}
	d, ok := s.log.(Dropper)
	if !ok || len(s.undropped) == 0 {
		s.undropped = nil
		return nil
	}
	sn := s.Snapshot()
	// What was written anew meanwhile stays.
	s.undropped = slices.DeleteFunc(s.undropped, func(id ID) bool { _, there := sn.Get(id); return there })
	// A head in doubt is left as it was saved, so that it is found out again.
	heads := slices.DeleteFunc(sn.Heads(), func(h Head) bool { return h.Mark == Mark{} })
	if err := d.Drop(s.undropped, heads); err != nil {
		return err
	}
	s.undropped = nil
	return nil
}

// dedupe keeps the last of those with one key, so that a disk that stays full
// does not make us grow.
func dedupe[T any, K comparable](list []T, key func(*T) K) []T {
	last := make(map[K]int, len(list))
	for i := range list {
		last[key(&list[i])] = i
	}
	out := list[:0]
	for i := range list {
		if last[key(&list[i])] == i {
			out = append(out, list[i])
		}
	}
	return out
}

func compareStrings(a, b string) int { return strings.Compare(a, b) }
