package plugin

import (
	"errors"
	"log/slog"
	"net/netip"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Env is what surrounds a plugin: its server block and the server. The zero
// value discards logs and metrics and knows nothing.
type Env struct {
	Logger *slog.Logger
	// Registry receives metrics. Equal metrics of several blocks are one; see
	// Register.
	Registry prometheus.Registerer
	Block    string // the block's name in messages
	Zones    Zones  // of the block
	Hostname string
	// ResolvConf is read wherever a directive names /etc/resolv.conf.
	ResolvConf string
	// Plugins are those of the block, in order; complete before any Attach.
	Plugins []Named
	// Note shows a lasting problem in the server's status; a nil error clears
	// it.
	Note func(what string, err error, fix string)
	// IsOwn reports whether an address is a socket of this server whose
	// queries for a zone would come to the same block again.
	IsOwn func(addr netip.AddrPort, zone string) bool
}

// Filled returns the Env with everything that a plugin may call.
func (e Env) Filled() Env {
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	if e.Note == nil {
		e.Note = func(string, error, string) {}
	}
	if e.IsOwn == nil {
		e.IsOwn = func(netip.AddrPort, string) bool { return false }
	}
	return e
}

// Register returns c, or the equal collector that another block registered
// before it.
func Register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	var dup prometheus.AlreadyRegisteredError
	if err := r.Register(c); errors.As(err, &dup) {
		if old, ok := dup.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}

// Holds reports whether any plugin answers a name from own data.
func Holds(plugins []Named, name string) bool {
	for _, p := range plugins {
		if h, ok := p.Plugin.(Holder); ok && h.Holds(name) {
			return true
		}
	}
	return false
}

// Refusal is an answer that has nothing but a code.
func Refusal(rcode int) *wire.Msg {
	return &wire.Msg{MsgHdr: wire.MsgHdr{Rcode: rcode}}
}
