package scenario

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/lab"
)

// Main is what TestMain has to call. It builds nodectl once for the test
// binary and runs the tests in namespaces of their own (see the package's
// text). Without root it runs them as they are: Up skips them.
func Main(m *testing.M) {
	flag.Parse()
	switch {
	case os.Getenv(insideEnv) != "":
		if err := enterWorld(); err != nil {
			fmt.Fprintln(os.Stderr, "scenario:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0 || flag.Lookup("test.list").Value.String() != "":
		os.Exit(m.Run())
	}
	code, err := outer()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scenario:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// insideEnv tells the child who it is, and where nodectl has been built.
const insideEnv = "NODENET_SCENARIO_NODECTL"

func nodectl() string { return os.Getenv(insideEnv) }

// ownDirs are the places under which labs, ip-netns(8) and CNI runtimes keep
// what others on the machine must not see.
var ownDirs = []string{netnsDir, netnsEtcDir, lab.DefaultRoot, "/var/lib/cni"}

const (
	netnsDir    = "/run/netns"
	netnsEtcDir = "/etc/netns"
)

// outer builds nodectl and runs this test binary again in new namespaces. The
// build is here because it may need the network.
func outer() (code int, err error) {
	tmp, err := os.MkdirTemp("", "nodenet-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return 0, err
	}
	bin := filepath.Join(tmp, "nodectl")
	if err := build(bin); err != nil {
		return 0, err
	}
	for _, dir := range ownDirs {
		release, err := hold(dir)
		if err != nil {
			return 0, err
		}
		defer release()
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // Pdeathsig is about the thread, not the process
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"="+bin)
	if raceEnabled {
		// By default each process waits a second at its end.
		cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// hold sees to it that a directory is there, and stays: labs and other test
// binaries on the machine remove some when they are empty, and with them what
// is mounted on them elsewhere.
func hold(dir string) (release func(), err error) {
	for range 100 {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if dir == netnsDir {
			return func() {}, nil // nobody removes it, and all files in it are taken for namespaces
		}
		f, err := os.CreateTemp(dir, ".test-")
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed in between
		} else if err != nil {
			return nil, err
		}
		f.Close()
		return func() { os.Remove(f.Name()); os.Remove(dir) }, nil
	}
	return nil, fmt.Errorf("%s is being removed again and again", dir)
}

func build(bin string) error {
	argv := []string{"build", "-o", bin}
	if raceEnabled {
		argv = append(argv, "-race")
	}
	cmd := exec.Command("go", append(argv, "nodenet/cmd/nodectl")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build nodectl: %w\n%s", err, out)
	}
	return nil
}

// enterWorld finishes the namespaces in which the child finds itself.
func enterWorld() error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("detach mounts from the machine's: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("show the processes of the new PID namespace: %w", err)
	}
	for _, dir := range ownDirs {
		// What the machine has mounted there comes and goes with the labs of others.
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount an empty %s: %w", dir, err)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	// The first `ip netns add` does the same. Done here, it is no difference.
	for _, flags := range []uintptr{unix.MS_BIND | unix.MS_REC, unix.MS_SHARED | unix.MS_REC} {
		source := netnsDir
		if flags&unix.MS_SHARED != 0 {
			source = ""
		}
		if err := unix.Mount(source, netnsDir, "none", flags, ""); err != nil {
			return fmt.Errorf("share the mounts of %s: %w", netnsDir, err)
		}
	}
	return nil
}

func needPrivileges(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		if nodectl() == "" {
			t.Fatal("scenario.Main has not run: the package needs func TestMain(m *testing.M) { scenario.Main(m) }")
		}
		noteSources()
		return
	}
	if os.Getenv("NODENET_E2E") != "" {
		t.Fatal("NODENET_E2E is set, but end-to-end tests need root for network namespaces: sudo make test")
	}
	t.Skip("SKIPPED: needs root for network namespaces: sudo go test ./test/...")
}

// noteSources looks at every source file of the module. go test notes the
// files that a test looks at and does not repeat an old result when one has
// changed; of the build in the parent it knows nothing.
var noteSources = sync.OnceFunc(func() {
	root := moduleRoot()
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root:
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			os.Stat(path)
		}
		return nil
	})
})

// moduleRoot is the nearest directory upwards that has a go.mod: go test runs
// the tests of a package in its directory.
func moduleRoot() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			return dir
		}
	}
}
