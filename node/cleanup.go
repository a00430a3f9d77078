package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"nodenet/lb"
	"nodenet/lb/announce"
	"nodenet/overlay"
)

// CleanupOptions says what to remove.
type CleanupOptions struct {
	ConfigFile, StateDir string
	Logger               *slog.Logger
}

// Cleanup removes from the kernel what nodenet made, and nothing else: its
// nft tables, links with its alias, routes of its protocol, the resolver
// address, and it gives sysctls their old values back. The state directory
// stays. It refuses while the daemon runs, which would put everything back.
func Cleanup(ctx context.Context, o CleanupOptions) ([]string, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir := o.StateDir
	if dir == "" {
		cfg, err := loadConfig(Options{ConfigFile: o.ConfigFile})
		if err != nil {
			return nil, err
		}
		dir = cfg.Node.StateDir
	}
	if f, err := os.Open(filepath.Join(dir, "lock")); err == nil {
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, fmt.Errorf("the daemon is running on %s: stop it first (systemctl stop nodenet)", dir)
		}
	}
	rules, err1 := lb.Cleanup(ctx)
	answers, err2 := announce.Cleanup(ctx)
	links, err3 := overlay.Cleanup(ctx, dir, o.Logger)
	return slices.Concat(rules, answers, links), errors.Join(err1, err2, err3)
}
