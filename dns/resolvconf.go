package dns

import (
	"net/netip"
	"os"
	"strings"
)

// systemd-resolved listens on these and puts the first into resolv.conf; it
// may well forward to us. The servers behind it are in the other file.
const resolvedConf = "/run/systemd/resolve/resolv.conf"

func isResolvedStub(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

// resolveTargets turns what is written into addresses. Files are read anew
// each time: they are small and change with every network the host joins.
func (f *forward) resolveTargets() []target {
	var out []target
	for _, t := range f.to {
		if t.file == "" {
			out = append(out, t)
			continue
		}
		file := t.file
		if file == DefaultResolvConf {
			file = f.srv.opt.ResolvConf
		}
		stub := false
		for _, a := range nameservers(file) {
			if isResolvedStub(a) {
				stub = true
				continue
			}
			out = append(out, target{addr: netip.AddrPortFrom(a, defaultPort)})
		}
		if stub {
			for _, a := range nameservers(resolvedConf) {
				if !isResolvedStub(a) {
					out = append(out, target{addr: netip.AddrPortFrom(a, defaultPort)})
				}
			}
		}
	}
	return out
}

// nameservers reads a resolv.conf; a missing file names none.
func nameservers(file string) []netip.Addr {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return parseNameservers(string(text))
}

// parseNameservers reads the nameserver lines of resolv.conf(5).
func parseNameservers(text string) (out []netip.Addr) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
