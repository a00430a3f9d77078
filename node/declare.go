package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/config"
	"nodenet/ipam"
	"nodenet/state"
)

const sourceNodefile = "nodefile"

// syncWait bounds how long a start waits for a peer before it writes its
// first own record. A node that boots alone goes on with what it saved.
const syncWait = 3 * time.Second

// runDeclare writes what the Nodefile says as the node's own records: once a
// peer has been heard (so that our epoch is above all that is known of us) or
// the wait is over, and again at each SIGHUP.
func (n *Node) runDeclare(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)

	if n.tablesLost() {
		if !n.awaitTables(ctx) {
			return nil
		}
	} else {
		select {
		case <-n.gossip.Synced():
		case <-time.After(syncWait):
			n.log.Warn("no peer heard yet: going on with the saved state")
		case <-ctx.Done():
			return nil
		}
	}
	wait := 100 * time.Millisecond
	for {
		err := n.declare(ctx, n.cfg)
		if err == nil {
			break
		}
		n.log.Error("own records not written, will try again", "err", err)
		select {
		case <-time.After(wait):
			wait = min(2*wait, 10*time.Second)
		case <-ctx.Done():
			return nil
		}
	}
	close(n.declared)
	for {
		select {
		case <-hup:
			n.reload(ctx)
		case <-n.redeclare:
			if err := n.declare(ctx, n.newest); err != nil && ctx.Err() == nil {
				n.log.Error("published ports of the Nodefile not declared", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// tablesLost reports whether this node had records once, which only its peers
// can still hold: it knows peers, but its state file was damaged or removed.
func (n *Node) tablesLost() bool {
	return len(n.cluster.Peers) > 0 && n.store.Snapshot().Head(n.self).Mark == (state.Mark{})
}

// awaitTables waits until a peer has told what it holds, however long that
// takes. A node that forgot what it gave out must not write: its new records
// would hide the old ones from itself, and it would give addresses twice.
func (n *Node) awaitTables(ctx context.Context) bool {
	n.log.Warn("the saved tables are lost: waiting for a peer to tell them")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, p := range n.gossip.Peers() {
			if !p.LastSync.IsZero() {
				return true
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// reload reads the Nodefile again. One with errors changes nothing.
func (n *Node) reload(ctx context.Context) {
	cfg, err := loadConfig(n.opts)
	if err != nil {
		n.log.Error("Nodefile not reloaded", "err", err)
		return
	}
	was, now := n.cfg.Services, cfg.Services
	was.Pos, now.Pos = config.Pos{}, config.Pos{}
	if cfg.Node != n.cfg.Node || was != now || !reflect.DeepEqual(cfg.Cluster, n.cfg.Cluster) {
		n.log.Warn("the node, cluster and services blocks take effect at the next restart")
	}
	if err := n.declare(ctx, cfg); err != nil {
		n.log.Error("Nodefile not reloaded", "err", err)
		return
	}
	n.log.Info("Nodefile reloaded", "file", cfg.File)
}

// reloadServers is what DNS's reload directive calls.
func (n *Node) reloadServers() ([]config.Server, error) {
	cfg, err := loadConfig(n.opts)
	if err != nil {
		return nil, err
	}
	return cfg.Servers, nil
}

// declare makes the node's own records equal to cfg: adds, changes and
// removes, touching only those that came from a Nodefile.
func (n *Node) declare(ctx context.Context, cfg *config.Config) error {
	var withheld []portConflict
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		var ops []state.Op
		want := n.declarations(cfg)
		withheld = n.withhold(sn, want[state.KindPublish])
		drop := func(k state.Kind, key, source string) {
			if _, keep := want[k][key]; !keep && source == sourceNodefile {
				ops = append(ops, state.Del(state.Owner, k, key))
			}
		}
		for r, v := range state.All[state.Network](sn) {
			if r.ID.Owner == n.self {
				drop(state.KindNetwork, r.ID.Key, v.Source)
			}
		}
		for r, v := range state.All[state.Service](sn) {
			if r.ID.Owner == n.self {
				drop(state.KindService, r.ID.Key, v.Source)
			}
		}
		for r, v := range state.All[state.Publish](sn) {
			if r.ID.Owner == n.self {
				drop(state.KindPublish, r.ID.Key, v.Source)
			}
		}
		for r, v := range state.All[state.Policy](sn) {
			if r.ID.Owner == n.self {
				drop(state.KindPolicy, r.ID.Key, v.Source)
			}
		}
		for k, m := range want {
			for key, v := range m {
				ops = append(ops, state.Put(state.Owner, k, key, v))
			}
		}
		if n.cluster.Bootstrap {
			ops = append(ops, ipam.Bootstrap(sn, n.self, n.ringID(), ringSpecs(cfg))...)
		}
		return ops, nil
	})
	if err == nil {
		n.newest = cfg
		n.noteWithheld(withheld)
	}
	return err
}

func (n *Node) declarations(cfg *config.Config) map[state.Kind]map[string]any {
	want := map[state.Kind]map[string]any{
		state.KindNode: {}, state.KindNetwork: {}, state.KindService: {}, state.KindPublish: {}, state.KindPolicy: {},
	}
	sum := sha256.New()
	for _, c := range cfg.Networks {
		nw := networkRecord(c)
		want[state.KindNetwork][nw.Name] = nw
		fmt.Fprintf(sum, "%s %s %d %s %d %d\n", nw.Name, nw.Prefix, nw.Block, nw.Overlay, nw.VNI, nw.Port)
		if nw.Prefix6.IsValid() {
			fmt.Fprintf(sum, "%s\n", nw.Prefix6)
		}
	}
	l := n.localNow()
	want[state.KindNode]["self"] = state.Node{
		Name: cfg.Node.Name, Zone: cfg.Node.Zone, Advertise: l.Advertise, Underlay: l.Underlay,
		GossipPort: cfg.Cluster.GossipPort, SyncPort: cfg.Cluster.SyncPort,
		PublicKey: n.identity.Public(), VTEPMAC: n.self.VTEPMAC(), BootID: n.bootID, Version: n.opts.Version,
		Started: n.started.Unix(), Networks: hex.EncodeToString(sum.Sum(nil)[:8]), OnLink: l.OnLink,
		ServiceRange: cfg.Services.Prefix, ServiceRange6: cfg.Services.Prefix6,
		LANs: n.lans(),
	}
	for _, c := range cfg.Service {
		s := serviceRecord(&c, sourceNodefile)
		want[state.KindService][s.Key()] = s
	}
	for _, c := range cfg.Publishes {
		p := state.Publish{
			HostAddr: c.HostAddr, Protocol: c.Protocol, HostPort: c.HostPort, Last: c.Last,
			Target: cfg.Aim(&c), Port: c.Target.Port(), Source: sourceNodefile,
		}
		want[state.KindPublish][p.Key()] = p
	}
	for i := range cfg.Policies {
		p := policyRecord(&cfg.Policies[i])
		want[state.KindPolicy][p.Key()] = p
	}
	return want
}

func networkRecord(c config.Network) state.Network {
	nw := state.Network{
		Name: c.Name, Prefix: c.Prefix, Prefix6: c.Prefix6, Block: c.Block, Overlay: c.Overlay, VNI: c.VNI, Port: c.Port, MTU: c.MTU,
		Masquerade: c.Masquerade, Internal: c.Internal, Bridge: c.Bridge, Gateway: c.Gateway, NoGateway: c.NoGateway,
		DHCP: c.DHCP, LeaseTime: int64(c.LeaseTime / time.Second), Namespace: c.Namespace, Exclude: c.Exclude,
		Pin: c.Pin, Source: sourceNodefile, NoSearch: c.NoSearch, Peers: c.Peers,
	}
	return nw
}

// serviceSpecs lists the rings that services take their addresses and node
// ports from.
func serviceSpecs(cfg *config.Config) []ipam.Spec {
	return []ipam.Spec{
		ipam.ServicesSpec(cfg.Services.Prefix, cfg.Services.DNS),
		ipam.NodePortsSpec(cfg.Services.NodePorts.First, cfg.Services.NodePorts.Last),
	}
}

// ringSpecs lists the rings that a configuration needs.
func ringSpecs(cfg *config.Config) []ipam.Spec {
	specs := serviceSpecs(cfg)
	for _, c := range cfg.Networks {
		if c.Overlay != state.OverlayNone {
			specs = append(specs, ipam.NetworkSpec(networkRecord(c)))
		}
	}
	return specs
}
