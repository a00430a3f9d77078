package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodenet/dns"
)

// HostDNSOptions says how the host itself is to resolve cluster names.
type HostDNSOptions struct {
	ConfigFile string
	Search     []string // further search domains of the host; empty: none
	Undo       bool     // take back what an earlier setup did
	Root       string   // directory that stands for /; empty: /
}

// HostDNSPlan is what has to change on the host. Apply makes it so.
type HostDNSPlan struct {
	// Kind is who writes the host's /etc/resolv.conf: "systemd-resolved",
	// "resolvconf" or "file".
	Kind    string       `json:"kind"`
	Changes []FileChange `json:"changes"` // empty: all is as it should be
	Then    string       `json:"then,omitempty"`
	Notes   []string     `json:"notes,omitempty"`

	root string
}

// FileChange is one file before and after.
type FileChange struct {
	Path   string `json:"path"`
	Before string `json:"before,omitempty"`
	After  string `json:"after"`
	Create bool   `json:"create,omitempty"` // it is not there yet
	Remove bool   `json:"remove,omitempty"` // it goes
}

const (
	resolvConfPath   = "/etc/resolv.conf"
	resolvedDropIn   = "/etc/systemd/resolved.conf.d/nodenet.conf"
	resolvconfHead   = "/etc/resolvconf/resolv.conf.d/head"
	hostDNSMark      = "# nodenet: cluster names; written by `nodectl dns host-setup`, which takes it back with --undo"
	hostDNSEnd       = "# nodenet: end"
	resolverMaxNames = 3 // MAXNS of resolv.conf(5): the C library reads no more
)

// PlanHostDNS says how to make the host's own programs resolve cluster names,
// for whoever writes its /etc/resolv.conf. It changes nothing.
//
//   - With systemd-resolved only names of the cluster's zone, and the reverse
//     of its ranges, go to the node's resolver (split DNS); all others go where they went.
//   - Otherwise resolv.conf(5) knows no such thing: the node's resolver comes
//     first and forwards what is not the cluster's.
//
// A file that NetworkManager writes is left alone, with an error that says
// what to do: it would be overwritten at the next change of a link.
func PlanHostDNS(o HostDNSOptions) (*HostDNSPlan, error) {
	cfg, err := loadConfig(Options{ConfigFile: o.ConfigFile})
	if err != nil {
		return nil, err
	}
	h := hostDNS{
		root: o.Root, resolver: cfg.Services.DNS, search: o.Search, undo: o.Undo,
		zones: []string{dns.ClusterZone(cfg.Servers)},
	}
	h.ranges = append(h.ranges, cfg.Services.Prefix)
	for _, n := range cfg.Networks {
		h.ranges = append(h.ranges, n.Prefix)
	}
	if !h.resolver.IsValid() {
		return nil, errors.New("set up the host's DNS: the Nodefile gives no resolver address: set `dns` in the services block")
	}
	return h.plan()
}

type hostDNS struct {
	root     string
	resolver netip.Addr
	zones    []string
	ranges   []netip.Prefix
	search   []string
	undo     bool
}

func (h *hostDNS) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(h.root, path))
	return string(b), err
}

func (h *hostDNS) plan() (*HostDNSPlan, error) {
	text, err := h.read(resolvConfPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("set up the host's DNS: %w", err)
	}
	link, _ := os.Readlink(filepath.Join(h.root, resolvConfPath)) // an error: it is no link
	p := &HostDNSPlan{root: h.root}
	switch {
	case strings.Contains(link, "systemd/resolve") || slices.ContainsFunc(dns.Nameservers(text), dns.IsResolvedStub):
		p.Kind = "systemd-resolved"
		p.Then = "systemctl restart systemd-resolved"
		return p, h.whole(p, resolvedDropIn, h.dropIn())
	case strings.Contains(link, "resolvconf/"):
		p.Kind = "resolvconf"
		p.Then = "resolvconf -u"
		old, err := h.read(resolvconfHead)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("set up the host's DNS: %w", err)
		}
		h.edit(p, resolvconfHead, old, errors.Is(err, fs.ErrNotExist))
	case link != "" && !h.undo:
		return nil, fmt.Errorf("set up the host's DNS: %s is a link to %s, whose owner is not known: "+
			"tell that program to use %s first for the zone %s", resolvConfPath, link, h.resolver, h.zones[0])
	case strings.Contains(text, "NetworkManager") && !h.undo:
		return nil, fmt.Errorf("set up the host's DNS: NetworkManager writes %s: install systemd-resolved, which NetworkManager then feeds, "+
			"or set dns=none in /etc/NetworkManager/conf.d and write the file yourself; then run this again", resolvConfPath)
	default:
		p.Kind = "file"
		h.edit(p, resolvConfPath, text, err != nil)
		if !h.undo {
			p.Notes = append(p.Notes, "a DHCP client that writes "+resolvConfPath+" takes this away again: run it once more then, or use systemd-resolved")
		}
	}
	if servers := dns.Nameservers(text); !h.undo && len(p.Changes) > 0 && len(servers) >= resolverMaxNames && !slices.Contains(servers, h.resolver) {
		p.Notes = append(p.Notes, fmt.Sprintf("the C library reads %d name servers: %s is no longer among them, but nodenet still forwards to it",
			resolverMaxNames, servers[resolverMaxNames-1]))
	}
	return p, nil
}

// whole plans a file of our own.
func (h *hostDNS) whole(p *HostDNSPlan, path, want string) error {
	old, err := h.read(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !missing:
		return fmt.Errorf("set up the host's DNS: %w", err)
	case !missing && !strings.HasPrefix(old, hostDNSMark):
		return fmt.Errorf("set up the host's DNS: %s was not written by nodenet: move it away, or put this into it:\n%s", path, want)
	case h.undo && !missing:
		p.Changes = append(p.Changes, FileChange{Path: path, Before: old, Remove: true})
	case !h.undo && old != want:
		p.Changes = append(p.Changes, FileChange{Path: path, Before: old, After: want, Create: missing})
	}
	return nil
}

// dropIn routes the cluster's names, and only those, to the node's resolver.
func (h *hostDNS) dropIn() string {
	domains := slices.Clone(h.search)
	for _, z := range h.zones {
		domains = append(domains, "~"+strings.TrimSuffix(z, "."))
	}
	for _, p := range h.ranges {
		for _, z := range dns.ReverseZones(p) {
			domains = append(domains, "~"+strings.TrimSuffix(z, "."))
		}
	}
	seen := map[string]bool{}
	domains = slices.DeleteFunc(domains, func(d string) bool { old := seen[d]; seen[d] = true; return old })
	return fmt.Sprintf("%s\n[Resolve]\nDNS=%s\nDomains=%s\n", hostDNSMark, h.resolver, strings.Join(domains, " "))
}

// edit plans our lines in somebody else's file: the name server before
// theirs, the search domains after theirs, because the last line with some
// counts (resolv.conf(5)).
func (h *hostDNS) edit(p *HostDNSPlan, path, old string, missing bool) {
	want := withoutMarked(old)
	if !h.undo {
		theirs := searchOf(want)
		want = marked("nameserver "+h.resolver.String()) + want
		if len(h.search) > 0 {
			if !strings.HasSuffix(want, "\n") {
				want += "\n"
			}
			want += marked("search " + strings.Join(append(slices.Clone(h.search), theirs...), " "))
		}
	}
	if want != old {
		p.Changes = append(p.Changes, FileChange{Path: path, Before: old, After: want, Create: missing})
	}
}

func marked(line string) string { return hostDNSMark + "\n" + line + "\n" + hostDNSEnd + "\n" }

// withoutMarked is a file without what host-setup put into it.
func withoutMarked(text string) string {
	var b strings.Builder
	ours := false
	for line := range strings.Lines(text) {
		switch strings.TrimSuffix(line, "\n") {
		case hostDNSMark:
			ours = true
			continue
		case hostDNSEnd:
			ours = false
			continue
		}
		if !ours {
			b.WriteString(line)
		}
	}
	return b.String()
}

// searchOf returns the search domains of a resolv.conf.
func searchOf(text string) (out []string) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			out = f[1:]
		}
	}
	return out
}

// Apply makes the changes, each file replaced as a whole. A file that has
// changed since it was planned is an error, and nothing after it is done.
func (p *HostDNSPlan) Apply() error {
	for _, c := range p.Changes {
		path := filepath.Join(p.root, c.Path)
		now, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set up the host's DNS: %w", err)
		}
		if string(now) != c.Before || c.Create == (err == nil) {
			return fmt.Errorf("set up the host's DNS: %s has changed meanwhile: run this again", c.Path)
		}
		if c.Remove {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("set up the host's DNS: %w", err)
			}
			continue
		}
		if err := replaceFile(path, c.After); err != nil {
			return fmt.Errorf("set up the host's DNS: %w", err)
		}
	}
	return nil
}

// replaceFile writes a configuration file that everybody may read.
func replaceFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".nodenet"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	err := os.Rename(tmp, path)
	if err != nil {
		os.Remove(tmp)
		// A container runtime mounts a file here, which cannot be replaced.
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	return err
}
