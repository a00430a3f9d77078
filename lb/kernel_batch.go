package lb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/sys/unix"
)

// batch makes the changes that come all the time, of a few elements, on a
// socket of its own and from a buffer that it keeps. The bytes are those of
// google/nftables, which makes everything else; on the way through it such a
// change takes a multiple of the kernel's own time.
//
// Not safe for concurrent use.
type batch struct {
	fd   int
	port uint32 // netlink port
	seq  uint32 // of the newest message
	buf  []byte // what is sent, then what is answered
	msgs []sent
	offs []int // where each element starts
}

// sent is a message of the transaction: one set's additions or deletions.
type sent struct {
	at    int // where it starts
	elems int // how many of offs are those before it
	set   *SetOp
	add   bool
}

const (
	// maxBatch elements stay far below the 64 KiB that an attribute can hold.
	maxBatch = 256
	// batchTimeout is far longer than the kernel takes, which answers before
	// the sending is over.
	batchTimeout      = 5 * time.Second
	nftHead           = unix.SizeofNlMsghdr + 4 // and struct nfgenmsg
	nftaSetElemKeyEnd = 10                      // NFTA_SET_ELEM_KEY_END
	nlmsgerrAttrOffs  = 2                       // NLMSGERR_ATTR_OFFS
)

// openBatch opens the calling thread's network namespace.
func openBatch() (*batch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	b := &batch{fd: fd, buf: make([]byte, 0, 4096)}
	if err := b.bind(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return b, nil
}

func (b *batch) bind() error {
	if err := unix.Bind(b.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(b.fd)
	if err != nil {
		return err
	}
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		b.port = nl.Pid
	}
	tv := unix.NsecToTimeval(int64(batchTimeout))
	if err := unix.SetsockoptTimeval(b.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	// An error comes without what we sent, and says where in it the trouble
	// is. Both are for the text of the error alone, and not of every kernel.
	_ = unix.SetsockoptInt(b.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(b.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	return unix.Connect(b.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (b *batch) close() error { return unix.Close(b.fd) }

// takes reports whether o is a change for it.
func (b *batch) takes(o *Ops) bool {
	if len(o.Replace) > 0 || len(o.Chains) > 0 {
		return false
	}
	n := 0
	for i := range o.Sets {
		s := &o.Sets[i]
		if s.Flush || len(s.Set.Val) > 0 && s.Set.Val[0] == KindVerdict {
			return false
		}
		if s.Set.Interval && len(s.Set.Key) == 1 && (endless(s.Del) || endless(s.Add)) {
			return false
		}
		n += len(s.Del) + len(s.Add)
	}
	return n <= maxBatch
}

// endless reports whether some interval has no end.
func endless(elems []Elem) bool {
	for i := range elems {
		if elems[i].End == "" {
			return true
		}
	}
	return false
}

// apply performs the changes in one transaction, or none of them.
func (b *batch) apply(sets []SetOp) error {
	b.encode(sets)
	if len(b.msgs) == 0 {
		return nil
	}
	first, last := b.seq-uint32(len(b.msgs))-1, b.seq-1
	if _, err := unix.Write(b.fd, b.buf); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return b.answer(first, last)
}

// encode fills the buffer. Deletions come first, since a key can be added
// again in the same transaction only after its deletion.
func (b *batch) encode(sets []SetOp) {
	b.buf, b.msgs, b.offs = b.buf[:0], b.msgs[:0], b.offs[:0]
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	for i := range sets {
		b.elements(&sets[i], sets[i].Del, false)
	}
	for i := range sets {
		b.elements(&sets[i], sets[i].Add, true)
	}
	if n := len(b.msgs); n > 0 {
		// The kernel answers to the last one, and so to all.
		at := b.msgs[n-1].at + 6
		binary.NativeEndian.PutUint16(b.buf[at:], binary.NativeEndian.Uint16(b.buf[at:])|unix.NLM_F_ACK)
	}
	b.begin(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
}

// begin appends the head of a message; its length is that of the head until
// finish.
func (b *batch) begin(kind, flags uint16, family uint8, resource uint16) (at int) {
	b.seq++
	at = len(b.buf)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, nftHead)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, unix.NLM_F_REQUEST|flags)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, b.seq)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, b.port)
	b.buf = append(b.buf, family, unix.NFNETLINK_V0)
	b.buf = binary.BigEndian.AppendUint16(b.buf, resource)
	return at
}

func (b *batch) elements(s *SetOp, elems []Elem, add bool) {
	if len(elems) == 0 {
		return
	}
	kind := uint16(unix.NFT_MSG_DELSETELEM)
	if add {
		kind = unix.NFT_MSG_NEWSETELEM
	}
	at := b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_CREATE, uint8(family(s.Family)), 0)
	b.attr(unix.NFTA_SET_ELEM_LIST_SET, s.Set.Name, "\x00")
	b.attr(unix.NFTA_SET_ELEM_LIST_SET_ID, "\x00\x00\x00\x00", "")
	b.attr(unix.NFTA_SET_ELEM_LIST_TABLE, TableName, "\x00")
	b.msgs = append(b.msgs, sent{at, len(b.offs), s, add})
	list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	n := uint16(0)
	for i := range elems {
		b.offs = append(b.offs, len(b.buf))
		n = b.elem(&s.Set, &elems[i], n)
	}
	b.unnest(list)
	binary.NativeEndian.PutUint32(b.buf[at:], uint32(len(b.buf)-at))
}

// elem appends an element, of a single-key interval its two ends, to a list
// of n; toKernel says the same of what google/nftables sends.
func (b *batch) elem(s *Set, e *Elem, n uint16) uint16 {
	n++
	item := b.nest(n)
	key, val := e.Key, e.Val
	if len(s.Key) == 1 && s.Key[0] == KindProto {
		key = key[:1] // padded in concatenations only
	}
	b.data(unix.NFTA_SET_ELEM_KEY, key)
	if s.Interval && len(s.Key) == 1 {
		b.unnest(item)
		n++
		item = b.nest(n)
		b.attr(unix.NFTA_SET_ELEM_FLAGS|unix.NLA_F_NESTED, "\x00\x00\x00\x01", "") // NFT_SET_ELEM_INTERVAL_END
		b.data(unix.NFTA_SET_ELEM_KEY, e.End)
	} else if s.Interval {
		b.data(nftaSetElemKeyEnd, e.End)
	}
	if len(s.Val) > 0 {
		if s.Val[0] == KindEther {
			val = val[:6]
		}
		b.data(unix.NFTA_SET_ELEM_DATA, val)
	}
	b.unnest(item)
	return n
}

func (b *batch) data(kind uint16, v string) {
	at := b.nest(kind)
	b.attr(unix.NFTA_DATA_VALUE, v, "")
	b.unnest(at)
}

// attr appends an attribute of two parts.
func (b *batch) attr(kind uint16, v, more string) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(unix.NLA_HDRLEN+len(v)+len(more)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(append(b.buf, v...), more...)
	b.buf = append(b.buf, "\x00\x00\x00"[:-len(b.buf)&3]...)
}

func (b *batch) nest(kind uint16) (at int) {
	at = len(b.buf)
	b.attr(kind|unix.NLA_F_NESTED, "", "")
	return at
}

func (b *batch) unnest(at int) {
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
}

// answer reads what the kernel says to the messages first to last. All of it
// is there when the sending is over: an error for each message that is wrong,
// then for the last one that it is right or wrong; or an error for the first,
// and nothing was done.
func (b *batch) answer(first, last uint32) error {
	var found error
	for {
		buf, err := b.receive()
		if err != nil {
			return errors.Join(found, err)
		}
		for r, body := range replies(buf) {
			n := r.seq - first
			if r.kind != unix.NLMSG_ERROR || n > last-first || len(body) < 4+unix.SizeofNlMsghdr {
				continue // about another transaction
			}
			if code := -int32(binary.NativeEndian.Uint32(body)); code != 0 && found == nil {
				found = b.explain(n, unix.Errno(code), body[4+unix.SizeofNlMsghdr:])
			}
			if r.seq == last || r.seq == first {
				return found
			}
		}
	}
}

// explain says what the message of a number, 0 for the transaction as a whole,
// was about.
func (b *batch) explain(n uint32, code unix.Errno, tlv []byte) error {
	if n == 0 || int(n) > len(b.msgs) {
		return explain(code)
	}
	m := &b.msgs[n-1]
	what, elems := "delete element", m.set.Del
	if m.add {
		what, elems = "add element", m.set.Add
	}
	where := -1
	for kind, v := range attributes(tlv) {
		if kind == nlmsgerrAttrOffs && len(v) == 4 {
			where = m.at + int(binary.NativeEndian.Uint32(v))
		}
	}
	i := 0
	for i+1 < len(elems) && b.offs[m.elems+i+1] <= where {
		i++
	}
	name := m.set.Family + " " + TableName + " " + m.set.Set.Name
	if where < 0 && len(elems) > 1 {
		return fmt.Errorf("%s %s, one of %d: %w", what, name, len(elems), explain(code))
	}
	return fmt.Errorf("%s %s { %s }: %w", what, name, m.set.Set.text(elems[i]), explain(code))
}

// generation reads the ruleset's.
func (b *batch) generation() (uint32, error) {
	b.buf = b.buf[:0]
	b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, 0)
	if _, err := unix.Write(b.fd, b.buf); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	for {
		buf, err := b.receive()
		if err != nil {
			return 0, err
		}
		for r, body := range replies(buf) {
			switch {
			case r.seq != b.seq:
			case r.kind == unix.NLMSG_ERROR && len(body) >= 4:
				return 0, explain(unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
			case r.kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN && len(body) >= 4:
				g, _, _ := generation(body[4:])
				return g, nil
			}
		}
	}
}

// receive waits for a datagram. It lies in the buffer, whose content was sent.
func (b *batch) receive() ([]byte, error) {
	for {
		buf := b.buf[:cap(b.buf)]
		n, err := unix.Read(b.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return nil, fmt.Errorf("the kernel did not answer in %v", batchTimeout)
		case err != nil:
			return nil, fmt.Errorf("receive: %w", err)
		default:
			return buf[:n], nil
		}
	}
}

// replies are the messages of a datagram, without their heads.
func replies(b []byte) iter.Seq2[reply, []byte] {
	return func(yield func(reply, []byte) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return
			}
			r := reply{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])}
			if !yield(r, b[unix.SizeofNlMsghdr:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

type reply struct {
	kind uint16
	seq  uint32
}
