package dns

import (
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"
	"sync"

	wire "github.com/miekg/dns"
)

// cookies are what we and an upstream know each other by (RFC 7873): an
// answer with another cookie than ours is forged. The zero value is ready;
// safe for concurrent use.
type cookies struct {
	mu     sync.Mutex
	own    string // eight bytes in hex
	server string // what the upstream gave us; empty: nothing yet
	off    bool   // the upstream cannot bear them
}

// put adds our cookie to a query, in the place of an older one.
func (c *cookies) put(m *wire.Msg) {
	opt := m.IsEdns0()
	if opt == nil {
		return
	}
	c.mu.Lock()
	if c.off {
		c.mu.Unlock()
		opt.Option = slices.DeleteFunc(opt.Option, func(o wire.EDNS0) bool { return o.Option() == wire.EDNS0COOKIE })
		return
	}
	if c.own == "" {
		var b [8]byte
		rand.Read(b[:]) // never fails
		c.own = hex.EncodeToString(b[:])
	}
	text := c.own + c.server
	c.mu.Unlock()
	for _, o := range opt.Option {
		if old, ok := o.(*wire.EDNS0_COOKIE); ok {
			old.Cookie = text
			return
		}
	}
	opt.Option = append(opt.Option, &wire.EDNS0_COOKIE{Code: wire.EDNS0COOKIE, Cookie: text})
}

// check reports whether an answer may be from the upstream, and learns its
// cookie. An upstream without cookies is believed.
func (c *cookies) check(r *wire.Msg) bool {
	opt := r.IsEdns0()
	if opt == nil {
		return true
	}
	for _, o := range opt.Option {
		got, ok := o.(*wire.EDNS0_COOKIE)
		if !ok {
			continue
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		rest, ours := strings.CutPrefix(strings.ToLower(got.Cookie), c.own)
		// Eight to 32 bytes of the server (RFC 7873 section 4).
		if !ours || len(rest) != 0 && (len(rest) < 16 || len(rest) > 64) {
			return false
		}
		c.server = rest
	}
	return true
}

// refused is told that an upstream finds the query malformed. It reports
// whether to ask again, without a cookie.
func (c *cookies) refused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	again := !c.off && c.server == ""
	c.off = c.off || again
	return again
}
