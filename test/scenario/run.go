package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// commandLimit is how long a command may take. One that hangs is killed, and
// has failed.
const commandLimit = 2 * time.Minute

// Run types a command and returns what it wrote, standard output and standard
// error as they came. A command that fails, fails the test. The page shows both.
//
// where is Machine, a node ("node1"), "outside", "router" or a workload made
// with Lab.Attach. The command line is split into words as a shell does it,
// with quotes and backslashes, but nothing is expanded: use Shell for pipes.
func (s *Scenario) Run(where, cmdline string) string {
	s.t.Helper()
	out, err := s.Try(where, cmdline)
	if err != nil {
		s.t.Fatalf("on %s: %s: %v\n%s", where, cmdline, err, out)
	}
	return out
}

// Try is Run for commands that may or must fail.
func (s *Scenario) Try(where, cmdline string) (string, error) {
	s.t.Helper()
	out, err := s.Exec(where, cmdline)
	s.page.command(where, cmdline, out)
	return out, err
}

// Fail is Run for a command that must fail.
func (s *Scenario) Fail(where, cmdline string) string {
	s.t.Helper()
	out, err := s.Try(where, cmdline)
	if err == nil {
		s.t.Fatalf("on %s: %s: succeeded, must fail\n%s", where, cmdline, out)
	}
	return out
}

// Exec is Try without a trace on the page.
func (s *Scenario) Exec(where, cmdline string) (string, error) {
	s.t.Helper()
	argv, err := split(cmdline)
	if err != nil {
		s.t.Fatalf("%s: %v", cmdline, err)
	}
	return s.run(s.t.Context(), where, argv)
}

// Shell is Run for a script: /bin/sh runs it, with -e.
func (s *Scenario) Shell(where, script string) string {
	s.t.Helper()
	out, err := s.TryShell(where, script)
	if err != nil {
		s.t.Fatalf("on %s: %s: %v\n%s", where, script, err, out)
	}
	return out
}

// TryShell is Shell for scripts that may or must fail.
func (s *Scenario) TryShell(where, script string) (string, error) {
	s.t.Helper()
	script = strings.TrimSpace(script)
	out, err := s.run(s.t.Context(), where, []string{"sh", "-ec", script})
	s.page.command(where, script, out)
	return out, err
}

func (s *Scenario) run(ctx context.Context, where string, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	var out bytes.Buffer
	cmd, err := s.begin(ctx, where, argv, &out)
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (after %s)", ctx.Err(), commandLimit)
	}
	return out.String(), err
}

// begin starts a command; out gets what it writes.
func (s *Scenario) begin(ctx context.Context, where string, argv []string, out io.Writer) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = s.dir, s.env
	cmd.Stdout, cmd.Stderr = out, out
	// A killed command must not keep us waiting for children that hold its output.
	cmd.WaitDelay = time.Second
	if where != Machine {
		if s.Lab == nil {
			return nil, errors.New("the scenario has no lab yet: call Up")
		}
		v, err := s.Lab.View(where)
		if err != nil {
			return nil, err
		}
		return cmd, v.Start(cmd)
	}
	path, err := lookPath(argv[0], s.env)
	if err != nil {
		return nil, err
	}
	cmd.Path, cmd.Err = path, nil
	return cmd, cmd.Start()
}

// Process is a command that runs beside the others.
type Process struct {
	// Cmdline is what was typed.
	Cmdline string

	where string
	cmd   *exec.Cmd
	done  chan struct{}
	mu    sync.Mutex
	out   bytes.Buffer
}

// Start types a command with & behind it. It ends with the scenario, or by Stop.
func (s *Scenario) Start(where, cmdline string) *Process {
	s.t.Helper()
	p := s.start(where, cmdline)
	s.page.command(where, cmdline+" &", "")
	return p
}

// Background is Start without a trace on the page.
func (s *Scenario) Background(where, cmdline string) *Process {
	s.t.Helper()
	return s.start(where, cmdline)
}

func (s *Scenario) start(where, cmdline string) *Process {
	s.t.Helper()
	argv, err := split(cmdline)
	if err != nil {
		s.t.Fatalf("%s: %v", cmdline, err)
	}
	p := &Process{Cmdline: cmdline, where: where, done: make(chan struct{})}
	// Not the test's context: it ends before the scenario's cleanup.
	p.cmd, err = s.begin(context.Background(), where, argv, p)
	if err != nil {
		s.t.Fatalf("on %s: %s: %v", where, cmdline, err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	s.started = append(s.started, p)
	return p
}

// Write takes what the command writes.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// Output returns what the command has written so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Done is closed when the command has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the command, SIGTERM first, and returns what it wrote in all.
func (p *Process) Stop() string { return p.stop(unix.SIGTERM) }

// Interrupt ends the command as Ctrl-C does, and returns what it wrote in all.
func (p *Process) Interrupt() string { return p.stop(unix.SIGINT) }

func (p *Process) stop(sig syscall.Signal) string {
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(3 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
	return p.Output()
}

// lookPath finds a program in the PATH of env, the last one that is there.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for dir := range strings.SplitSeq(path, ":") {
		if p, err := exec.LookPath(dir + "/" + name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, path)
}

// split makes words of a command line: blanks part them, quotes and
// backslashes keep them together, as in POSIX sh. Nothing is expanded.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	in, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			if quote == '"' && r != '"' && r != '\\' {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("unfinished quote in %q", line)
	}
	if in {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, errors.New("empty command")
	}
	return words, nil
}

// Show puts what a background command has written so far on the page, as a
// shell does that has it in the same window, and returns it.
func (s *Scenario) Show(p *Process) string {
	out := p.Output()
	s.page.command(p.where, "fg", p.Cmdline+"\n"+out)
	return out
}
