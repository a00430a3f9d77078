// Package disk keeps a store's records in a bbolt file: the durable side of
// package state.
//
//	records   key: kind NUL class owner NUL key    value: CBOR of state.Record
//	heads     key: owner                            value: CBOR of state.Head
//
// A batch is one bbolt transaction, synced before Commit returns.
package disk

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"nodenet/state"
)

var (
	bucketRecords = []byte("records")
	bucketHeads   = []byte("heads")
)

// DB is an open state file. It implements state.Log, state.HeadLog and
// state.Dropper.
type DB struct {
	bolt *bolt.DB
	path string
}

// ErrLocked means that another process has the file open.
var ErrLocked = errors.New("state file is in use by another process")

// Open opens or creates the file. One that is damaged, so that it cannot be
// read as a state file, is set aside under a name that says when, and an empty
// one takes its place: the node's own records come back from its peers. A file
// that the system refuses to open (locked, not permitted, no space, an I/O
// error) is an error and is left alone.
func Open(path string, logger *slog.Logger) (*DB, error) {
	db, err := open(path)
	var errno syscall.Errno
	if err == nil || errors.Is(err, ErrLocked) || errors.As(err, &errno) {
		return db, err
	}
	if _, serr := os.Stat(path); serr != nil {
		return nil, err
	}
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
	if rerr := os.Rename(path, aside); rerr != nil {
		return nil, errors.Join(err, fmt.Errorf("set aside %s: %w", path, rerr))
	}
	logger.Error("state file unreadable, set aside; starting empty and asking the peers", "file", path, "kept", aside, "err", err)
	return open(path)
}

func open(path string) (d *DB, err error) {
	// bbolt maps the file: a damaged one makes it panic, a truncated one fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			d, err = nil, fmt.Errorf("open %s: damaged: %v", path, r)
		}
	}()
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 2 * time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	complete, err := touch(b)
	if err == nil && !complete {
		err = b.Update(func(tx *bolt.Tx) error {
			for _, name := range [][]byte{bucketRecords, bucketHeads} {
				if _, err := tx.CreateBucketIfNotExists(name); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), b.Close())
	}
	return &DB{bolt: b, path: path}, nil
}

// touch reads every page that a Load would, so that damage shows here, where
// it is survived, and reports whether both buckets are there. A file that is
// whole is not written to: it opens on a full disk too.
func touch(b *bolt.DB) (complete bool, err error) {
	err = b.View(func(tx *bolt.Tx) error {
		complete = true
		for _, name := range [][]byte{bucketRecords, bucketHeads} {
			bucket := tx.Bucket(name)
			if bucket == nil {
				complete = false
				continue
			}
			if err := bucket.ForEach(func(k, v []byte) error { _ = len(k) + len(v); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	return complete, err
}

// Close releases the file.
func (d *DB) Close() error { return d.bolt.Close() }

// Load returns all records and the heads kept beside them, signatures included. A record that
// cannot be decoded is reported in the error; the others are returned.
func (d *DB) Load() ([]state.Record, []state.Head, error) {
	var recs []state.Record
	var heads []state.Head
	var bad []error
	err := d.bolt.View(func(tx *bolt.Tx) error {
		_ = tx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
			var r state.Record
			if err := state.Decode(v, &r); err != nil {
				bad = append(bad, fmt.Errorf("record %q: %w", k, err))
				return nil
			}
			recs = append(recs, r)
			return nil
		})
		return tx.Bucket(bucketHeads).ForEach(func(k, v []byte) error {
			var h state.Head
			if err := state.Decode(v, &h); err != nil {
				bad = append(bad, fmt.Errorf("head %q: %w", k, err))
				return nil
			}
			heads = append(heads, h)
			return nil
		})
	})
	return recs, heads, errors.Join(append(bad, err)...)
}

// Commit implements state.Log.
func (d *DB) Commit(batch []state.Record) error { return d.CommitHeads(batch, nil) }

// CommitHeads implements state.HeadLog.
func (d *DB) CommitHeads(batch []state.Record, heads []state.Head) error {
	err := d.bolt.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketRecords)
		for i := range batch {
			v, err := state.Encode(&batch[i])
			if err != nil {
				return err
			}
			if err := b.Put(batch[i].ID.Bytes(), v); err != nil {
				return err
			}
		}
		return putHeads(tx, heads)
	})
	if err != nil {
		return d.writeError(err)
	}
	return nil
}

func putHeads(tx *bolt.Tx, heads []state.Head) error {
	for i := range heads {
		v, err := state.Encode(&heads[i])
		if err != nil {
			return err
		}
		if err := tx.Bucket(bucketHeads).Put([]byte(heads[i].Owner), v); err != nil {
			return err
		}
	}
	return nil
}

// Drop implements state.Dropper.
func (d *DB) Drop(ids []state.ID, heads []state.Head) error {
	err := d.bolt.Update(func(tx *bolt.Tx) error {
		for _, id := range ids {
			if err := tx.Bucket(bucketRecords).Delete(id.Bytes()); err != nil {
				return err
			}
		}
		return putHeads(tx, heads)
	})
	if err != nil {
		return d.writeError(err)
	}
	return nil
}

// writeError names the file once: errors of the operating system name it too.
func (d *DB) writeError(err error) error {
	var p *os.PathError
	if errors.As(err, &p) && p.Path == d.path {
		return err
	}
	return fmt.Errorf("write %s: %w", d.path, err)
}
