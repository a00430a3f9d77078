package loadbalance

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	wire "github.com/miekg/dns"
)

// weights of addresses, by the lower-case name that has them. Immutable.
type weights map[string]map[netip.Addr]uint64

// refresh reads the file when its text is another one than before. A faulty
// file changes nothing.
func (l *loadbalance) refresh() {
	text, err := os.ReadFile(l.file)
	if err != nil {
		if l.text != "-" {
			l.log.Warn("weights cannot be read, the old ones stay", "file", l.file, "err", err)
		}
		l.text = "-"
		return
	}
	if string(text) == l.text {
		return
	}
	l.text = string(text)
	w, err := parseWeights(string(text))
	if err != nil {
		l.log.Error("weights are faulty, the old ones stay", "file", l.file, "err", err)
		return
	}
	l.weights.Store(&w)
}

// parseWeights reads names, each followed by lines `ADDRESS WEIGHT`.
func parseWeights(text string) (weights, error) {
	w := make(weights)
	name, no := "", 0
	for line := range strings.Lines(text) {
		no++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		switch len(f) {
		case 0:
		case 1:
			name = wire.CanonicalName(f[0])
			if _, ok := wire.IsDomainName(name); !ok {
				return nil, fmt.Errorf("line %d: %q is not a name", no, f[0])
			}
			if w[name] == nil {
				w[name] = make(map[netip.Addr]uint64)
			}
		case 2:
			a, err := netip.ParseAddr(f[0])
			n, nerr := strconv.ParseUint(f[1], 10, 8)
			if err != nil || nerr != nil || n == 0 || name == "" {
				return nil, fmt.Errorf("line %d: write a name, then lines of an address and a weight from 1 to 255", no)
			}
			w[name][a.Unmap()] = n
		default:
			return nil, fmt.Errorf("line %d: write a name, or an address and its weight", no)
		}
	}
	return w, nil
}

// pick chooses the record that comes first. An address without a weight has 1.
func (w weights) pick(addrs []wire.RR, random func(uint64) uint64) int {
	of := func(rr wire.RR) uint64 {
		return max(1, w[strings.ToLower(rr.Header().Name)][addrOf(rr)])
	}
	sum := uint64(0)
	for _, rr := range addrs {
		sum += of(rr)
	}
	n := random(sum)
	for i, rr := range addrs {
		if n < of(rr) {
			return i
		}
		n -= of(rr)
	}
	return 0
}
