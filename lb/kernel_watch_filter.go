package lb

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// deaf lets the kernel drop messages about what the netlink ports of our own
// transactions did, before they are queued and wake the reader. It builds them
// all the same. (The kernel puts the sender's port into the
// header: nlmsg_pid, include/net/netfilter/nf_tables.h, nft_ctx.)
func (w *watch) deaf(ports []uint32) error {
	prog, err := bpf.Assemble(dropPorts(ports))
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	raw := make([]unix.SockFilter, len(prog))
	for i, p := range prog {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	c, err := w.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	var set error
	err = c.Control(func(fd uintptr) {
		set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]})
	})
	if err == nil {
		err = set
	}
	if err != nil {
		return fmt.Errorf("watch nftables: attach a filter: %w", err)
	}
	return nil
}

// isOwn reports whether a thread is this process's. In a PID namespace of its
// own the process does not find it, and hears all.
func isOwn(thread uint32) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread))
	return err == nil
}

// dropPorts passes messages but those with one of the ports in their header. A
// filter loads words as the network sends them, the header has the host's
// order.
func dropPorts(ports []uint32) []bpf.Instruction {
	prog := []bpf.Instruction{bpf.LoadAbsolute{Off: 12, Size: 4}} // nlmsg_pid
	for i, p := range ports {
		var host [4]byte
		binary.NativeEndian.PutUint32(host[:], p)
		// Over the other comparisons and the passing on.
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(host[:]), SkipTrue: uint8(len(ports) - i)})
	}
	return append(prog, bpf.RetConstant{Val: ^uint32(0)}, bpf.RetConstant{Val: 0})
}
