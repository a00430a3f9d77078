package dns

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"sync"

	wire "github.com/miekg/dns"
)

// cookies are what we and an upstream know each other by (RFC 7873): an
// answer with another cookie than ours is forged. The zero value is ready;
// safe for concurrent use.
type cookies struct {
	mu     sync.Mutex
	made   bool
	own    [8]byte
	server []byte // what the upstream gave us; empty: nothing yet
	off    bool   // the upstream cannot bear them
}

// maxCookie is the EDNS option with the longest cookie, in bytes.
const maxCookie = 4 + 8 + 32

// put appends our cookie to a packed query whose last record is an OPT record
// that ends the message and has optSize bytes of options.
func (c *cookies) put(query []byte, optSize int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		return query
	}
	if !c.made {
		rand.Read(c.own[:]) // never fails
		c.made = true
	}
	size := len(c.own) + len(c.server)
	binary.BigEndian.PutUint16(query[len(query)-optSize-2:], uint16(optSize+4+size))
	query = binary.BigEndian.AppendUint16(query, wire.EDNS0COOKIE)
	query = binary.BigEndian.AppendUint16(query, uint16(size))
	query = append(query, c.own[:]...)
	return append(query, c.server...)
}

// check reports whether an answer with these EDNS options may be from the
// upstream, and learns its cookie. An upstream without cookies is believed.
func (c *cookies) check(options []byte) bool {
	for len(options) >= 4 {
		code, size := binary.BigEndian.Uint16(options), int(binary.BigEndian.Uint16(options[2:]))
		options = options[4:]
		if size > len(options) {
			return false
		}
		got := options[:size]
		options = options[size:]
		if code != wire.EDNS0COOKIE {
			continue
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		rest, ours := bytes.CutPrefix(got, c.own[:])
		// Eight to 32 bytes of the server (RFC 7873 section 4).
		if !c.made || !ours || len(rest) != 0 && (len(rest) < 8 || len(rest) > 32) {
			return false
		}
		if !bytes.Equal(c.server, rest) {
			c.server = bytes.Clone(rest)
		}
	}
	return true
}

// refused is told that an upstream finds the query malformed. It reports
// whether to ask again, without a cookie.
func (c *cookies) refused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	again := !c.off && len(c.server) == 0
	c.off = c.off || again
	return again
}
