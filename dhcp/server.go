package dhcp

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/prometheus/client_golang/prometheus"
)

// Options configures a Server.
type Options struct {
	Leases   Leases
	Logger   *slog.Logger          // nil: silent
	Registry prometheus.Registerer // nil: metrics are not exported
	Now      func() time.Time      // nil: time.Now
}

const (
	// workers bounds how many requests are in work at once. Most of them
	// wait for the same flush of the disk, so there are more than CPUs.
	workers = 32
	// backlog is how many requests wait for one worker; more are dropped,
	// and their clients ask again.
	backlog = 32
	// requestTimeout is less than what clients wait before they repeat.
	requestTimeout = 3 * time.Second
	// tick is the slow check of everything.
	tick = 30 * time.Second
)

// Server answers DHCPv4 clients on the bridges of its scopes. Its methods are
// safe for concurrent use; Run runs once.
type Server struct {
	leases  Leases
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics
	seed    maphash.Seed
	queues  [workers]chan job

	// enter runs f in the network namespace that is served. Sockets keep the
	// namespace that they were opened in; tests open them elsewhere.
	enter func(f func())

	desired atomic.Pointer[Scopes]
	current atomic.Pointer[[]*Scope] // valid scopes in use, for relayed requests
	wake    chan struct{}

	mu        sync.Mutex
	listeners map[string]*listener // by device; only Run adds and removes
	invalid   error                // what is wrong with the scopes themselves
	taken     uint64               // revision that the listeners were made for
}

// job is a request on its way from a listener to a worker.
type job struct {
	from    *listener
	sock    *packetSocket
	src     netip.Addr
	mac     net.HardwareAddr
	payload []byte
	arrived time.Time
}

// usage is what Leases may tell for Status and metrics.
type usage interface {
	// Usage returns the number of leases and the free part of the addresses,
	// 0 to 1; negative when that is not known.
	Usage(network string) (leases int, free float64)
}

// New returns a Server without scopes.
func New(o Options) (*Server, error) {
	if o.Leases == nil {
		return nil, errors.New("make DHCP server: no Leases")
	}
	m, err := newMetrics(o.Registry)
	if err != nil {
		return nil, fmt.Errorf("register DHCP metrics: %w", err)
	}
	s := &Server{leases: o.Leases, log: o.Logger, now: o.Now, metrics: m, seed: maphash.MakeSeed(), enter: func(f func()) { f() },
		wake: make(chan struct{}, 1), listeners: make(map[string]*listener)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	for i := range s.queues {
		s.queues[i] = make(chan job, backlog)
	}
	s.desired.Store(&Scopes{})
	s.current.Store(&[]*Scope{})
	return s, nil
}

// Set replaces the desired scopes. It never blocks; d must not be changed
// afterwards.
func (s *Server) Set(d Scopes) {
	s.desired.Store(&d)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run serves until ctx is cancelled and then returns nil.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, q := range s.queues {
		wg.Go(func() { s.work(ctx, q) })
	}
	defer func() {
		for _, l := range s.listeners {
			l.stop()
		}
	}()
	t := time.NewTicker(tick)
	defer t.Stop()
	slow := false
	for {
		s.reconcile(ctx, slow)
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			slow = false
		case <-t.C:
			slow = true
			s.gauge()
		}
	}
}

// reconcile makes the listeners those of the desired scopes. A scope that
// changes while its device stays keeps its socket. Listeners look at their
// device when it is missing, and on the slow tick: a bridge that goes away
// says so by itself.
func (s *Server) reconcile(ctx context.Context, slow bool) {
	d := s.desired.Load()
	want := make(map[string]*Scope)
	var valid []*Scope
	var errs []error
	for i := range d.List {
		sc := &d.List[i]
		if err := sc.validate(); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", sc.Network, err))
			continue
		}
		if other, ok := want[sc.Device]; ok {
			errs = append(errs, fmt.Errorf("network %s: device %s already serves network %s", sc.Network, sc.Device, other.Network))
			continue
		}
		want[sc.Device] = sc
		valid = append(valid, sc)
	}
	s.current.Store(&valid)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.invalid, s.taken = errors.Join(errs...), d.Rev
	for dev, l := range s.listeners {
		if want[dev] == nil {
			l.stop()
			delete(s.listeners, dev)
			s.log.Info("dhcp stopped", "network", l.scope.Load().Network, "device", dev)
		}
	}
	for dev, sc := range want {
		if l := s.listeners[dev]; l != nil {
			if !l.scope.Load().equal(sc) {
				l.scope.Store(sc)
			}
			if listening, _, _ := l.state(); slow || !listening {
				l.poke()
			}
			continue
		}
		s.listeners[dev] = s.startListener(ctx, dev, sc)
	}
}

// gauge refreshes the gauges.
func (s *Server) gauge() {
	if u, ok := s.leases.(usage); ok {
		for _, sc := range *s.current.Load() {
			n, _ := u.Usage(sc.Network)
			s.metrics.leases.WithLabelValues(sc.Network).Set(float64(n))
		}
	}
}

// enqueue hands a request to the worker of its client, so that the messages
// of one client stay in order.
func (s *Server) enqueue(j job, client []byte) bool {
	select {
	case s.queues[maphash.Bytes(s.seed, client)%workers] <- j:
		return true
	default:
		return false
	}
}

func (s *Server) work(ctx context.Context, q <-chan job) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-q:
			s.serve(ctx, j)
		}
	}
}

// serve parses, handles and answers one request.
func (s *Server) serve(ctx context.Context, j job) {
	sc := j.from.scope.Load()
	m, err := dhcpv4.FromBytes(j.payload)
	if err != nil {
		s.drop(sc, dropMalformed)
		return
	}
	s.metrics.requests.WithLabelValues(sc.Network, typeName(m.MessageType())).Inc()
	if sc = scopeFor(sc, *s.current.Load(), m); sc == nil {
		s.drop(j.from.scope.Load(), dropNoScope)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	out := handle(ctx, sc, s.leases, &inbound{msg: m, mac: j.mac, src: j.src}, s.now())
	if out.err != nil && out.action == dropFault {
		s.log.Warn("dhcp request not answered", "network", sc.Network, "mac", m.ClientHWAddr.String(), "err", out.err)
	} else if s.log.Enabled(ctx, slog.LevelDebug) {
		s.log.Debug("dhcp", "network", sc.Network, "mac", m.ClientHWAddr.String(), "type", m.MessageType(), "action", string(out.action),
			"addr", out.addr, "err", out.err)
	}
	if out.reply == nil {
		if !slices.Contains([]action{actRelease, actDecline, actWithdraw}, out.action) {
			s.drop(sc, out.action)
		}
		return
	}
	packet := buildPacket(netip.AddrPortFrom(sc.ServerID, serverPort), out.to.addr, out.reply.ToBytes())
	if err := j.sock.write(packet, out.to.mac); err != nil {
		s.log.Debug("dhcp reply not sent", "network", sc.Network, "mac", m.ClientHWAddr.String(), "err", err)
		s.drop(sc, dropFault)
		return
	}
	s.metrics.replies.WithLabelValues(sc.Network, string(out.action)).Inc()
	s.metrics.seconds.WithLabelValues(sc.Network).Observe(time.Since(j.arrived).Seconds())
}

func (s *Server) drop(sc *Scope, why action) {
	s.metrics.dropped.WithLabelValues(sc.Network, string(why)).Inc()
}

// scopeFor finds the scope of a request: that of the link it came in on, or
// for a relayed one the scope of the subnet that the relay names. Nil: none.
func scopeFor(own *Scope, all []*Scope, m *dhcpv4.DHCPv4) *Scope {
	subnet := subnetOf(m)
	if !subnet.IsValid() || own.onLink(subnet) {
		return own
	}
	for _, sc := range all {
		if sc.onLink(subnet) {
			return sc
		}
	}
	return nil
}

func typeName(t dhcpv4.MessageType) string {
	switch {
	case t == dhcpv4.MessageTypeNone:
		return "bootp"
	case t > dhcpv4.MessageTypeInform:
		return "other" // a label for each of 247 values would be the sender's choice
	}
	return strings.ToLower(t.String())
}

// Status says what is served and what is in the way.
func (s *Server) Status() Status {
	d := s.desired.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Desired: d.Rev, OK: true}
	var errs, parts []string
	if s.invalid != nil {
		errs = append(errs, strings.ReplaceAll(s.invalid.Error(), "\n", "; "))
		st.Fix = "correct the network in the Nodefile, then reload"
	}
	names := make([]string, 0, len(s.listeners))
	for dev := range s.listeners {
		names = append(names, dev)
	}
	slices.SortFunc(names, func(a, b string) int {
		return strings.Compare(s.listeners[a].scope.Load().Network, s.listeners[b].scope.Load().Network)
	})
	open := 0
	for _, dev := range names {
		l := s.listeners[dev]
		network := l.scope.Load().Network
		listening, err, note := l.state()
		switch {
		case listening:
			open++
			parts = append(parts, network+": "+s.leaseDetail(network))
		case err == nil:
			parts = append(parts, network+": opening "+dev)
		default:
			parts = append(parts, network+": not served")
			errs = append(errs, fmt.Sprintf("network %s: %v", network, err))
			if st.Fix == "" {
				st.Fix = "the overlay makes the bridge: see its line"
			}
		}
		if note != nil {
			errs = append(errs, fmt.Sprintf("network %s: %v", network, note))
			if st.Fix == "" {
				st.Fix = "stop the other DHCP server on " + dev
			}
		}
	}
	st.Error = strings.Join(errs, "; ")
	st.OK = s.invalid == nil && open == len(s.listeners)
	if st.OK && s.taken == d.Rev {
		st.Applied = d.Rev
	}
	st.Detail = strings.Join(parts, "; ")
	if len(parts) == 0 {
		st.Detail = "no network has dhcp"
	}
	return st
}

func (s *Server) leaseDetail(network string) string {
	u, ok := s.leases.(usage)
	if !ok {
		return "serving"
	}
	n, free := u.Usage(network)
	d := fmt.Sprintf("%d leases", n)
	if n == 1 {
		d = "1 lease"
	}
	if free >= 0 {
		d += fmt.Sprintf(", %.0f %% free", free*100)
	}
	return d
}
