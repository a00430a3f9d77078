// Package node is the daemon: it reads the Nodefile, opens the state, starts
// the subsystems and keeps each at what the newest snapshot asks of it.
//
//	Nodefile ──► declare ──┐
//	API, CNI ──► verbs   ──┤► state.Store ──► sync loop ──► overlay, lb, dns, dhcp
//	gossip, DHCP leases ───┘       │
//	                               └──► upkeep: ring space, VIPs, health, leaked links
//
// The subsystems never see one another; what one needs of another is passed
// in here.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodenet/api"
	"nodenet/config"
	"nodenet/dhcp"
	"nodenet/dns"
	"nodenet/gossip"
	"nodenet/ipam"
	"nodenet/lb"
	"nodenet/lb/announce"
	"nodenet/node/check"
	"nodenet/overlay"
	"nodenet/state"
	"nodenet/state/disk"
)

// Options says what to run. Zero fields take the Nodefile's values, which
// take the defaults of package config.
type Options struct {
	ConfigFile string // "": config.DefaultFile
	StateDir   string
	Socket     string
	Logger     *slog.Logger
	Version    string
}

// tombstoneAge is how long the deletion of an owner-scoped record is told to
// peers before it is collected.
const tombstoneAge = 24 * time.Hour

// Node is a running daemon.
type Node struct {
	opts     Options
	log      *slog.Logger
	cfg      *config.Config
	newest   *config.Config // as declared last; runDeclare's own
	identity *gossip.Identity
	self     state.NodeID
	epoch    uint64
	bootID   string
	started  time.Time
	dir      string
	lock     *os.File

	cluster *gossip.Cluster
	db      *disk.DB
	store   *state.Store
	alloc   *ipam.Allocator
	clock   clusterClock
	gossip  *gossip.Gossip
	overlay *overlay.Overlay
	lb      *lb.LB
	dns     *dns.Server
	fds     *fdStore // nil: no service manager
	dhcp    *dhcp.Server
	book    *dhcp.Book

	announce *announce.Speaker
	elector  announce.Elector // runSync's own
	relinked chan struct{}    // the links changed; see runLANs

	hostAddrs []netip.Addr // of all interfaces, every localTick; runSync's own

	mu    sync.Mutex
	local overlay.Local // what the host's own interfaces say
	links []announce.Link
	// Published ports of the Nodefile that gave way, and processes whose port
	// is ours; see ports.go.
	withheld, shadowed []portConflict

	noSCTP      func() bool   // whether the kernel cannot translate SCTP; nil: it can
	sockets     hostSockets   // nil: ports are not compared with those of the host's processes
	redeclare   chan struct{} // asks runDeclare to declare what was withheld
	applied     func() uint64 // the revision that workloads can rely on; see settle
	attaching   inflight      // endpoint IDs being attached or detached
	checks      *check.Runner
	flows       flowTable
	healthPorts *healthPorts
	declared    chan struct{} // closed once our own records are written
	leaving     atomic.Bool   // the address space is being handed over: nothing is allocated
	restored    atomic.Bool   // see restoredFile
	promised    promises
	leave       chan struct{} // closed when the node has left the cluster
	leaveOnce   sync.Once
}

// Run runs the daemon until ctx ends or the node leaves its cluster. The
// kernel's state stays as it is: a restart disturbs nothing.
func Run(ctx context.Context, o Options) error {
	n, err := open(o)
	if err != nil {
		return err
	}
	defer n.shut()
	return n.run(ctx)
}

// open brings up everything that needs no network.
func open(o Options) (*Node, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg, err := loadConfig(o)
	if err != nil {
		return nil, err
	}
	n := &Node{
		opts: o, log: o.Logger, cfg: cfg, dir: cfg.Node.StateDir, started: time.Now(), bootID: randomID(),
		declared: make(chan struct{}), leave: make(chan struct{}), redeclare: make(chan struct{}, 1), relinked: make(chan struct{}, 1), sockets: kernelSockets{},
		noSCTP: func() bool { return !lb.TracksSCTP() },
	}
	n.applied = n.appliedByAll
	if err := n.openAll(); err != nil {
		n.shut()
		return nil, err
	}
	return n, nil
}

func (n *Node) openAll() error {
	if err := n.openDir(); err != nil {
		return err
	}
	id, err := gossip.LoadIdentity(n.dir)
	if err != nil {
		return err
	}
	n.identity, n.self = id, id.ID
	// Before a cluster is made: a host without an address must not leave one behind.
	if err := n.observeLocal(); err != nil {
		return err
	}
	if n.cluster, err = openCluster(n.cfg, n.log); err != nil {
		return err
	}
	secret, err := gossip.ReadSecret(n.cfg.Cluster.Secret)
	if err != nil {
		return err
	}
	if err := n.openState(); err != nil {
		return err
	}
	n.alloc = ipam.NewAllocator(n.store)
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return n.openParts(id, secret, reg)
}

func (n *Node) openDir() error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(n.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("state directory %s is in use by another nodectl: stop it first, or choose another with node { state_dir … }", n.dir)
	}
	n.lock = f
	if when, err := os.ReadFile(filepath.Join(n.dir, leftFile)); err == nil {
		return fmt.Errorf("%w on %s: run `nodectl join TOKEN` to join one, or `nodectl init` to make a new one", ErrLeft, when)
	}
	return nil
}

func (n *Node) openState() (err error) {
	if n.db, err = disk.Open(filepath.Join(n.dir, "state.db"), n.log); err != nil {
		return err
	}
	recs, heads, err := n.db.Load()
	if err != nil {
		n.log.Warn("part of the saved state is unreadable", "err", err)
	}
	n.store, err = state.NewStore(state.Options{Self: n.self, Key: n.identity.Key, Log: n.db, Records: recs, Heads: heads, Logger: n.log})
	if err != nil {
		return err
	}
	// An epoch is never used twice: above what the disk holds, above the
	// clock; gossip raises it above what any peer holds.
	n.store.SetEpoch(max(n.minEpoch(), uint64(time.Now().Unix())))
	n.epoch = n.store.Epoch()
	n.openRestored()
	return nil
}

func (n *Node) openParts(id *gossip.Identity, secret []byte, reg *prometheus.Registry) (err error) {
	n.overlay, err = overlay.New(overlay.Options{Logger: n.log.With("part", "overlay"), Registry: reg, StateDir: n.dir})
	if err != nil {
		return err
	}
	if n.fds, err = openFDStore(n.log.With("part", "sockets")); err != nil {
		return err
	}
	lbOptions := lb.Options{Logger: n.log.With("part", "lb"), Registry: reg, Conntrack: n.overlay.Conntrack()}
	if n.fds != nil {
		lbOptions.Keeper = fdPart{n.fds, fdsOfLB}
	}
	if n.lb, err = lb.New(lbOptions); err != nil {
		return err
	}
	if err := n.loadFirewalls(); err != nil {
		return err
	}
	n.observedLinks()
	host := announce.Host{}
	if n.fds != nil {
		host.Sockets = fdPart{n.fds, fdsOfAnnounce}
	}
	n.announce, err = announce.New(announce.Options{
		System: host, Ready: n.announceReady, Changed: n.linksChanged, Logger: n.log.With("part", "announce"), Registry: reg,
	})
	if err != nil {
		return err
	}
	dnsOptions := dns.Options{
		Servers: n.cfg.Servers, Logger: n.log.With("part", "dns"), Registry: reg,
		Load: n.reloadServers, Ready: n.ready,
	}
	if n.fds != nil {
		dnsOptions.Keeper = fdPart{n.fds, fdsOfDNS}
	}
	if n.dns, err = dns.New(dnsOptions); err != nil {
		return err
	}
	n.healthPorts = newHealthPorts(func() *state.View { return n.store.Snapshot().View() }, n.log.With("part", "health"))
	checks := n.checkOptions()
	checks.Registry = reg
	if n.checks, err = check.New(checks); err != nil {
		return err
	}
	n.clock.skews = func() (time.Duration, int) {
		s := n.gossip.Status()
		return s.Skew, s.SkewOf
	}
	n.book = dhcp.NewBook(n.store, n.pickLease)
	n.book.Free = n.freePart
	n.book.Now = n.clock.now
	if n.dhcp, err = dhcp.New(dhcp.Options{Leases: n.book, Now: n.clock.now, Logger: n.log.With("part", "dhcp"), Registry: reg}); err != nil {
		return err
	}
	n.gossip, err = gossip.New(gossip.Options{
		Identity: id, Cluster: n.cluster, Secret: secret, SecretFile: n.cfg.Cluster.Secret, StateDir: n.dir, Store: n.store, Name: n.cfg.Node.Name,
		Advertise: n.local.Advertise, Bind: n.local.Advertise,
		GossipPort: n.cfg.Cluster.GossipPort, SyncPort: n.cfg.Cluster.SyncPort,
		Join: n.cfg.Cluster.Join, Handlers: map[string]gossip.Handler{
			methodAsk: n.serveAsk, methodTake: n.serveTake, methodHolds: n.serveHolds, methodForget: n.serveForget, methodConns: n.serveConns,
			methodPolicy: n.servePolicyTrace,
		},
		Logger: n.log.With("part", "gossip"), Registry: reg,
	})
	return err
}

func (n *Node) shut() {
	if n.overlay != nil {
		n.overlay.Close()
	}
	if n.alloc != nil {
		n.alloc.Close()
	}
	if n.store != nil {
		n.store.Close()
	}
	if n.db != nil {
		n.db.Close()
	}
	n.fds.close()
	if n.lock != nil {
		n.lock.Close()
	}
}

// task is one long-running part of the daemon.
type task struct {
	name string
	run  func(context.Context) error
}

// ErrLeft is what Run returns when the node has left its cluster, now or at
// some time before: starting it again changes nothing.
var ErrLeft = errors.New("this node left its cluster")

// ErrClone is what Run returns when another machine runs with this node's key
// and has run longer: see gossip.ErrClone.
var ErrClone = gossip.ErrClone

func (n *Node) run(ctx context.Context) error {
	srv, err := n.listen()
	if err != nil {
		return err
	}
	n.log.Info("nodenet starts", "node", n.cfg.Node.Name, "id", string(n.self), "epoch", n.epoch,
		"version", n.opts.Version, "advertise", n.local.Advertise, "state", n.dir)
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range []task{
		{"gossip", n.afterSaved(n.gossip.Run)},
		{"overlay", n.overlay.Run},
		{"lb", n.lb.Run},
		{"announce", n.runAnnounce},
		{"lans", n.runLANs},
		{"dns", n.dns.Run},
		{"dhcp", n.dhcp.Run},
		{"leases", n.book.Run},
		{"sync", n.runSync},
		{"declare", n.runDeclare},
		{"space", n.runSpace},
		{"health", n.runHealth},
		{"upkeep", n.runUpkeep},
		{"drains", n.runDrains},
		{"labels", n.runLabels},
		{"health ports", n.runHealthPorts},
		{"ports", n.runPorts},
		{"obey", n.runObey},
		{"restored", n.runRestored},
		{"api", srv.run},
		{"notify", n.runNotify},
	} {
		g.Go(func() error {
			if err := t.run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		select {
		case <-n.leave:
			return ErrLeft
		case <-ctx.Done():
			return nil
		}
	})
	err = g.Wait()
	if errors.Is(err, ErrLeft) {
		n.stopAnswering()
		if err := putAway(n.dir); err != nil {
			n.log.Error("files of the former cluster stay until the next join", "err", err)
		}
	}
	if errors.Is(err, ErrClone) {
		// For `nodectl status` and `doctor`, which find no daemon to ask.
		if err := os.WriteFile(api.StoppedFile(n.cfg.Node.Socket), []byte(err.Error()+"\n"), 0o644); err != nil {
			n.log.Error("the reason is in this log alone", "err", err)
		}
	}
	n.log.Info("nodenet stops", "node", n.cfg.Node.Name)
	return err
}

// observeLocal finds the interface that carries the node's addresses. It
// waits a little: at boot the daemon may be up before the network is.
func (n *Node) observeLocal() error {
	var err error
	for range 50 {
		var l overlay.Local
		if l, err = n.lookLocal(); err == nil {
			n.mu.Lock()
			n.local = l
			n.mu.Unlock()
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (n *Node) lookLocal() (overlay.Local, error) {
	want := n.cfg.Node.Underlay
	if !want.IsValid() {
		want = n.cfg.Node.Advertise
	}
	l, err := overlay.ObserveLocal(want)
	if err != nil {
		return l, err
	}
	l.Self = n.self
	s := n.cfg.Services
	l.ServiceRange, l.Resolver = s.Prefix, s.DNS
	l.ServiceRange6, l.Resolver6 = s.Prefix6, state.Twin(s.Prefix, s.Prefix6, s.DNS)
	l.Advertise = n.cfg.Node.Advertise
	if !l.Advertise.IsValid() {
		l.Advertise = l.Underlay
	}
	return l, nil
}

func (n *Node) localNow() overlay.Local {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.local
}

// ringID names the address space that this node allocates from; empty until
// a peer has told it.
func (n *Node) ringID() string { return n.gossip.Cluster().RingID }

// zone is the cluster's DNS zone.
func (n *Node) zone() string { return dns.ClusterZone(n.cfg.Servers) }

// network finds a network by name as this node uses it.
func (n *Node) network(sn *state.Snapshot, name string) (*state.Network, bool) {
	return state.Lookup[state.Network](sn, state.ID{Class: state.Owner, Kind: state.KindNetwork, Owner: n.self, Key: name})
}

// nodeName gives the alias of a node ID, or a part of the ID.
func nodeName(v *state.View, id state.NodeID) string {
	if nv := v.NodeByID(id); nv != nil && nv.Name != "" {
		return nv.Name
	}
	return id.Short()
}

func addrOr(a, b netip.Addr) netip.Addr {
	if a.IsValid() {
		return a
	}
	return b
}
