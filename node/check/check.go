// Package check asks backends of services whether they are well, each on a
// schedule of its own, and says when an answer changed.
//
//	Runner.Set(duties) ──► one goroutine a duty ──► Probe ──► history ──► Store, on change only
//	                          interval ± 10 %       timeout    rise, fall,
//	                                                           slow start
//
// It knows nothing of the cluster: who checks what, and where a result is
// kept, is the node's affair.
package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// Probe is one question to one backend. It is comparable with reflect.DeepEqual.
type Probe struct {
	Type     string         // tcp, http, https, exec, udp, dns; "": there is nothing to ask
	Addr     netip.AddrPort // whom to ask; for exec only what is told to the program
	Path     string         // http, https; "": /
	Host     string         // http, https: Host header, server name; dns: the name to ask for
	Command  []string       // exec
	Dir      string         // exec: where its program has to lie
	Service  string         // exec: told to the program
	Endpoint string         // the same
}

// Run asks once. The error says what was seen; nil: the backend is well. It
// returns when ctx ends, whatever the other side does.
func (p Probe) Run(ctx context.Context) error {
	switch p.Type {
	case "tcp":
		return p.tcp(ctx)
	case "http", "https":
		return p.http(ctx)
	case "exec":
		return p.exec(ctx)
	case "udp":
		return p.udp(ctx)
	case "dns":
		return p.dns(ctx)
	}
	return fmt.Errorf("check %s: this version does not know it", p.Type)
}

// tcp connects and closes.
func (p Probe) tcp(ctx context.Context) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Addr.String())
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.Addr, reason(ctx, err))
	}
	return c.Close()
}

// udpWait is for how long a refusal may be on its way.
const udpWait = 500 * time.Millisecond

// udp sends an empty datagram. A host without a listener answers with ICMP
// port unreachable, which the kernel reports at the next call on the connected
// socket; silence is a listener's right (RFC 1122 section 4.1.3.1).
func (p Probe) udp(ctx context.Context) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", p.Addr.String())
	if err != nil {
		return fmt.Errorf("send to %s: %w", p.Addr, reason(ctx, err))
	}
	defer c.Close()
	until := time.Now().Add(udpWait)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.SetDeadline(until)
	if _, err := c.Write(nil); err != nil {
		return fmt.Errorf("send to %s: %w", p.Addr, reason(ctx, err))
	}
	var b [1]byte
	if _, err := c.Read(b[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("send to %s: %w", p.Addr, reason(ctx, err))
	}
	return nil
}

// reason is the short form of what went wrong.
func reason(ctx context.Context, err error) error {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), os.IsTimeout(err), ctx.Err() != nil:
		return errTimeout
	}
	return err
}

var errTimeout = errors.New("timeout")

// firstLine is the first line of what a backend said, for people.
func firstLine(s string, limit int) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
	if len(line) > limit {
		line = strings.ToValidUTF8(line[:limit], "") + "…"
	}
	return line
}

// host is the name that an http check asks for.
func (p Probe) host() string { return cmp.Or(p.Host, p.Addr.Addr().String()) }
