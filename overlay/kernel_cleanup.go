package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cleanup removes exactly what nodenet owns in the network namespace of the
// calling thread: routes of protocol 78 in every table, addresses on lo with
// our label, links with our alias; then it restores the sysctls recorded in
// stateDir, where they still have the value that we gave them. It returns what
// it did as shell commands. A second call does nothing. What fails is in the
// error, and the rest is done all the same.
func Cleanup(ctx context.Context, stateDir string, log *slog.Logger) ([]string, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k, err := newNetlinkKernel()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	c := cleaner{k: k, log: log}
	for _, step := range []func() error{c.routes, c.addrs, c.links, func() error { return c.sysctls(sysctlLog{dir: stateDir}) }} {
		if err := ctx.Err(); err != nil {
			return c.done, errors.Join(append(c.errs, err)...)
		}
		if err := step(); err != nil {
			c.errs = append(c.errs, err)
		}
	}
	return c.done, errors.Join(c.errs...)
}

type cleaner struct {
	k    *netlinkKernel
	log  *slog.Logger
	done []string
	errs []error
}

func (c *cleaner) try(text string, err error) {
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", text, err))
		return
	}
	c.log.Info("cleanup", "op", text)
	c.done = append(c.done, text)
}

func (c *cleaner) routes() error {
	links, err := dump(c.k.h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return c.k.h.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_UNSPEC},
				netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, n := range routes {
			text := fmt.Sprintf("ip route del %s table %d proto %d", n.Dst, n.Table, Protocol)
			if r, ok := routeOf(n, byIndex); ok {
				text = "ip route del " + r.spec()
				if n.Table != unix.RT_TABLE_MAIN {
					text += fmt.Sprintf(" table %d", n.Table)
				}
			}
			err := c.k.h.RouteDel(&n)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			c.try(text, err)
		}
	}
	return nil
}

func (c *cleaner) addrs() error {
	lo, err := c.k.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return c.k.h.AddrList(lo, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of lo: %w", err)
	}
	for _, a := range addrs {
		if a.Label == LoLabel {
			c.try("ip addr del "+LocalAddr{Addr: addrOf(a.IP)}.spec(), c.k.h.AddrDel(lo, &a))
		}
	}
	return nil
}

func (c *cleaner) links() error {
	links, err := dump(c.k.h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	// Ports first: a bridge that goes last takes nothing with it.
	for _, bridges := range []bool{false, true} {
		for _, l := range links {
			a := l.Attrs()
			if !strings.HasPrefix(a.Alias, AliasPrefix) || (l.Type() == KindBridge) != bridges {
				continue
			}
			c.try("ip link del "+a.Name, c.k.DelLink(a.Name))
		}
	}
	return nil
}

func (c *cleaner) sysctls(s sysctlLog) error {
	changes, err := s.load()
	if err != nil {
		return err
	}
	failed := false
	for _, path := range sortedKeys(changes) {
		ch := changes[path]
		var now string
		err := c.k.thread.do(func() error {
			b, err := os.ReadFile(sysctlFile(path))
			now = strings.TrimSpace(string(b))
			return err
		})
		if errors.Is(err, os.ErrNotExist) || err == nil && now != ch.Set {
			continue // gone, or somebody else's by now
		}
		if err == nil {
			err = c.k.SetSysctl(Sysctl{Path: path, Value: ch.Before})
		}
		failed = failed || err != nil
		c.try(fmt.Sprintf("sysctl -w %s=%s", path, ch.Before), err)
	}
	if len(changes) == 0 || failed {
		return nil
	}
	if err := os.Remove(s.file()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the record of former sysctls: %w", err)
	}
	return nil
}
