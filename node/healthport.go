package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodenet/state"
)

// healthPorts answers on the health ports of services, for load balancers in
// front of nodes that take only what they have a backend for. It answers as
// kube-proxy does: 200 while the node has a ready backend, else 503, with the
// number of them in JSON. It is safe for concurrent use.
type healthPorts struct {
	view func() *state.View
	log  *slog.Logger

	mu     sync.Mutex
	open   map[netip.AddrPort]*healthPort
	faults []string // ports that are not open, for status
}

// healthPort is one listener.
type healthPort struct {
	mu      sync.Mutex
	service string // key
	srv     *http.Server
}

func newHealthPorts(view func() *state.View, log *slog.Logger) *healthPorts {
	return &healthPorts{view: view, log: log, open: map[netip.AddrPort]*healthPort{}}
}

// healthPortTick is how often ports that are taken are tried again, and the
// host's addresses looked at.
const healthPortTick = 10 * time.Second

// runHealthPorts keeps the listeners at what the services ask for.
func (n *Node) runHealthPorts(ctx context.Context) error {
	feed := n.store.Subscribe()
	defer feed.Close()
	tick := time.NewTicker(healthPortTick)
	defer tick.Stop()
	defer n.healthPorts.set(nil, nil)
	var last *state.View
	again := true
	for {
		v := n.store.Snapshot().View()
		if c := v.Since(last); again || c.All || len(c.Services) > 0 {
			last, again = v, false
			n.healthPorts.set(wantedHealthPorts(v), n.ownAddrs(v))
		}
		select {
		case <-feed.C():
			feed.Take()
		case <-tick.C:
			again = true
		case <-ctx.Done():
			return nil
		}
	}
}

// wantedHealthPorts is which service has which port; of two that want one, the
// first by key.
func wantedHealthPorts(v *state.View) map[uint16][]string {
	want := map[uint16][]string{}
	for s := range v.Services() {
		if s.HealthPort != 0 && !s.Headless && s.External == "" {
			want[s.HealthPort] = append(want[s.HealthPort], s.Key())
		}
	}
	return want
}

// ownAddrs are the addresses by which others know this host: those of its
// interfaces that lie in no range of ours.
func (n *Node) ownAddrs(v *state.View) []netip.Addr {
	return slices.DeleteFunc(hostAddrs(), func(a netip.Addr) bool {
		ours := a == n.cfg.Services.DNS || n.cfg.Services.Prefix.Contains(a)
		for i := range v.Networks {
			ours = ours || v.Networks[i].Prefix.Contains(a)
		}
		return ours || a.IsLoopback() || a.IsLinkLocalUnicast()
	})
}

// set makes the listeners one for each port and address. A port that cannot be
// had is a fault, until it can.
func (h *healthPorts) set(want map[uint16][]string, addrs []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var faults []string
	desired := map[netip.AddrPort]string{}
	for _, port := range slices.Sorted(maps.Keys(want)) {
		keys := want[port]
		for _, k := range keys[1:] {
			faults = append(faults, fmt.Sprintf("health port %d of service %s: is that of service %s: choose another", port, k, keys[0]))
		}
		for _, a := range addrs {
			desired[netip.AddrPortFrom(a, port)] = keys[0]
		}
	}
	for at, p := range h.open {
		if _, keep := desired[at]; !keep {
			p.srv.Close()
			delete(h.open, at)
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(desired), netip.AddrPort.Compare) {
		if p := h.open[at]; p != nil {
			p.mu.Lock()
			p.service = desired[at]
			p.mu.Unlock()
			continue
		}
		if err := h.listen(at, desired[at]); err != nil {
			faults = append(faults, fmt.Sprintf("health port %d of service %s: %v: choose another, or stop what has it", at.Port(), desired[at], err))
		}
	}
	for _, f := range faults {
		if !slices.Contains(h.faults, f) {
			h.log.Warn("health port is not served", "err", f)
		}
	}
	h.faults = faults
}

func (h *healthPorts) listen(at netip.AddrPort, service string) error {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return err
	}
	p := &healthPort{service: service}
	p.srv = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			p.mu.Lock()
			key := p.service
			p.mu.Unlock()
			answerHealth(w, h.view(), key)
		}),
		ReadTimeout: headerWait, WriteTimeout: headerWait, IdleTimeout: idleWait, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	h.open[at] = p
	go p.srv.Serve(l) // until Close
	return nil
}

// answerHealth says how many ready backends of a service this node has.
func answerHealth(w http.ResponseWriter, v *state.View, key string) {
	local := 0
	var namespace, name string
	if s := v.Service(key); s != nil {
		namespace, name = s.Namespace, s.Name
		for i := range s.Backends {
			if b := &s.Backends[i]; b.Node == v.Self && b.Ready {
				local++
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	// Both names are labels of DNS: nothing in them needs quoting.
	_, _ = io.WriteString(w, fmt.Sprintf("{\"service\":{\"namespace\":%q,\"name\":%q},\"localEndpoints\":%d}\n", namespace, name, local))
}

// Faults are the ports that are not served, and why.
func (h *healthPorts) Faults() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.faults)
}
