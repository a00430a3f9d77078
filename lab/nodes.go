package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/api"
)

// boot writes the nodes' files and starts the daemons and the outside host.
func (l *Lab) boot(ctx context.Context, o Options) error {
	rec, err := l.read()
	if err != nil {
		return err
	}
	bin := filepath.Join(l.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return fmt.Errorf("create lab directory: %w", err)
	}
	// So that `lab exec node1 -- nodectl status` finds this very program.
	if err := os.Symlink(o.Binary, filepath.Join(bin, "nodectl")); err != nil {
		return fmt.Errorf("link nodectl: %w", err)
	}
	if err := l.startOutside(ctx); err != nil {
		return err
	}
	for _, n := range rec.Nodes {
		if err := writeNodeFiles(&o, n); err != nil {
			return err
		}
	}
	first := rec.Nodes[0]
	if _, err := l.Exec(ctx, first.Name, rec.Binary, "init", "--config", first.config(), "--state", first.state()); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	if o.Join == JoinSecret {
		secret, err := os.ReadFile(filepath.Join(first.state(), "cluster.secret"))
		if err != nil {
			return fmt.Errorf("copy the cluster's secret: %w", err)
		}
		for _, n := range rec.Nodes[1:] {
			if err := os.WriteFile(filepath.Join(n.state(), "cluster.secret"), secret, 0o600); err != nil {
				return fmt.Errorf("copy the cluster's secret: %w", err)
			}
		}
	}
	for _, n := range rec.Nodes {
		if o.Join == JoinToken && n != first {
			if err := l.joinByToken(ctx, first, n); err != nil {
				return err
			}
		}
		if err := l.Start(ctx, n.Name); err != nil {
			return err
		}
		l.progress(fmt.Sprintf("%s %s started", n.Name, n.Addr))
	}
	return nil
}

func writeNodeFiles(o *Options, n *Node) error {
	for _, dir := range []string{n.Dir, n.state()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create directory of %s: %w", n.Name, err)
		}
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", n.Addr, n.Name)
	resolv := fmt.Sprintf("nameserver %s\n", outsideAddr)
	for name, content := range map[string]string{
		"Nodefile":    nodefile(o, n.Index),
		"hosts":       hosts,
		"resolv.conf": resolv,
	} {
		if err := os.WriteFile(filepath.Join(n.Dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s of %s: %w", name, n.Name, err)
		}
	}
	return writeNetnsResolvConf(n.Netns, resolv)
}

// writeNetnsResolvConf writes the file that `ip netns exec` shows as
// /etc/resolv.conf in a namespace.
func writeNetnsResolvConf(netns, content string) error {
	path := filepath.Join(netnsEtcDir, filepath.Base(netns), "resolv.conf")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// joinByToken lets a node into the cluster as an operator would.
func (l *Lab) joinByToken(ctx context.Context, member, n *Node) error {
	client := member.Client()
	defer client.Close()
	var token api.Token
	err := poll(ctx, 30*time.Second, func() (err error) {
		token, err = client.Token(ctx, api.TokenRequest{})
		return err
	})
	if err != nil {
		return fmt.Errorf("get a token from %s: %w", member.Name, err)
	}
	rec, err := l.read()
	if err != nil {
		return err
	}
	if _, err := l.Exec(ctx, n.Name, rec.Binary, "join", token.Token, "--config", n.config(), "--state", n.state()); err != nil {
		return fmt.Errorf("join %s: %w", n.Name, err)
	}
	return nil
}

// Start starts the daemon of a node. It does not wait for the daemon to be
// ready: WaitConverged does.
func (l *Lab) Start(ctx context.Context, node string) error {
	v, err := l.View(node)
	if err != nil {
		return err
	}
	return l.update(func(r *record) error {
		n, err := r.node(node)
		if err != nil {
			return err
		}
		if n.Proc.Alive() {
			return fmt.Errorf("%s runs already, as process %d", n.Name, n.Proc.PID)
		}
		// The daemon outlives ctx: it belongs to the lab.
		n.Proc, err = start(v, n.Log(), r.Binary, "run", "--config", n.config(), "--state", n.state(), "--socket", n.Socket)
		if err != nil {
			return fmt.Errorf("start %s: %w", n.Name, err)
		}
		return nil
	})
}

// Kill signals the daemon of a node and waits until it has ended. Its
// namespace, links and workloads stay, as they do when a daemon crashes.
func (l *Lab) Kill(ctx context.Context, node string, sig syscall.Signal) error {
	rec, err := l.read()
	if err != nil {
		return err
	}
	n, err := rec.node(node)
	if err != nil {
		return err
	}
	if !n.Proc.Alive() {
		return fmt.Errorf("%s does not run", n.Name)
	}
	if err := n.Proc.signal(sig); err != nil {
		return fmt.Errorf("kill %s: %w", n.Name, err)
	}
	wait, cancel := context.WithTimeout(ctx, 4*grace)
	defer cancel()
	if err := n.Proc.wait(wait); err != nil {
		return fmt.Errorf("%s did not end after %s: %w", n.Name, unix.SignalName(sig), err)
	}
	return l.update(func(r *record) error {
		if again, err := r.node(node); err == nil && again.Proc == n.Proc {
			again.Proc = Proc{}
		}
		return nil
	})
}

// startOutside starts the outside host's DNS and web servers.
func (l *Lab) startOutside(ctx context.Context) error {
	v, err := l.View("outside")
	if err != nil {
		return err
	}
	return l.update(func(r *record) error {
		for _, argv := range [][]string{
			{r.Binary, "lab", "upstream", "--listen", outsideAddr.String()},
			{r.Binary, "lab", "serve", "--name", "outside", "--port", "80"},
		} {
			p, err := start(v, filepath.Join(l.dir, "outside.log"), argv...)
			if err != nil {
				return fmt.Errorf("start the outside host: %w", err)
			}
			r.Helpers = append(r.Helpers, p)
		}
		return nil
	})
}

// poll calls fn until it returns nil, up to a limit.
func poll(ctx context.Context, limit time.Duration, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up after %s)", err, limit)
		case <-tick.C:
		}
	}
}

// tail returns the last lines of a log, for a diagnosis.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	} else if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
