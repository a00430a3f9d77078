// Package arch holds the rules of who may import whom.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "nodenet"

// ours says which packages of this module a package may import, beside the
// packages below its own directory. A package that is not named here may
// import nothing of ours: a new one must be placed first.
//
//	cmd → node → the parts → state, config
var ours = map[string][]string{
	"api":         nil,
	"config":      nil,
	"state":       nil,
	"state/disk":  {"state"},
	"dns":         {"state", "config"},
	"dhcp":        {"state", "config"},
	"ipam":        {"state", "config"},
	"lb":          {"state", "config"},
	"lb/announce": {"state"},
	"overlay":     {"state", "config"},
	"gossip":      {"state", "config"},
	"cni":         {"api", "config"},
	"lab":         {"api", "config"},
	"node":        {"api", "config", "state", "state/disk", "dns", "dhcp", "ipam", "lb", "lb/announce", "overlay", "gossip"},
	"cmd":         {"api", "cni", "config", "lab", "node"},
}

// theirs says who may import a library: what is behind it, others must not see.
var theirs = map[string][]string{
	"github.com/google/nftables":         {"lb"},
	"github.com/vishvananda/netlink":     {"overlay", "lab"},
	"github.com/vishvananda/netns":       {"overlay", "lab"},
	"github.com/hashicorp/memberlist":    {"gossip"},
	"github.com/google/btree":            {"state"},
	"go.etcd.io/bbolt":                   {"state/disk"},
	"github.com/coredns/caddy":           {"config"},
	"github.com/insomniacslk/dhcp":       {"dhcp"},
	"github.com/spf13/cobra":             {"cmd"},
	"github.com/google/go-cmp":           {}, // tests only
	"github.com/rogpeppe/go-internal":    {},
	"pgregory.net/rapid":                 {},
	"go.uber.org/goleak":                 {},
	"github.com/containernetworking/cni": {},
}

type pkg struct {
	ImportPath string
	Imports    []string // not those of tests
}

// packages asks the go command, which knows build constraints.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// within reports whether a path is root or below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// home returns the longest entry of ours that a package is within.
func home(path string) (string, bool) {
	best, found := "", false
	for root := range ours {
		if within(path, root) && len(root) >= len(best) {
			best, found = root, true
		}
	}
	return best, found
}

// allowed reports whether a package may import another of ours.
func allowed(from, to string) bool {
	root, ok := home(from)
	if !ok {
		return false
	}
	if toRoot, _ := home(to); toRoot == root {
		return true
	}
	return slices.Contains(ours[root], to)
}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		if from == module || within(from, "test") {
			continue // no product code
		}
		if root, ok := home(from); !ok {
			t.Errorf("package %s has no place in the order: give it one in %s", from, "test/arch")
		} else {
			seen[root] = true
		}
		for _, imp := range p.Imports {
			if to, ok := strings.CutPrefix(imp, module+"/"); ok && within(from, "dns") && from != "dns" &&
				!within(to, "dns/plugin") && to != "config" {
				t.Errorf("%s imports %s: a directive may import dns/plugin and config", from, to)
			}
			if to, ok := strings.CutPrefix(imp, module+"/"); ok && !allowed(from, to) {
				t.Errorf("%s imports %s: it may import %v", from, to, ours[from])
			}
			for lib, users := range theirs {
				if within(imp, lib) && !slices.ContainsFunc(users, func(u string) bool { return within(from, u) }) {
					t.Errorf("%s imports %s: only %v may", from, imp, users)
				}
			}
			if imp == "log" && from != "gossip" { // memberlist asks for a *log.Logger
				t.Errorf("%s imports log: take a *slog.Logger", from)
			}
		}
	}
	for root := range ours {
		if !seen[root] {
			t.Errorf("the rules name package %s, which does not exist", root)
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"dns", "state", true},
		{"dns", "lb", false},
		{"dns/internal/x", "dns", true},
		{"state", "state/disk", false},
		{"state/disk", "state", true},
		{"cmd/nodectl", "node", true},
		{"cmd/nodectl", "overlay", false},
		{"newcomer", "state", false},
	} {
		if got := allowed(tt.from, tt.to); got != tt.want {
			t.Errorf("%s imports %s: allowed %t, want %t", tt.from, tt.to, got, tt.want)
		}
	}
}
