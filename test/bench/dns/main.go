// Command dns measures nodenet's name server against others, on one machine
// and over loopback, and prints a table of figures with their goals.
//
//	core 0: the server in question      core 1: load generator, upstream
//
// Each round asks every server in turn, so that whatever else the machine does
// falls on all of them alike. Queries a CPU-second is the figure to trust: it
// is what came back, divided by the time that the server's threads ran
// (/proc/PID/stat), and hardly depends on who else wanted the core.
//
// Peers that are not installed are left out; .ci/deps-bench installs them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	serverCore = 0
	clientCore = 1
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	serve := flag.String("serve", "", "be a server: nodenet, echo, x/net-echo, naive, upstream (used by the benchmark itself)")
	port := flag.Int("port", 0, "port to serve on")
	up := flag.Int("upstream", 0, "port to forward to")
	rounds := flag.Int("rounds", 5, "rounds")
	each := flag.Duration("time", 2*time.Second, "time of a measurement")
	only := flag.String("only", "", "measurements, separated by commas: cluster, hit, miss, latency, change (default all)")
	flag.Parse()
	if *serve != "" {
		return serveAs(*serve, *port, *up)
	}
	if runtime.NumCPU() < 2 && os.Getenv("NODENET_BENCH_PINNED") == "" {
		return errors.New("the benchmark needs two cores: one for the server, one for the load")
	}
	if os.Getenv("NODENET_BENCH_PINNED") == "" {
		// Threads inherit the affinity of the one that made them, so it is set
		// before there are any.
		runtime.LockOSThread()
		if err := pin(clientCore); err != nil {
			return err
		}
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		return syscall.Exec(exe, os.Args, append(os.Environ(), "NODENET_BENCH_PINNED=1"))
	}
	want := func(what string) bool { return *only == "" || strings.Contains(","+*only+",", ","+what+",") }
	b := &bench{rounds: *rounds, each: *each}
	return b.all(want)
}

// pin binds the calling thread, and those that it makes, to one core.
func pin(core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bind to core %d: %w", core, err)
	}
	return nil
}

// server is a process that answers on a port.
type server struct {
	name string
	port int
	cmd  *exec.Cmd
	dir  string
}

// start runs a command on a core and waits until its port answers.
func start(name, dir string, port, core int, argv ...string) (*server, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(dir + "/" + strings.ReplaceAll(name, "/", "-") + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	runtime.LockOSThread()
	err = pin(core)
	if realtime {
		err = errors.Join(err, fifo(1))
	}
	if err == nil {
		err = cmd.Start()
	}
	if realtime {
		err = errors.Join(err, fifo(0))
	}
	err = errors.Join(err, pin(clientCore))
	// The thread stays locked: Pdeathsig is about the thread that forked.
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s := &server{name: name, port: port, cmd: cmd, dir: dir}
	if err := s.wait(); err != nil {
		s.stop()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("start %s: %w\n%s", name, err, text)
	}
	return s, nil
}

func (s *server) stop() {
	s.cmd.Process.Signal(os.Interrupt)
	t := time.AfterFunc(3*time.Second, func() { s.cmd.Process.Kill() })
	defer t.Stop()
	s.cmd.Wait()
}

// cpu returns how long the process and those that it forked have run, user and
// system.
func (s *server) cpu() (time.Duration, error) {
	var ticks int64
	for _, pid := range s.pids() {
		f, err := stat(pid)
		if err != nil {
			return 0, err
		}
		for _, i := range []int{11, 12} { // utime, stime: fields 14 and 15, proc(5)
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}

// stat returns the fields of /proc/PID/stat behind the command's name.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])), nil
}

// pids returns the process and its descendants.
func (s *server) pids() []int {
	children := make(map[int][]int)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []int{s.cmd.Process.Pid}
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f, err := stat(pid); err == nil {
			if parent, err := strconv.Atoi(f[1]); err == nil {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	out := []int{s.cmd.Process.Pid}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// memory returns the resident sets in MiB.
func (s *server) memory() (mib float64) {
	for _, pid := range s.pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); f[0] == "VmRSS:" {
				kib, _ := strconv.ParseFloat(f[1], 64)
				mib += kib / 1024
			}
		}
	}
	return mib
}
