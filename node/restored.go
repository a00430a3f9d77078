package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"nodenet/api"
)

// restoredFile in the state directory says that the tables are those of an
// earlier day: nothing is given out before a peer has told what has become of
// the ranges since.
const restoredFile = "restored"

// epochFile holds an epoch that must not be used again, where the tables may
// not know of it.
const epochFile = "epoch"

var errRestored = &api.Error{Message: "the state of this node was restored from a snapshot, and no other node has told yet what changed since: " +
	"it gives out no addresses until then; start another node, or if there is none any more, restore again with --alone", Code: api.CodeNotReady}

// mayAllocate says why this node must not give out addresses now, or nil.
func (n *Node) mayAllocate() error {
	switch {
	case n.leaving.Load():
		return errLeaving
	case n.restored.Load():
		return errRestored
	}
	return nil
}

// openRestored looks for the marks that a restore has left.
func (n *Node) openRestored() {
	if n.copied() {
		n.log.Warn("the state directory is a copy that was put back: its tables may be old; if no other node is left, stop the daemon, remove the file restored there and start again",
			"dir", n.dir)
		// As after `nodectl restore`: also who made the cluster waits for a peer.
		n.cluster.Bootstrap, n.cluster.Synced = false, false
		if err := n.cluster.Save(n.dir); err != nil {
			n.log.Error("cluster not saved", "err", err)
		}
	}
	if _, err := os.Stat(filepath.Join(n.dir, restoredFile)); err == nil {
		n.restored.Store(true)
		n.log.Warn("the state was restored: no addresses are given out before a peer is in sync")
	}
}

// runRestored ends that once a peer has told all that it knows.
func (n *Node) runRestored(ctx context.Context) error {
	if !n.restored.Load() {
		return nil
	}
	select {
	case <-n.gossip.Synced():
	case <-ctx.Done():
		return nil
	}
	if err := os.Remove(filepath.Join(n.dir, restoredFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Error("mark of the restore not removed", "err", err)
	}
	n.restored.Store(false)
	n.log.Info("the restored state is up to date")
	return nil
}

// minEpoch is above every epoch that this node is known to have used, also in
// a life that the tables have forgotten or that counts no longer.
func (n *Node) minEpoch() uint64 {
	e := n.store.Snapshot().WasForgotten()
	if b, err := os.ReadFile(filepath.Join(n.dir, epochFile)); err == nil {
		if v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil {
			e = max(e, v)
		}
	}
	return max(e, n.store.Epoch()) + 1
}
