// Package dns answers names: server blocks and directives as in a Corefile,
// on miekg/dns.
//
//	UDP, TCP sockets, each bound to one address   (udp.go, listen.go)
//	       │          └─ plain questions over UDP: packed answers, in the
//	       │             receive loop             (fast.go, packed.go);
//	       │             what only an upstream knows is sent on
//	       │             from there               (miss.go, pool.go)
//	       │ message checks, EDNS              (serve.go)
//	       ▼
//	table of the socket: longest zone match ─► server block   (block.go)
//	       │
//	       ▼ chain of directives, fixed order  (directives.go)
//	errors log acl … rewrite search cache … hosts cluster file loop forward
//	                                      │
//	                    Zone, immutable, derived from one state.View (zone.go)
//
// One control loop (control.go) owns everything that changes: it derives
// zones, opens and closes sockets and swaps server blocks. Queries only read
// atomic pointers and take no lock on the way to an answer from a Zone.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"nodenet/config"
	"nodenet/dns/limit"
	"nodenet/dns/plugin"
	"nodenet/state"
)

// DefaultResolvConf is the file that names a host's own resolvers.
const DefaultResolvConf = "/etc/resolv.conf"

// Options configure a Server. Only Servers is required.
type Options struct {
	// Servers are the server blocks, as config.Parse returns them.
	Servers []config.Server
	// Logger receives transitions and, with `log`, queries. Nil: discarded.
	Logger *slog.Logger
	// Registry receives the metrics and is what the `prometheus` directive
	// exposes. Nil: a registry of the server's own.
	Registry *prometheus.Registry
	// ResolvConf is read wherever a directive names /etc/resolv.conf.
	// Empty: that very file. Other paths are used as they are written.
	ResolvConf string
	// Load reads the server blocks again, for `reload`. Nil: `reload` does
	// nothing.
	Load func() ([]config.Server, error)
	// Ready reports whether the rest of the node is ready, for the `ready`
	// directive. Nil: always.
	Ready func() bool
	// ListenPacket and Listen open sockets; network is "udp" or "tcp" and the
	// address is never a wildcard unless `bind` says so. Nil: sockets with
	// IP_FREEBIND, so that an address need not exist yet, and for UDP one a
	// core.
	ListenPacket func(ctx context.Context, network, address string) (net.PacketConn, error)
	Listen       func(ctx context.Context, network, address string) (net.Listener, error)
	// Keeper holds the sockets over a restart of the process. Nil: they end
	// with it.
	Keeper Keeper
}

// Server serves DNS. It is safe for concurrent use.
type Server struct {
	opt      Options
	log      *slog.Logger
	metrics  *metrics
	registry *prometheus.Registry

	pending  atomic.Pointer[state.View]   // what Set was given
	applied  atomic.Pointer[state.View]   // what the zones were derived from
	addrs    atomic.Pointer[[]netip.Addr] // what SetAddrs was given
	live     atomic.Pointer[live]         // what queries see
	clients  atomic.Pointer[clientIndex]  // who asks, and how far away answers are
	wake     chan struct{}                // capacity 1
	tick     time.Duration                // of the control loop; tests shorten it
	saved    atomic.Bool                  // the data is what was saved, see saved.go
	running  atomic.Bool
	draining atomic.Bool // shutting down, in the lameduck period
	pool     *workers
	limiter  *limit.Limiter // of sockets without `ratelimit`
	packets  sync.Pool      // of *packet

	// mu guards what Status shows beyond the atomic values.
	mu        sync.Mutex
	problems  map[string]problem // by what they concern, e.g. "listen 10.96.0.10:53"
	listening []netip.AddrPort
	rate      float64

	// Below belongs to the control loop alone.
	sockets    map[netip.AddrPort]*listener
	secured    map[site]*secureListener
	httpd      map[string]*httpServer
	backoff    map[string]retry
	lastLoad   time.Time
	sampled    time.Time
	sampledN   uint64
	background context.Context
	closing    sync.WaitGroup // sockets that end
	deriveAt   time.Time      // not before: see derive
	heard      bool           // another node, since New

	began       time.Time // of Run
	restDropped bool      // see dropRest

	changed atomic.Pointer[chan struct{}] // see Changed
}

// problem is an error that lasts, with what to do about it.
type problem struct{ err, fix string }

// live is the immutable set of server blocks with a table for each socket.
type live struct {
	blocks []*block
	tables map[netip.AddrPort]*table
	sites  map[site]*secureTable
	main   *table // of Query: every block on the main port
}

// New checks the server blocks as Validate does and returns a server that
// does nothing until Run.
func New(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ResolvConf == "" {
		o.ResolvConf = DefaultResolvConf
	}
	if o.Listen == nil {
		freebind := freebindConfig()
		o.Listen = freebind.Listen
	}
	s := &Server{
		opt:      o,
		log:      o.Logger,
		registry: o.Registry,
		wake:     make(chan struct{}, 1),
		tick:     defaultTick,
		problems: make(map[string]problem),
		sockets:  make(map[netip.AddrPort]*listener),
		secured:  make(map[site]*secureListener),
		httpd:    make(map[string]*httpServer),
		backoff:  make(map[string]retry),
		pool:     newWorkers(maxWorkers),
		limiter:  limit.New(limit.DefaultRate, limit.DefaultBurst, nil),
		packets:  sync.Pool{New: func() any { return new(packet) }},
	}
	if s.registry == nil {
		s.registry = prometheus.NewRegistry()
	}
	blocks, _, err := parseServers(o.Servers)
	if err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(s.registry); err != nil {
		return nil, fmt.Errorf("register dns metrics: %w", err)
	}
	s.addrs.Store(&[]netip.Addr{})
	changed := make(chan struct{})
	s.changed.Store(&changed)
	for _, b := range blocks {
		b.attach(s)
	}
	s.publish(blocks)
	return s, nil
}

// Set gives the server new data. It never blocks; Run derives the zones.
func (s *Server) Set(v *state.View) {
	s.pending.Store(v)
	s.poke()
}

// SetAddrs says which addresses the blocks without `bind` listen on. The
// first of each family is the name server's own address in the cluster zone.
// It never blocks; Run opens and closes what differs. An address need not
// exist on the host yet.
func (s *Server) SetAddrs(addrs []netip.Addr) {
	var clean []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if a.IsValid() && !slices.Contains(clean, a) {
			clean = append(clean, a)
		}
	}
	s.addrs.Store(&clean)
	s.poke()
}

func (s *Server) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// ErrNotRunning is returned by Query when Run is not running.
var ErrNotRunning = errors.New("dns server is not running")

// Query answers a message as if it had come from the given client over UDP
// or TCP to the main port: 53, or the lowest that a block serves.
func (s *Server) Query(ctx context.Context, m *wire.Msg, from netip.AddrPort, tcp bool) (*wire.Msg, error) {
	if !s.running.Load() {
		return nil, ErrNotRunning
	}
	return s.query(ctx, m, from, tcp, nil)
}

// Trace is Query with the way of the question through the directives. Its
// cost is that of building the zone: it is for people, not for programs.
func (s *Server) Trace(ctx context.Context, m *wire.Msg, from netip.AddrPort, tcp bool) (*wire.Msg, []plugin.Step, error) {
	if !s.running.Load() {
		return nil, nil, ErrNotRunning
	}
	trace := new(plugin.Trace)
	r, err := s.query(ctx, m, from, tcp, trace)
	return r, trace.Steps(), err
}

// Step is one directive that saw a question, or something it did.
type Step = plugin.Step

// Source is a record of the cluster that a name comes from.
type Source = plugin.Source

// Changed returns a channel that is closed when the zones of the cluster or
// the server blocks are others than now.
func (s *Server) Changed() <-chan struct{} { return *s.changed.Load() }

// change tells who waits that answers may be others.
func (s *Server) change() {
	next := make(chan struct{})
	close(*s.changed.Swap(&next))
}

func (s *Server) query(ctx context.Context, m *wire.Msg, from netip.AddrPort, tcp bool, trace *plugin.Trace) (*wire.Msg, error) {
	proto := "udp"
	if tcp {
		proto = "tcp"
	}
	packed := s.answerTraced(ctx, s.live.Load().main, m, from, proto, trace)
	if packed == nil {
		return nil, errors.New("answer query: the message is a response or could not be packed")
	}
	r := new(wire.Msg)
	if err := r.Unpack(packed); err != nil {
		return nil, fmt.Errorf("unpack own answer: %w", err)
	}
	return r, nil
}

// note sets or, with an empty message, clears a problem; it logs transitions.
func (s *Server) note(what string, err error, fix string) {
	s.mu.Lock()
	old, had := s.problems[what]
	if err == nil {
		delete(s.problems, what)
	} else {
		s.problems[what] = problem{err: what + ": " + err.Error(), fix: fix}
	}
	now := s.problems[what]
	s.mu.Unlock()
	switch {
	case err != nil && old.err != now.err:
		s.log.Error("dns problem", "what", what, "err", err, "fix", fix)
	case err == nil && had:
		s.log.Info("dns problem gone", "what", what)
	}
}

// attacher is a plugin of this package, which sees the whole server.
type attacher interface {
	attach(s *Server, b *block)
}

// env is what the plugins of a block see of the server.
func (s *Server) env(b *block) plugin.Env {
	return plugin.Env{
		Logger: s.log, Registry: s.registry, Block: b.label(), Zones: b.zones,
		ResolvConf: s.opt.ResolvConf, Plugins: b.plugins, Note: s.note,
		IsOwn: func(addr netip.AddrPort, zone string) bool { return s.isOwn(b, addr, zone) },
	}.Filled()
}
