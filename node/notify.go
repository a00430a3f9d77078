package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// runNotify tells the service manager when the node serves, what it is doing,
// and that it is alive (sd_notify(3)). Without NOTIFY_SOCKET it does nothing.
// Ready is a node whose own records are written, also one that hears no peer
// or has trouble with the kernel: restarting it would help nobody, and
// `nodectl status` says what is wrong.
func (n *Node) runNotify(ctx context.Context) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:] // abstract socket
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer c.Close()
	say := func(s string) {
		if _, err := c.Write([]byte(s)); err != nil {
			n.log.Warn("service manager not told", "err", err)
		}
	}
	every := 5 * time.Second
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		every = min(every, time.Duration(us)*time.Microsecond/3)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	started := false
	for {
		select {
		case <-tick.C:
			if !started && !n.isDeclared() {
				continue
			}
			v := n.store.Snapshot().View()
			line := fmt.Sprintf("STATUS=nodes: %d, services: %d, revision: %d", len(v.Nodes), v.NumServices(), v.Rev)
			if !started {
				started = true
				tick.Reset(every)
				line = "READY=1\n" + line
			}
			say(line + "\nWATCHDOG=1")
		case <-ctx.Done():
			say("STOPPING=1")
			return nil
		}
	}
}
