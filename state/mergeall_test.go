package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// countLog counts commits, and fails when told to.
type countLog struct {
	mu      sync.Mutex
	commits int
	records int
	err     error
}

func (l *countLog) Commit(batch []Record) error { return l.CommitHeads(batch, nil) }

func (l *countLog) CommitHeads(batch []Record, _ []Head) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.commits++
	l.records += len(batch)
	return nil
}

func (l *countLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *countLog) count() (commits, records int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commits, l.records
}

// What peers say travels to the disk together, a moment later; who writes, or
// asks for it, finds it there.
func TestMergesAreSavedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &countLog{}
		s, err := NewStore(Options{Self: testID(0), Log: log})
		if err != nil {
			t.Fatal(err)
		}
		seq := uint64(0)
		merge := func() {
			t.Helper()
			seq++
			d := Delta{Owner: testID(1), From: Mark{1, seq - 1}, To: Mark{1, seq}, Records: []Record{{
				ID: ID{Owner, KindBlock, testID(1), fmt.Sprint(seq)}, Version: Version{Epoch: 1, Seq: seq}, Value: []byte{0xa0},
			}}}
			if seq == 1 {
				d.From = Mark{}
			}
			if n, err := s.MergeDelta(d); n != 1 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		want := func(commits, records int) {
			t.Helper()
			synctest.Wait()
			if c, r := log.count(); c != commits || r != records {
				t.Errorf("%d commits of %d records, want %d of %d", c, r, commits, records)
			}
		}
		for range 10 {
			merge()
		}
		want(0, 0)
		time.Sleep(2 * saveDelay)
		want(1, 10)
		merge()
		if err := s.Flush(); err != nil {
			t.Error(err)
		}
		want(2, 11)
		merge()
		if _, err := s.Write(context.Background(), func(*Snapshot) ([]Op, error) {
			return []Op{Put(Owner, KindBlock, "own", Block{})}, nil
		}); err != nil {
			t.Error(err)
		}
		want(3, 13)
		// A full disk: told of, kept, tried again without further changes.
		full := errors.New("disk is full")
		log.fail(full)
		merge()
		if err := s.Flush(); !errors.Is(err, full) {
			t.Errorf("flush to a full disk: %v", err)
		}
		if err := s.SaveError(); !errors.Is(err, full) {
			t.Errorf("save error %v", err)
		}
		log.fail(nil)
		time.Sleep(2 * saveRetry)
		want(4, 14)
		if err := s.SaveError(); err != nil {
			t.Errorf("save error %v after all was saved", err)
		}
		for range saveRecords {
			merge()
		}
		want(5, 14+saveRecords)
		merge()
		s.Close()
		want(6, 15+saveRecords)
	})
}

// Deltas of one frame: each has its own end, those of one owner in order.
func TestMergeAll(t *testing.T) {
	from := [3]*Store{}
	for i := range from {
		from[i] = newSigner(t, byte(i+1), Options{})
	}
	s := newSigner(t, 9, Options{})
	var ds []Delta
	for round := range 3 {
		for _, f := range from {
			at := f.Snapshot().Head(f.Self()).Mark
			if _, err := f.Write(context.Background(), func(*Snapshot) ([]Op, error) {
				return []Op{Put(Owner, KindBlock, fmt.Sprint(round), Block{Network: "pods"})}, nil
			}); err != nil {
				t.Fatal(err)
			}
			ds = append(ds, f.Snapshot().Delta(f.Self(), at, 0))
		}
	}
	ds[4].Sig = append([]byte(nil), ds[4].Sig...)
	ds[4].Sig[0] ^= 1 // the second of owner 1: the third does not join on to the first then
	for i, m := range s.MergeAll("", append(ds, ds[0])) {
		want, n := error(nil), 1
		switch i {
		case 4:
			want, n = ErrForged, 0
		case 7:
			want, n = ErrGap, 0
		case 9:
			n = 0
		}
		if !errors.Is(m.Err, want) || m.Applied != n {
			t.Errorf("delta %d: %d, %v, want %d, %v", i, m.Applied, m.Err, n, want)
		}
	}
	for i, f := range from {
		want := f.Snapshot().Head(f.Self()).Mark
		if i == 1 {
			want = ds[1].To
		}
		if got := s.Snapshot().Head(f.Self()).Mark; got != want {
			t.Errorf("owner %d: %v, want %v", i, got, want)
		}
	}
}
