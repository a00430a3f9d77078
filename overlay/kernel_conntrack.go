package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Conntrack forgets tracked connections in the daemon's network namespace.
// It is safe for concurrent use.
type Conntrack struct{}

// Conntrack returns the connection tracking table of the host.
func (o *Overlay) Conntrack() Conntrack { return Conntrack{} }

// Delete deletes the flows of a protocol and an IP version for which stale says
// so, and returns how many there were. dst is where the first packet was sent,
// backend is who answers: the same where nothing was translated. All flows of
// the version are listed once.
func (Conntrack) Delete(proto uint8, ipv6 bool, stale func(dst, backend netip.AddrPort) bool) (int, error) {
	family := uint8(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	var doomed [][]byte
	err := eachFlow(family, func(msg []byte) {
		if f, ok := parseFlow(msg, proto); ok && stale(f.Dest, f.Target) {
			doomed = append(doomed, msg)
		}
	})
	n := 0
	for _, msg := range doomed {
		req := conntrackRequest(family, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		req.AddRawData(msg[nfgenLen:]) // names the flow by its tuples and its ID
		_, derr := req.Execute(unix.NETLINK_NETFILTER, 0)
		if derr != nil && !errors.Is(derr, fs.ErrNotExist) {
			err = errors.Join(err, derr)
			continue
		}
		n++
	}
	if err != nil {
		return n, fmt.Errorf("delete conntrack entries of protocol %d: %w", proto, err)
	}
	return n, nil
}

// nfgenLen is the length of struct nfgenmsg, before the attributes.
const nfgenLen = 4

func conntrackRequest(family uint8, operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// eachFlow dumps the flows of a version, as ctnetlink describes them. After an
// error some may be missing.
func eachFlow(family uint8, yield func(msg []byte)) error {
	req := conntrackRequest(family, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	return req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		if len(msg) >= nfgenLen {
			yield(msg)
		}
		return true
	})
}
