package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// View is what a process of a lab sees: a network namespace, and its own
// files in the place of the machine's.
type View struct {
	Netns    string            `json:"netns"`
	Hostname string            `json:"hostname,omitempty"`
	Binds    map[string]string `json:"binds,omitempty"` // path → the file to show there
	Env      []string          `json:"env,omitempty"`   // "KEY=value", over the caller's
}

// Enter turns the calling process into argv as seen through the view. It
// returns only when that fails.
//
// The steps are those of `ip netns exec`: namespace, private mounts, a /sys
// that shows the namespace's devices.
func Enter(v View, argv []string) error {
	if len(argv) == 0 {
		return errors.New("enter: no command")
	}
	runtime.LockOSThread() // the thread that calls execve(2) is the one that survives it
	if err := enterNetns(v.Netns); err != nil {
		return err
	}
	flags := unix.CLONE_NEWNS
	if v.Hostname != "" {
		flags |= unix.CLONE_NEWUTS
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if v.Hostname != "" {
		if err := unix.Sethostname([]byte(v.Hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", v.Hostname, err)
		}
	}
	// Slave, not private: namespaces pinned later must appear here.
	err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		// The root is no mount point, as in a plain chroot: it becomes one,
		// in this mount namespace only.
		if err = unix.Mount("/", "/", "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("detach mounts from the machine's: %w", err)
	}
	// Some containers may not mount sysfs; little looks there.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	for path, file := range v.Binds {
		err := unix.Mount(file, path, "none", unix.MS_BIND, "")
		if errors.Is(err, fs.ErrNotExist) && !fileExists(path) {
			continue // the machine has none: a minimal image, or a dangling link
		}
		if err != nil {
			return fmt.Errorf("show %s at %s: %w", file, path, err)
		}
	}
	env := mergeEnv(os.Environ(), v.Env)
	path, err := lookPath(argv[0], env)
	if err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, env))
}

// lookPath searches the PATH that the command will see.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			path := filepath.Join(dir, name)
			if p, err := exec.LookPath(path); err == nil {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w in $PATH", name, exec.ErrNotFound)
}

// mergeEnv returns base with the variables of over replaced or added.
func mergeEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, kv := range over {
		key, _, _ := strings.Cut(kv, "=")
		out = slices.DeleteFunc(out, func(s string) bool { return strings.HasPrefix(s, key+"=") })
		out = append(out, kv)
	}
	return out
}

// View returns what a node ("node1"), a workload ("web" or "web.apps"),
// "outside" or "router" sees.
func (l *Lab) View(where string) (View, error) {
	rec, err := l.read()
	if err != nil {
		return View{}, err
	}
	path := "PATH=" + filepath.Join(l.dir, "bin") + string(os.PathListSeparator) + os.Getenv("PATH")
	v := View{Hostname: where, Env: []string{path, "NODENET_LAB=" + l.Name()}}
	switch where {
	case "outside", nsOutside:
		v.Netns = netnsPath(rec.Name, nsOutside)
		return v, nil
	case "router", nsRouter:
		v.Netns = netnsPath(rec.Name, nsRouter)
		return v, nil
	}
	if n, err := rec.node(where); err == nil {
		v.Netns = n.Netns
		v.Env = append(v.Env, "NODENET_SOCKET="+n.Socket, "NODENET_NODE="+n.Name, fmt.Sprintf("NODENET_INDEX=%d", n.Index))
		v.Binds = map[string]string{
			"/etc/resolv.conf": filepath.Join(n.Dir, "resolv.conf"),
			"/etc/hosts":       filepath.Join(n.Dir, "hosts"),
		}
		return v, nil
	}
	w, err := rec.workload(where)
	if err != nil {
		return View{}, err
	}
	v.Netns, v.Hostname = w.Netns, w.Name
	v.Binds = map[string]string{
		"/etc/resolv.conf": filepath.Join(w.Dir, "resolv.conf"),
		"/etc/hosts":       filepath.Join(w.Dir, "hosts"),
	}
	return v, nil
}

// Command returns a command that runs argv with the view of a part of the lab
// (see View). It is ready to start.
func (l *Lab) Command(ctx context.Context, where string, argv ...string) (*exec.Cmd, error) {
	v, err := l.View(where)
	if err != nil {
		return nil, err
	}
	rec, err := l.read()
	if err != nil {
		return nil, err
	}
	return enterCommand(ctx, rec.Binary, v, argv)
}

// enterCommand runs argv through the program's hidden verb `lab enter`: a
// process must be alone to change its mounts before the command begins.
func enterCommand(ctx context.Context, binary string, v View, argv []string) (*exec.Cmd, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode view: %w", err)
	}
	return exec.CommandContext(ctx, binary, append([]string{"lab", "enter", string(b), "--"}, argv...)...), nil
}

// Exec runs a command with the view of a part of the lab (see View) and
// returns what it wrote on standard output. A command that fails is an
// *exec.ExitError, with what it wrote on standard error in the message.
func (l *Lab) Exec(ctx context.Context, where string, argv ...string) (string, error) {
	cmd, err := l.Command(ctx, where, argv...)
	if err != nil {
		return "", err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		if text != "" {
			text = ": " + text
		}
		return string(out), fmt.Errorf("on %s: %s: %w%s", where, strings.Join(argv, " "), err, text)
	}
	return string(out), nil
}
