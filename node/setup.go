package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"nodenet/config"
	"nodenet/dns"
	"nodenet/gossip"
	"nodenet/overlay"
)

// leftFile in the state directory says that the node left its cluster, so
// that a service manager's restart does not bring it back by accident.
const leftFile = "left"

func randomID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// environment is what a Nodefile may ask of this host.
func environment() config.Env {
	host, _ := os.Hostname()
	env := config.Env{LookupEnv: os.LookupEnv, Hostname: host, CheckServers: dns.Validate}
	routes, err := overlay.HostRoutes()
	if err != nil {
		return env // without privileges or netlink: no overlap check
	}
	for _, r := range routes {
		env.Routes = append(env.Routes, config.HostRoute{Prefix: r.Prefix, Dev: r.Dev})
	}
	return env
}

func loadConfig(o Options) (*config.Config, error) {
	file := o.ConfigFile
	if file == "" {
		file = config.DefaultFile
	}
	cfg, err := config.Load(file, environment())
	if err != nil {
		return nil, err
	}
	if o.StateDir != "" {
		if cfg.Cluster.Secret == filepath.Join(cfg.Node.StateDir, "cluster.secret") {
			cfg.Cluster.Secret = filepath.Join(o.StateDir, "cluster.secret")
		}
		cfg.Node.StateDir = o.StateDir
	}
	if o.Socket != "" {
		cfg.Node.Socket = o.Socket
	}
	return cfg, nil
}

// CheckOptions says what to check.
type CheckOptions struct {
	File string // "": config.DefaultFile
}

// Check validates a Nodefile as the daemon would, without starting anything.
// The notices are remarks, not errors.
func Check(o CheckOptions) (*config.Config, []string, error) {
	file := o.File
	if file == "" {
		file = config.DefaultFile
	}
	cfg, err := config.Load(file, environment())
	if err != nil {
		return nil, nil, err
	}
	return cfg, append(cfg.Notes(), dns.Notices(cfg.Servers)...), nil
}

// openCluster finds which cluster the node belongs to. Without a saved one a
// node that is told to join waits to learn it; any other starts a cluster.
func openCluster(cfg *config.Config, log *slog.Logger) (*gossip.Cluster, error) {
	c, err := gossip.LoadCluster(cfg.Node.StateDir)
	if err == nil {
		return c, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if others := othersOf(cfg.Cluster.Join); len(others) > 0 {
		if _, err := os.Stat(cfg.Cluster.Secret); err != nil {
			return nil, fmt.Errorf("cluster { join %s } needs the cluster's secret in %s: copy it from a member, or use `nodectl join TOKEN`", others[0], cfg.Cluster.Secret)
		}
		return &gossip.Cluster{Name: cfg.Cluster.Name, Seeds: others}, nil
	}
	c, err = newCluster(cfg)
	if err == nil {
		log.Info("made a new cluster", "cluster", c.Name, "id", c.ID)
	}
	return c, err
}

// newCluster makes a cluster of one, whose ring this node owns.
func newCluster(cfg *config.Config) (*gossip.Cluster, error) {
	if _, err := os.Stat(cfg.Cluster.Secret); errors.Is(err, os.ErrNotExist) {
		if err := gossip.WriteSecret(cfg.Cluster.Secret, gossip.NewSecret()); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("read cluster secret: %w", err)
	}
	c := gossip.NewCluster(cfg.Cluster.Name)
	return c, c.Save(cfg.Node.StateDir)
}

// othersOf leaves this host's own addresses out of a join list, so that all
// nodes can share one Nodefile.
func othersOf(join []string) []string {
	own := map[netip.Addr]bool{}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				own[p.Addr()] = true
			}
		}
	}
	var out []string
	for _, j := range join {
		host := j
		if h, _, err := net.SplitHostPort(j); err == nil {
			host = h
		}
		if a, err := netip.ParseAddr(host); err == nil && own[a] {
			continue
		}
		out = append(out, j)
	}
	return out
}

// InitOptions says where to make a cluster.
type InitOptions struct {
	ConfigFile, StateDir string
	Name                 string // "": the Nodefile's
}

// InitResult is a cluster that was made.
type InitResult struct {
	ClusterID, Name, SecretFile, NodeID string
}

// Init makes a cluster of one in the state directory: secret, ID and ring.
// It refuses where one exists.
func Init(o InitOptions) (*InitResult, error) {
	cfg, err := loadConfig(Options{ConfigFile: o.ConfigFile, StateDir: o.StateDir})
	if err != nil {
		return nil, err
	}
	dir := cfg.Node.StateDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	if err := putAway(dir); err != nil {
		return nil, err
	}
	if c, err := gossip.LoadCluster(dir); err == nil {
		return nil, fmt.Errorf("this node already belongs to cluster %s (%s): to begin anew, stop the daemon, run `nodectl cleanup` and remove %s", c.Name, c.ID, dir)
	}
	if o.Name != "" {
		cfg.Cluster.Name = o.Name
	}
	id, err := gossip.LoadIdentity(dir)
	if err != nil {
		return nil, err
	}
	c, err := newCluster(cfg)
	if err != nil {
		return nil, err
	}
	if err := forgetLeaving(dir); err != nil {
		return nil, err
	}
	return &InitResult{ClusterID: c.ID, Name: c.Name, SecretFile: cfg.Cluster.Secret, NodeID: string(id.ID)}, nil
}

// JoinOptions says which cluster to join.
type JoinOptions struct {
	ConfigFile, StateDir string
	Token                string
	Logger               *slog.Logger
}

// JoinResult is a cluster that was joined.
type JoinResult struct {
	ClusterID, Name, SecretFile string
	Seeds                       []string
}

// Join redeems a token at a member of the cluster and saves what it answers.
// The daemon joins when it is next started.
func Join(ctx context.Context, o JoinOptions) (*JoinResult, error) {
	cfg, err := loadConfig(Options{ConfigFile: o.ConfigFile, StateDir: o.StateDir})
	if err != nil {
		return nil, err
	}
	dir := cfg.Node.StateDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	if err := putAway(dir); err != nil {
		return nil, err
	}
	t, err := gossip.ParseToken(o.Token)
	if err != nil {
		return nil, err
	}
	// A token of the same cluster brings back a node that missed a rotation.
	if c, err := gossip.LoadCluster(dir); err == nil && c.ID != t.ClusterID {
		return nil, fmt.Errorf("this node already belongs to cluster %s (%s): stop the daemon and remove %s/cluster.json, cluster.secret and state.db first", c.Name, c.ID, dir)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := gossip.Join(ctx, o.Token, dir, cfg.Cluster.Secret, o.Logger)
	if err != nil {
		return nil, err
	}
	if err := forgetLeaving(dir); err != nil {
		return nil, err
	}
	return &JoinResult{ClusterID: c.ID, Name: c.Name, SecretFile: cfg.Cluster.Secret, Seeds: c.Seeds}, nil
}

func forgetLeaving(dir string) error {
	if err := os.Remove(filepath.Join(dir, leftFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget the earlier leave: %w", err)
	}
	return nil
}

// noteLeaving writes the mark that openDir looks for.
func (n *Node) noteLeaving() error {
	if err := os.WriteFile(filepath.Join(n.dir, leftFile), []byte(time.Now().Format(time.RFC3339)), 0o600); err != nil {
		return fmt.Errorf("note the leave: %w", err)
	}
	return nil
}

// putAway renames what belonged to a cluster that the node has left. It does
// nothing without the mark of that. The daemon must have ended: while it runs
// it keeps its peers' addresses up to date in cluster.json.
func putAway(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, leftFile)); err != nil {
		return nil
	}
	suffix := ".left-" + strconv.FormatInt(time.Now().Unix(), 10)
	// A secret that lies elsewhere was put there by the operator.
	for _, f := range []string{"cluster.json", "cluster.secret", "keyring.json", "tokens.json", "state.db"} {
		old := filepath.Join(dir, f)
		if err := os.Rename(old, old+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("put away %s: %w", old, err)
		}
	}
	return nil
}
