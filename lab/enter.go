package lab

import (
	"context"
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
	Netns    string
	Hostname string
	Binds    map[string]string // path → the file to show there
	Env      []string          // "KEY=value", over the caller's
}

// Enter turns the calling process into argv as seen through the view. It
// returns only when that fails.
func Enter(v View, argv []string) error {
	if len(argv) == 0 {
		return errors.New("enter: no command")
	}
	runtime.LockOSThread() // the thread that calls execve(2) is the one that survives it
	if err := v.apply(); err != nil {
		return err
	}
	env := mergeEnv(os.Environ(), v.Env)
	path, err := lookPath(argv[0], env)
	if err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, env))
}

// Start starts a command as seen through the view: cmd.Start, with v.Env over
// cmd's environment and the program looked for in the PATH that results. All
// else of cmd holds as it does there. Not cmd.Run nor cmd.Output, which would
// start it once more, and here.
//
// The view is that of a thread which ends at once. The child is made by it and
// so inherits its namespaces (clone(2)); no process stands in between, as one
// does with `ip netns exec`.
func (v View) Start(cmd *exec.Cmd) error {
	env := mergeEnv(cmd.Environ(), v.Env)
	path, err := lookPath(cmd.Args[0], env)
	if err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	cmd.Env, cmd.Path, cmd.Err = env, path, nil
	return onThread(func() error {
		if err := v.apply(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// apply gives the calling thread the view, for good.
//
// The steps are those of `ip netns exec`: namespace, private mounts, a /sys
// that shows the namespace's devices.
func (v View) apply() error {
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
	return nil
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

// Exec runs a command with the view of a part of the lab (see View) and
// returns what it wrote on standard output. A command that fails is an
// *exec.ExitError, with what it wrote on standard error in the message.
func (l *Lab) Exec(ctx context.Context, where string, argv ...string) (string, error) {
	v, err := l.View(where)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err = v.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		if text != "" {
			text = ": " + text
		}
		return out.String(), fmt.Errorf("on %s: %s: %w%s", where, strings.Join(argv, " "), err, text)
	}
	return out.String(), nil
}
