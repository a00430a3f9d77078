package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// sctpEndpoints lists the SCTP sockets of the calling thread's network
// namespace. It is there once the kernel's sctp module is loaded, which asking
// by sock_diag(7) would do.
const sctpEndpoints = "/proc/thread-self/net/sctp/eps"

// sctpSockets reads the sockets that listen. A kernel without SCTP has none.
func sctpSockets(path string) ([]boundSocket, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the host's sctp sockets: %w", err)
	}
	var out []boundSocket
	for line := range strings.Lines(string(b)) {
		out = append(out, parseSCTPEndpoint(line)...)
	}
	return out, nil
}

// parseSCTPEndpoint reads one line of the columns ENDPT SOCK STY SST HBKT LPORT
// UID INODE LADDRS (sctp_eps_seq_show). A socket has as many addresses as it was
// bound to. Whether one on :: takes IPv4 too is not told: it is taken to. What is
// no listening socket, such as the head line, gives nothing.
func parseSCTPEndpoint(line string) (out []boundSocket) {
	w := strings.Fields(line)
	if len(w) < 9 || w[3] != strconv.Itoa(stateListen) {
		return nil
	}
	port, err := strconv.ParseUint(w[5], 10, 16)
	inode, ierr := strconv.ParseUint(w[7], 10, 32)
	if err != nil || ierr != nil || port == 0 {
		return nil
	}
	for _, a := range w[8:] {
		if at, err := netip.ParseAddr(a); err == nil {
			out = append(out, boundSocket{proto: "sctp", at: netip.AddrPortFrom(at.Unmap(), uint16(port)), inode: uint32(inode)})
		}
	}
	return out
}
