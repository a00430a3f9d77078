package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// said is how much of a program's output is kept.
const said = 200

// exec runs a program, without a shell. It leads a process group of its own,
// which is killed as a whole when the time is up, and once it has ended: what
// it started in the background does not outlive it.
//
// Services are declared by any node of the cluster, so the program must lie in
// a directory where this node's operator put it: who may declare a service
// must not thereby run what they like as root everywhere.
func (p Probe) exec(ctx context.Context) error {
	if len(p.Command) == 0 {
		return errors.New("exec: no program")
	}
	name := p.Command[0]
	if filepath.Dir(filepath.Clean(name)) != filepath.Clean(p.Dir) {
		return fmt.Errorf("exec %s: this node runs checks from %s alone: put it there", name, p.Dir)
	}
	var out head
	cmd := exec.Command(name, p.Command[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C",
		"NODENET_SERVICE=" + p.Service, "NODENET_ENDPOINT=" + p.Endpoint, "NODENET_ADDR=" + p.Addr.Addr().String(),
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A grandchild may hold the pipe open for longer than the program lives.
	cmd.WaitDelay = 100 * time.Millisecond
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("exec %s: %w", name, reason(ctx, err))
	}
	group := cmd.Process.Pid
	kill := func() { _ = syscall.Kill(-group, syscall.SIGKILL) } // it may have ended
	stop := context.AfterFunc(ctx, kill)
	err := cmd.Wait()
	stop()
	kill()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("exec %s: %w", name, errTimeout)
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case errors.As(err, &exit):
		text := exit.ProcessState.String()
		if line := firstLine(out.String(), said); line != "" {
			text += ": " + line
		}
		return fmt.Errorf("exec %s: %s", name, text)
	}
	return fmt.Errorf("exec %s: %w", name, err)
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(b []byte) (int, error) {
	if room := 4*said - h.Len(); room > 0 {
		h.Buffer.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}
