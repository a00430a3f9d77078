package announce

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// bindTo makes a dialer use an interface.
func bindTo(dev string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), dev) }); cerr != nil {
			return cerr
		}
		return err
	}
}
