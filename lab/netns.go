package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shareNetnsDir makes netnsDir a shared mount, as ip-netns(8) does, so that
// namespaces pinned later appear in the nodes' mount namespaces too.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", netnsDir, err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share the mounts of %s: %w", netnsDir, err)
	}
	return nil
}

// addNetns makes a network namespace, pins it and brings its loopback up.
func addNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add network namespace %s: it exists: remove it with 'ip netns del %s' if nobody needs it", path, filepath.Base(path))
	} else if err != nil {
		return fmt.Errorf("add network namespace: %w", err)
	}
	f.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin network namespace %s: %w", path, err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo in %s: %w", path, err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up in %s: %w", path, err)
		}
		return nil
	})
}

// removeNetns unpins a namespace and removes its files under /etc/netns. It
// is no error when there is none.
func removeNetns(path string) error {
	etc := filepath.Join(netnsEtcDir, filepath.Base(path))
	// /etc/netns itself stays: in another mount namespace it may be a mount
	// point, which removing it here would detach there (rmdir(2)).
	for _, f := range []string{filepath.Join(etc, "resolv.conf"), etc} {
		os.Remove(f) // a folder goes only when it is empty
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}

// inNetns runs fn on a thread that is in the namespace. What fn opens, e.g. a
// socket, stays there.
func inNetns(path string, fn func() error) error {
	return onThread(func() error {
		if err := enterNetns(path); err != nil {
			return err
		}
		return fn()
	})
}

// onThread runs fn on an operating system thread of its own, which ends
// afterwards: nobody meets what fn changed about it.
func onThread(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		errc <- fn()
	}()
	return <-errc
}

func enterNetns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// checkPrivileges names the capabilities that a lab needs and we lack.
func checkPrivileges() error {
	var hdr = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	missing := missingCapabilities(uint64(data[1].Effective)<<32 | uint64(data[0].Effective))
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("a lab makes network namespaces, links and mounts and needs %s, which this process lacks: run it as root (sudo nodectl lab …), in a container with --cap-add for each", strings.Join(missing, " and "))
}

func missingCapabilities(effective uint64) []string {
	var out []string
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}} {
		if effective&(1<<c.bit) == 0 {
			out = append(out, c.name)
		}
	}
	return out
}
