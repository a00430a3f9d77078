package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nodenet/state"
)

// Defaults of Options.
const (
	DefaultGossipPort = 7946
	DefaultSyncPort   = 7947
)

// Handler answers a Call of another node. ctx ends at the caller's deadline.
// An error travels to the caller as text, in a RemoteError.
type Handler func(ctx context.Context, from state.NodeID, req []byte) ([]byte, error)

// Options configures a Gossip. Durations that are zero have the default given.
type Options struct {
	Identity *Identity
	// Cluster is what LoadCluster or NewCluster returned, or one with an empty
	// ID: then ID and ring ID are learned from the first peer that accepts us,
	// and saved in StateDir. Gossip works on a copy; see Gossip.Cluster.
	Cluster  *Cluster
	Secret   []byte // SecretSize bytes, as read from SecretFile; a keyring in StateDir comes first
	StateDir string // empty: nothing is saved (tests)
	// SecretFile is kept up to date when the secret is rotated, and another
	// secret that is put there is one to rotate to. Empty: there is none.
	SecretFile string
	Store      *state.Store

	Name       string     // the node's, for people
	Bind       netip.Addr // zero: every address
	Advertise  netip.Addr // where peers reach us; zero: Bind
	GossipPort uint16     // 0: 7946, TCP and UDP
	SyncPort   uint16     // 0: 7947, TCP
	Join       []string   // seeds: host or host:port of the sync port

	Handlers map[string]Handler // by method
	Logger   *slog.Logger
	Registry prometheus.Registerer
	Now      func() time.Time // for what is shown and for token expiry; nil: time.Now

	ProbeInterval    time.Duration // between memberlist probes: 500 ms
	SuspicionMult    int           // memberlist: 4
	PingInterval     time.Duration // keepalive on streams: 1 s; five missed end the stream
	SyncInterval     time.Duration // anti-entropy: 1 s
	PushDelay        time.Duration // batching of fresh changes: 3 ms
	RetryInterval    time.Duration // cap of the backoff towards lost peers: 5 s
	DeadHold         time.Duration // a dead node keeps serving: 3 s
	UnknownGrace     time.Duration // a node not heard since our start keeps serving for so long after we heard another: 30 s
	FreezeWindow     time.Duration // losses within it count together: 15 s
	FreezeLimit      time.Duration // longest freeze of withdrawals: 10 min
	HandshakeTimeout time.Duration // from accept to the end of the hellos: 5 s

	saveRing func(Keyring) error // tests: instead of saving it in StateDir

	budget int     // of an exchange, bytes; 0: roundBudget
	net    network // how to reach others; zero: the host's sockets
}

// timings are the durations with their defaults filled in.
type timings struct {
	probe, ping, life, sync, push, retry   time.Duration
	hold, grace, window, thaw, handshake   time.Duration
	suspicion                              int
	rotate, persist, memberWait, keepalive time.Duration
	firstWait, challenge                   time.Duration
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (o *Options) timings() timings {
	t := timings{
		probe:     or(o.ProbeInterval, 500*time.Millisecond),
		ping:      or(o.PingInterval, time.Second),
		sync:      or(o.SyncInterval, time.Second),
		push:      or(o.PushDelay, 3*time.Millisecond),
		retry:     or(o.RetryInterval, 5*time.Second),
		hold:      or(o.DeadHold, 3*time.Second),
		grace:     or(o.UnknownGrace, 30*time.Second),
		window:    or(o.FreezeWindow, 15*time.Second),
		thaw:      or(o.FreezeLimit, 10*time.Minute),
		handshake: or(o.HandshakeTimeout, 5*time.Second),
		suspicion: or(o.SuspicionMult, 4),
	}
	t.life = 3 * t.ping
	t.keepalive = 5 * t.ping
	t.rotate = 10 * t.sync
	t.persist = 5 * t.sync
	t.memberWait = t.sync
	t.firstWait = 2 * t.sync
	t.challenge = 2 * t.handshake / 5
	return t
}

func (o *Options) validate() error {
	var errs []error
	if o.Identity == nil || o.Store == nil {
		errs = append(errs, errors.New("identity and store are needed"))
	} else if o.Store.Self() != o.Identity.ID {
		errs = append(errs, fmt.Errorf("the store belongs to node %s, the identity to %s", o.Store.Self(), o.Identity.ID))
	}
	if len(o.Secret) != SecretSize {
		errs = append(errs, fmt.Errorf("cluster secret of %d bytes: want %d", len(o.Secret), SecretSize))
	}
	if o.Cluster == nil || o.Cluster.ID == "" && len(o.Join) == 0 && len(o.Cluster.Seeds) == 0 {
		errs = append(errs, errors.New("neither a saved cluster nor anybody to join: run `nodectl init`, or configure join"))
	}
	if !o.Advertise.IsValid() && (!o.Bind.IsValid() || o.Bind.IsUnspecified()) {
		errs = append(errs, errors.New("no address to advertise: set `advertise` in the node block"))
	}
	return errors.Join(errs...)
}
