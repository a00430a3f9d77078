package batch

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Peer is where a datagram came from, in the kernel's form, for an answer that
// comes later than the next Read. The zero value is nobody.
type Peer struct {
	addr unix.RawSockaddrInet6
	size uint32
}

// Peer returns the sender of the i-th datagram.
func (r *Reader) Peer(i int) Peer { return Peer{r.addrs[i], r.msgs[i].hdr.Namelen} }

// Addr returns the address, as an IPv4 address if it is one.
func (p *Peer) Addr() netip.AddrPort { return addrPort(&p.addr) }
