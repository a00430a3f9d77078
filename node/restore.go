package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/gossip"
	"nodenet/state"
	"nodenet/state/disk"
)

// RestoreOptions says what to restore, and where to.
type RestoreOptions struct {
	ConfigFile, StateDir string
	File                 string
	// Alone says that no other node is left that could tell what has changed
	// since the snapshot was saved.
	Alone  bool
	Logger *slog.Logger
}

// RestoreResult says what was restored.
type RestoreResult struct {
	Cluster   string   `json:"cluster"`
	ClusterID string   `json:"clusterId"`
	Node      string   `json:"node"` // that the snapshot was saved on
	Saved     int64    `json:"saved"`
	Records   int      `json:"records"`
	Aside     string   `json:"aside,omitempty"` // where the former tables are
	Explain   []string `json:"explain"`         // what happens now
}

// Restore puts a snapshot into the state directory of a daemon that does not
// run. It refuses one of another cluster. What was there is kept beside it.
//
// The node's next epoch is above that of the snapshot, of the tables which it
// replaces, of the clock, and of what any peer holds. Since the snapshot the
// node may have given address space away; so it gives out nothing before
// a peer has told, unless Alone says that there is none.
func Restore(o RestoreOptions) (*RestoreResult, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	data, err := os.ReadFile(o.File)
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	h, recs, err := decodeSnapshot(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o.File, err)
	}
	cfg, err := loadConfig(Options{ConfigFile: o.ConfigFile, StateDir: o.StateDir})
	if err != nil {
		return nil, err
	}
	dir := cfg.Node.StateDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r := &restorer{o: o, dir: dir, secret: cfg.Cluster.Secret, h: h, recs: recs}
	return r.run()
}

func lockDir(dir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("the daemon is running on %s: stop it first (systemctl stop nodenet)", dir)
	}
	return func() { f.Close() }, nil
}

type restorer struct {
	o           RestoreOptions
	dir, secret string
	h           snapshotHeader
	recs        []state.Record

	cluster *gossip.Cluster
	self    state.NodeID
	said    []string
}

func (r *restorer) say(format string, a ...any) { r.said = append(r.said, fmt.Sprintf(format, a...)) }

func (r *restorer) run() (*RestoreResult, error) {
	if _, err := os.Stat(filepath.Join(r.dir, leftFile)); err == nil {
		return nil, fmt.Errorf("the node of %s left its cluster: it comes back with `nodectl join TOKEN`, not from a snapshot", r.dir)
	}
	if err := r.checkCluster(); err != nil {
		return nil, err
	}
	if err := r.keys(); err != nil {
		return nil, err
	}
	floor := max(r.h.Epoch, r.maxEpoch(r.recs))
	old := filepath.Join(r.dir, "state.db")
	aside := ""
	if _, err := os.Stat(old); err == nil {
		was, err := r.formerEpoch(old)
		if err != nil {
			return nil, err
		}
		floor = max(floor, was)
		aside = fmt.Sprintf("%s.before-restore-%d", old, time.Now().Unix())
	}
	// The marks go first: with them alone nothing is unsafe.
	if err := durable(filepath.Join(r.dir, epochFile), strconv.AppendUint(nil, floor, 10)); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(r.dir, placeFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the place of the former tables: %w", err)
	}
	if !r.o.Alone {
		if err := durable(filepath.Join(r.dir, restoredFile), []byte(time.Unix(r.h.Created, 0).Format(time.RFC3339)+"\n")); err != nil {
			return nil, err
		}
	} else if err := os.Remove(filepath.Join(r.dir, restoredFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the mark of an earlier restore: %w", err)
	}
	if err := r.tables(old, aside); err != nil {
		return nil, err
	}
	if err := r.cluster.Save(r.dir); err != nil {
		return nil, err
	}
	r.explain(floor, aside)
	return &RestoreResult{
		Cluster: r.h.Cluster, ClusterID: r.h.ClusterID, Node: r.h.Node, Saved: r.h.Created, Records: len(r.recs),
		Aside: aside, Explain: r.said,
	}, nil
}

func (r *restorer) checkCluster() error {
	c, err := gossip.LoadCluster(r.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c = &gossip.Cluster{ID: r.h.ClusterID, Name: r.h.Cluster, RingID: r.h.RingID}
	case err != nil:
		return err
	case c.ID == "":
		c.ID, c.Name, c.RingID = r.h.ClusterID, r.h.Cluster, r.h.RingID
	case c.ID != r.h.ClusterID || c.RingID != "" && c.RingID != r.h.RingID:
		return fmt.Errorf("the snapshot is of cluster %s (%s), %s belongs to %s (%s): they never mix; restore it into an empty directory (--state-dir)",
			r.h.Cluster, r.h.ClusterID, r.dir, c.Name, c.ID)
	}
	// Whoever is alone founds again; everybody else asks first.
	c.Bootstrap, c.Synced = r.o.Alone, r.o.Alone
	for _, rec := range r.recs {
		nd, ok := rec.Val().(*state.Node)
		if !ok || rec.Deleted || nd.Left || rec.ID.Owner == r.h.NodeID || !nd.Advertise.IsValid() {
			continue
		}
		port := nd.SyncPort
		if port == 0 {
			port = gossip.DefaultSyncPort
		}
		if a := netip.AddrPortFrom(nd.Advertise, port).String(); !slices.Contains(c.Peers, a) && !r.o.Alone {
			c.Peers = append(c.Peers, a)
		}
	}
	if r.o.Alone {
		c.Peers, c.Seeds = nil, nil
	}
	r.cluster = c
	return nil
}

// keys puts the node's key and the cluster's secret in place where they are
// missing and the snapshot has them.
func (r *restorer) keys() error {
	path := filepath.Join(r.dir, "node.key")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && len(r.h.Key) > 0 {
		if err := durable(path, r.h.Key); err != nil {
			return err
		}
		r.say("the node's key came with the snapshot: it is the same node as before, %s", r.h.Node)
	}
	id, err := gossip.LoadIdentity(r.dir)
	if err != nil {
		return err
	}
	r.self = id.ID
	if r.self != r.h.NodeID {
		r.say("the snapshot was saved on %s, this is another node (%s): it starts with what %s knew, and owns none of its space", r.h.Node, r.self.Short(), r.h.Node)
	}
	if _, err := os.Stat(r.secret); errors.Is(err, fs.ErrNotExist) {
		if len(r.h.Secret) == 0 {
			r.say("the cluster's secret is not in the snapshot: copy it to %s before the daemon starts", r.secret)
			return nil
		}
		return gossip.WriteSecret(r.secret, r.h.Secret)
	}
	return nil
}

func (r *restorer) maxEpoch(recs []state.Record) uint64 {
	var e uint64
	for i := range recs {
		if recs[i].ID.Owner == r.self {
			e = max(e, recs[i].Version.Epoch)
		}
	}
	return e
}

// formerEpoch is the highest epoch of the tables that are replaced.
func (r *restorer) formerEpoch(path string) (uint64, error) {
	db, err := disk.Open(path, r.o.Logger)
	if err != nil {
		return 0, err
	}
	recs, heads, err := db.Load()
	if err != nil {
		r.o.Logger.Warn("part of the former state is unreadable", "err", err)
	}
	e := r.maxEpoch(recs)
	for _, h := range heads {
		if h.Owner == r.self {
			e = max(e, h.Mark.Epoch)
		}
	}
	return e, db.Close()
}

// tables writes the records to a new file and puts it in the old one's place.
func (r *restorer) tables(path, aside string) error {
	next := path + ".restoring"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what an earlier restore left: %w", err)
	}
	db, err := disk.Open(next, r.o.Logger)
	if err != nil {
		return err
	}
	err = db.CommitHeads(r.recs, slices.Concat(r.h.Heads...))
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("write the tables: %w", err)
	}
	if aside != "" {
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("keep the former tables: %w", err)
		}
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("put the tables in place: %w", err)
	}
	return syncDir(r.dir)
}

func (r *restorer) explain(floor uint64, aside string) {
	age := time.Since(time.Unix(r.h.Created, 0)).Round(time.Second)
	r.say("%d records as of %s (%s ago, revision %d on %s)", len(r.recs), time.Unix(r.h.Created, 0).Format(time.DateTime), age, r.h.Revision, r.h.Node)
	if aside != "" {
		r.say("the former tables are kept as %s: remove them when all is well", aside)
	}
	r.say("the node goes on with an epoch above %d, so that nothing it wrote before can be mistaken for what it writes now", floor)
	if r.o.Alone {
		r.say("alone: no other node is asked. If another one still runs, it may have been given space that this one will give out as well")
	} else {
		r.say("no addresses are given out before another node has told what changed since; workloads, names and routes come back at once")
	}
	r.say("services and names that were changed by command since then: the later change wins, so peers that know it bring it back")
}

// durable writes a private file so that it survives a crash.
func durable(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
