package scenario

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodenet/lab"
)

// world is what a lab might leave behind, each as a set of lines.
type world struct {
	netns, etc, labs []string
	mounts           []string
	links, routes    []string
	rules, nft       []string
	procs            []string
}

func observe(t *testing.T) *world {
	t.Helper()
	w, err := look()
	if err != nil {
		t.Fatalf("look at the machine: %v", err)
	}
	return w
}

func look() (*world, error) {
	var errs []error
	run := func(argv ...string) []string {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", strings.Join(argv, " "), err))
		}
		return lines(string(out))
	}
	list := func(dir string) (out []string) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && path != dir {
				out = append(out, path)
			}
			return nil
		})
		errs = append(errs, err)
		return out
	}
	w := &world{
		netns: list(netnsDir), etc: list(netnsEtcDir), labs: list(lab.DefaultRoot),
		links:  run("ip", "-o", "-br", "link"),
		routes: run("ip", "route", "show", "table", "all"),
		rules:  run("ip", "rule"),
		nft:    run("nft", "-s", "list", "ruleset"),
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	errs = append(errs, err)
	for _, l := range lines(string(b)) {
		// Mount point and type: IDs and optional fields may change for others' sake.
		if f, fstype, ok := strings.Cut(l, " - "); ok {
			w.mounts = append(w.mounts, strings.Fields(f)[4]+" "+strings.Fields(fstype)[0])
		}
	}
	w.procs, err = processes()
	errs = append(errs, err)
	return w, errors.Join(errs...)
}

// processes lists the others that run, zombies apart: who adopts them is not
// the lab's affair.
func processes() ([]string, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile("/proc/" + d.Name() + "/stat")
		if err != nil {
			continue // it has just ended
		}
		if i := strings.LastIndexByte(string(stat), ')'); i < 0 || i+2 >= len(stat) || stat[i+2] == 'Z' || stat[i+2] == 'X' {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		out = append(out, fmt.Sprintf("%d %s", pid, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))))
	}
	return out, nil
}

// compare fails the test for what is there now and was not before, or is gone.
func (w *world) compare(t *testing.T, eventually func(time.Duration, func() error) error) {
	t.Helper()
	err := eventually(3*time.Second, func() error {
		now, err := look()
		if err != nil {
			return err
		}
		return w.diff(now)
	})
	if err != nil {
		t.Errorf("the scenario has not left the machine as it was: %v", err)
	}
}

func (w *world) diff(now *world) error {
	var errs []error
	for _, c := range []struct {
		what        string
		before, now []string
	}{
		{"network namespace", w.netns, now.netns},
		{"file of a namespace", w.etc, now.etc},
		{"file of a lab", w.labs, now.labs},
		{"mount", w.mounts, now.mounts},
		{"link", w.links, now.links},
		{"route", w.routes, now.routes},
		{"rule", w.rules, now.rules},
		{"nft line", w.nft, now.nft},
		{"process", w.procs, now.procs},
	} {
		for _, l := range c.now {
			if !slices.Contains(c.before, l) {
				errs = append(errs, fmt.Errorf("%s left: %s", c.what, l))
			}
		}
		for _, l := range c.before {
			if !slices.Contains(c.now, l) {
				errs = append(errs, fmt.Errorf("%s gone: %s", c.what, l))
			}
		}
	}
	return errors.Join(errs...)
}

// removeLeftNamespaces removes those that a failed scenario had no time for.
func removeLeftNamespaces(before *world) {
	now, err := look()
	if err != nil {
		return
	}
	for _, path := range now.netns {
		if !slices.Contains(before.netns, path) {
			exec.Command("ip", "netns", "del", filepath.Base(path)).Run()
		}
	}
	for _, path := range now.etc {
		if !slices.Contains(before.etc, path) {
			os.RemoveAll(path)
		}
	}
}

func lines(s string) []string {
	return slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
}
