package lb

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// class is what the element of a service says of it, and the key of the chain
// that serves it: the number of slots in the lower half (its minor part, as nft
// prints it), how one of them is found and what is asked before in the upper.
// It travels in the packet's priority.
type class uint32

const (
	bySource class = 1 << (16 + iota) // the slot is found by a hash of the client's address
	byMaglev                          // the same, in a consistent table
	inRange                           // the slots are those of a range of ports
	fromSome                          // some clients only
	onSome                            // of a node port: on some of the host's addresses only
)

// The rules after translation look at priorities with these upper bits only.
// Such are set on the first packet of a flow and nowhere else.
const (
	afterMask class = 0xf000 << 16
	after     class = 0xa000 << 16
	// sticky is the flag of services whose clients keep their backends. The
	// priority stays after translation, so that the rules there learn.
	sticky = after
	// refusing is the class of a port without backends on an address that is
	// not ours alone.
	refusing = after | 0x400<<16
	// identified is what the identity of a backend begins with, see backendID.
	identified = after | 0x800<<16
	// dropping is the class of a port without backends on this node, where the
	// policy wants no others.
	dropping class = 0xd000 << 16
)

func (c class) slots() int { return int(c & 0xffff) }

// elem returns a class as the value or the key of an element.
func (c class) elem() string { return string(key(nil).host(uint32(c))) }

// flagName is what a flag is called in names of chains.
type flagName struct {
	flag class
	name string
}

var asked = []flagName{{inRange, "range"}, {onSome, "on"}, {fromSome, "from"}, {sticky, "sticky"}}

// chainName is that of the chain for a class. Its parts say what the chain
// does: lb-2 chooses one of two slots, lbs-2 by the client's address, lbh-251
// in a consistent table; np instead of lb is for node ports.
func (c class) chainName(nodePorts bool) string {
	name := "lb"
	if nodePorts {
		name = "np"
	}
	switch {
	case c&byMaglev != 0:
		name += "h"
	case c&bySource != 0:
		name += "s"
	}
	parts := []string{name, fmt.Sprint(c.slots())}
	for _, f := range asked {
		if c&f.flag == f.flag {
			parts = append(parts, f.name)
		}
	}
	return strings.Join(parts, "-")
}

// chainset says which chains there are besides the fixed ones: of classes, and
// of times for which clients keep their backends.
type chainset struct {
	lb, np map[class]bool
	keep   map[uint32]bool // seconds
}

func newChainset() chainset {
	return chainset{make(map[class]bool), make(map[class]bool), make(map[uint32]bool)}
}

// has reports whether all chains that serve a port are there.
func (c *chainset) has(s *Service) bool {
	k := s.class()
	of := c.lb
	if s.nodePort() {
		of = c.np
	}
	return k.slots() == 0 || of[k] && (s.Affinity == 0 || c.keep[s.Affinity])
}

// need adds the chains that serve a port.
func (c *chainset) need(s *Service) {
	k := s.class()
	if k.slots() == 0 {
		return
	}
	of := c.lb
	if s.nodePort() {
		of = c.np
	}
	of[k] = true
	if s.Affinity != 0 {
		c.keep[s.Affinity] = true
	}
}

// with returns both sets of chains together.
func (c chainset) with(o chainset) chainset {
	out := newChainset()
	for _, x := range []chainset{c, o} {
		maps.Copy(out.lb, x.lb)
		maps.Copy(out.np, x.np)
		maps.Copy(out.keep, x.keep)
	}
	return out
}

// named adds the chain of a name; false: it is none of these.
func (c *chainset) named(name string) bool {
	if name == "learn" {
		return true // comes with the first of keep
	}
	parts := strings.Split(name, "-")
	if len(parts) < 2 {
		return false
	}
	n, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return false
	}
	if parts[0] == "keep" && len(parts) == 2 {
		c.keep[uint32(n)] = true
		return true
	}
	k := class(n)
	switch {
	case strings.HasSuffix(parts[0], "h"):
		k |= byMaglev
	case strings.HasSuffix(parts[0], "s"):
		k |= bySource
	}
	for _, f := range asked {
		if slices.Contains(parts[2:], f.name) {
			k |= f.flag
		}
	}
	switch name {
	case k.chainName(false):
		c.lb[k] = true
	case k.chainName(true):
		c.np[k] = true
	default:
		return false
	}
	return true
}
