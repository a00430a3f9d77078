package overlay

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// errSubscription says that the kernel or the library ended a subscription.
var errSubscription = errors.New("netlink subscription ended")

// Watch subscribes to links, addresses, routes and neighbours and wakes the
// reconciler for those that may be ours. A subscription that breaks (the
// socket's buffer overran) wakes too, since something was missed, and is made
// again.
func (k *netlinkKernel) Watch(ctx context.Context, wake func()) {
	for ctx.Err() == nil {
		if err := k.watchOnce(ctx, wake); err == errClosed {
			return
		}
		wake()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (k *netlinkKernel) watchOnce(ctx context.Context, wake func()) error {
	done := make(chan struct{})
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	neighs := make(chan netlink.NeighUpdate, 64)
	// The sockets belong to the namespace of the thread that opens them.
	open := 0
	err := k.thread.do(func() error {
		for _, sub := range []func() error{
			func() error { return netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{}) },
			func() error { return netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{}) },
			func() error { return netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{}) },
			func() error { return netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{}) },
		} {
			if err := sub(); err != nil {
				return err
			}
			open++
		}
		return nil
	})
	// Readers that block on a full channel would never see done.
	defer func() {
		close(done)
		drain := []func(){func() { drainAll(links) }, func() { drainAll(addrs) }, func() { drainAll(routes) }, func() { drainAll(neighs) }}
		for _, f := range drain[:open] {
			f()
		}
	}()
	if err != nil {
		return err
	}
	vxlan := map[int]bool{}  // indexes of our VXLAN devices
	bridge := map[int]bool{} // indexes of our bridges
	if l, err := k.h.LinkList(); err == nil {
		for _, l := range l {
			k.note(l, vxlan, bridge)
		}
	}
	wake() // for what changed before the subscription
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-links:
			if !ok {
				return errSubscription
			}
			if k.note(u.Link, vxlan, bridge) {
				wake()
			}
		case u, ok := <-addrs:
			if !ok {
				return errSubscription
			}
			if bridge[u.LinkIndex] || u.LinkIndex == 1 { // lo is always 1
				wake()
			}
		case u, ok := <-routes:
			if !ok {
				return errSubscription
			}
			if u.Route.Protocol == Protocol {
				wake()
			}
		case u, ok := <-neighs:
			if !ok {
				return errSubscription
			}
			if vxlan[u.LinkIndex] {
				wake()
			}
		}
	}
}

// note remembers the index of a link of ours and reports whether it is one.
func (k *netlinkKernel) note(l netlink.Link, vxlan, bridge map[int]bool) bool {
	a := l.Attrs()
	if !strings.HasPrefix(a.Alias, AliasPrefix) {
		return vxlan[a.Index] || bridge[a.Index]
	}
	switch l.Type() {
	case KindVXLAN:
		vxlan[a.Index] = true
	case KindBridge:
		bridge[a.Index] = true
	}
	return true
}

func drainAll[T any](c <-chan T) {
	for range c {
	}
}
