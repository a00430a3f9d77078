package node

import (
	"context"
	"fmt"
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
	c, err := dialNotify()
	if c == nil {
		return err
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
