package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Proc names a process that the lab has started. A process ID alone may have
// been given to another process since; together with the start time it may
// not. The zero value names none.
type Proc struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks after boot, field 22 of proc_pid_stat(5)
}

// Alive reports whether the process runs. A zombie does not.
func (p Proc) Alive() bool {
	fd, ok, err := p.handle()
	if ok {
		unix.Close(fd)
	}
	return ok && err == nil
}

// handle opens a file descriptor that names the process for as long as it is
// open (pidfd_open(2)). ok is false when the process has ended.
func (p Proc) handle() (fd int, ok bool, err error) {
	if p.PID == 0 {
		return -1, false, nil
	}
	fd, err = unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, false, nil
	} else if err != nil {
		return -1, false, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	// Compared while the descriptor is open: the ID cannot change hands now.
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		unix.Close(fd)
		return -1, false, nil
	}
	if ended, err := pidfdEnded(fd, 0); err != nil || ended {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, true, nil
}

// pidfdEnded waits up to some milliseconds for a process to end. The state in
// proc_pid_stat(5) would not do: it says zombie for a moment when a thread
// other than the first calls execve(2), as a workload's program may.
func pidfdEnded(fd, millis int) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, millis)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait for process: %w", err)
	}
	return n > 0, nil
}

// startTime reads when a process was started.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

// parseStat reads the fields after the command name, which is in parentheses
// and may itself hold blanks and parentheses.
func parseStat(s string) (start uint64, err error) {
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return 0, fmt.Errorf("no command name in %q", s)
	}
	f := strings.Fields(s[i+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("too few fields in %q", s)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// start runs argv as seen through a view, in a session of its own, with its
// output in a file, and reaps it should it end while we live.
func start(v View, log string, argv ...string) (Proc, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return Proc{}, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := v.Start(cmd); err != nil {
		return Proc{}, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	// Read before anybody waits for it, the ID cannot be another's yet.
	ticks, err := startTime(cmd.Process.Pid)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return Proc{}, fmt.Errorf("identify process %d: %w", cmd.Process.Pid, err)
	}
	p := Proc{PID: cmd.Process.Pid, Start: ticks}
	go cmd.Wait()
	return p, nil
}

// signal sends a signal to the process, if it is still the one we started.
func (p Proc) signal(sig syscall.Signal) error {
	fd, ok, err := p.handle()
	if err != nil || !ok {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.PID, err)
	}
	return nil
}

// wait returns nil once the process has ended.
func (p Proc) wait(ctx context.Context) error {
	fd, ok, err := p.handle()
	if err != nil || !ok {
		return err
	}
	defer unix.Close(fd)
	for {
		// The wait is short because nothing wakes it when ctx ends.
		if ended, err := pidfdEnded(fd, 50); err != nil || ended {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
	}
}

// grace is how long a process may take to end after SIGTERM.
const grace = 5 * time.Second

// stopAll ends processes: SIGTERM to all, SIGKILL to those that stay.
func stopAll(ctx context.Context, procs ...Proc) error {
	var errs []error
	for _, p := range procs {
		errs = append(errs, p.signal(unix.SIGTERM))
	}
	term, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, p := range procs {
		if p.wait(term) == nil {
			continue
		}
		errs = append(errs, p.signal(unix.SIGKILL))
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		errs = append(errs, p.wait(kill))
		cancel()
	}
	return errors.Join(errs...)
}
