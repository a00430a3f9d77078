package lb

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Rules of others, as they make them, made short.
const (
	ufwRules = `
table ip filter {
 chain ufw-before-forward { ct state related,established counter accept; }
 chain ufw-after-forward { counter; }
 chain FORWARD { type filter hook forward priority 0; policy drop; counter jump ufw-before-forward; counter jump ufw-after-forward; }
}
table ip6 filter {
 chain ufw6-before-forward { ct state related,established counter accept; }
 chain FORWARD { type filter hook forward priority 0; policy drop; counter jump ufw6-before-forward; }
}`
	firewalldRules = `
table inet firewalld {
 chain filter_FORWARD_POLICIES { counter; }
 chain filter_FORWARD { type filter hook forward priority 10; policy accept; ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; jump filter_FORWARD_POLICIES; reject with icmpx admin-prohibited; }
}`
)

// nftText puts statements that stand in one line for brevity on lines of
// their own, as nft(8) wants the end of a block.
func nftText(s string) string { return strings.ReplaceAll(s, "; }", ";\n}\n") }

// dockerRules types what dockerd does with iptables-nft.
func dockerRules(t *testing.T, s *space) {
	t.Helper()
	path, err := exec.LookPath("iptables-nft")
	if err != nil {
		t.Skip("needs iptables (iptables-nft)")
	}
	for _, cmd := range []string{
		"-P FORWARD DROP", "-N DOCKER", "-N DOCKER-USER", "-N DOCKER-FORWARD",
		"-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-FORWARD",
		"-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"-A DOCKER-FORWARD -i docker0 ! -o docker0 -j ACCEPT",
		"-t nat -N DOCKER", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		"-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
	} {
		s.do(func() {
			if out, err := exec.Command(path, strings.Fields(cmd)...).CombinedOutput(); err != nil {
				t.Errorf("iptables %s: %v %s", cmd, err, out)
			}
		})
	}
}

// tool runs a command in the namespace.
func (s *space) tool(name string, args ...string) string {
	s.t.Helper()
	var out []byte
	var err error
	s.do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		s.t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestIntegrate: traffic between the workloads of two nodes, and from outside
// to a VIP, is dropped by each of the firewalls; passes after the integration,
// also after that firewall made its rules anew; and is dropped again after the
// removal, with the foreign rules byte for byte as before.
func TestIntegrate(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(t *testing.T, s *space)
		reload func(t *testing.T, s *space) // nil: a reload leaves the chain alone
		rules  int                          // of ours, two a kind of device
	}{
		Docker: {
			set: dockerRules,
			// A restart of dockerd puts its jumps to the top again; an
			// administrator's flush of its chain takes our rules along.
			reload: func(t *testing.T, s *space) {
				s.tool("iptables-nft", "-D", "FORWARD", "-j", "DOCKER-USER")
				s.tool("iptables-nft", "-I", "FORWARD", "-j", "DOCKER-USER")
				s.tool("iptables-nft", "-F", "DOCKER-USER")
				s.tool("iptables-nft", "-A", "DOCKER-USER", "-j", "RETURN")
			},
			rules: 2,
		},
		UFW: {
			set: func(t *testing.T, s *space) { s.nft(nftText(ufwRules), "-f", "-") },
			reload: func(t *testing.T, s *space) {
				s.nft("delete table ip filter\ndelete table ip6 filter\n"+nftText(ufwRules), "-f", "-")
			},
			rules: 4, // IPv6 too
		},
		Firewalld: {
			set: func(t *testing.T, s *space) { s.nft(nftText(firewalldRules), "-f", "-") },
			reload: func(t *testing.T, s *space) {
				s.nft("delete table inet firewalld\n"+nftText(firewalldRules), "-f", "-")
			},
			rules: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			tp := newTopology(t, testView())
			pass := func(want bool) func() bool {
				return func() bool {
					there := tp.w1.call("tcp", "10.244.1.2:8080") == "far 10.244.0.2"
					vip := strings.HasPrefix(tp.outer.call("tcp", "10.96.0.21:80"), "w1 ")
					if name == Firewalld {
						vip = there // it lets pass what was translated
					}
					return there == want && vip == want
				}
			}
			eventually(t, "it passes without a firewall", pass(true))
			c.set(t, tp.node)
			eventually(t, "the firewall drops it and the status says so", func() bool {
				s := tp.lb.Status()
				return pass(false)() && !s.OK && strings.Contains(s.Fix, "nodectl firewall integrate "+name)
			})
			// Counters move with the traffic above, and are not rules.
			foreign := func() string {
				var out strings.Builder
				for _, table := range []string{"ip filter", "ip6 filter", "ip nat", "inet firewalld"} {
					if strings.Contains(tp.node.nft("", "list", "tables"), "table "+table+"\n") {
						out.WriteString(tp.node.nft("", append([]string{"-s", "-a", "list", "table"}, strings.Fields(table)...)...))
					}
				}
				return out.String()
			}
			before := foreign()
			integrate := func(names []string, remove, dry bool) (lines []string) {
				t.Helper()
				var err error
				tp.node.do(func() { lines, err = tp.lb.Integrate(names, remove, dry) })
				if err != nil {
					t.Fatal(err)
				}
				return lines
			}
			lines := integrate([]string{name}, false, true)
			if len(lines) != c.rules || foreign() != before {
				t.Errorf("the dry run says %q, want %d lines and no change", lines, c.rules)
			}
			if d := cmp.Diff(lines, integrate([]string{name}, false, false)); d != "" {
				t.Errorf("what is done is not what the dry run said (-dry +done):\n%s", d)
			}
			eventually(t, "it passes with our rules", func() bool { return pass(true)() && tp.lb.Status().OK })
			if again := integrate([]string{name}, false, false); len(again) != 0 {
				t.Errorf("the same again does %q", again)
			}
			if name == Docker {
				if s := tp.node.tool("iptables-nft", "-S", "DOCKER-USER"); !strings.Contains(s, "-A DOCKER-USER -i nn-+ ") || strings.Index(s, "nn-+") > strings.Index(s, "RETURN") {
					t.Errorf("iptables shows:\n%s", s)
				}
			}
			var states []FirewallState
			var err error
			tp.node.do(func() { states, err = tp.lb.Firewalls() })
			i := slices.IndexFunc(states, func(s FirewallState) bool { return s.Name == name })
			if err != nil || i < 0 || !states[i].On || !states[i].Found || len(states[i].Rules) != c.rules || states[i].Error != "" {
				t.Errorf("states %+v, %v", states, err)
			}
			c.reload(t, tp.node)
			eventually(t, "it passes after the firewall's reload", pass(true))
			// What a reload made anew is theirs as it is now without our rules.
			removed := integrate([]string{name}, true, false)
			if len(removed) != c.rules {
				t.Errorf("removed %q, want %d rules", removed, c.rules)
			}
			eventually(t, "it is dropped again", pass(false))

			before = foreign()
			integrate([]string{name}, false, false)
			tp.halt()
			var gone []string
			tp.node.do(func() { gone, err = Cleanup(t.Context()) })
			if err != nil || len(gone) != 2+c.rules {
				t.Errorf("cleanup: %q, %v; want two tables and %d rules", gone, err, c.rules)
			}
			if d := cmp.Diff(before, foreign()); d != "" {
				t.Errorf("foreign rules (-before +after cleanup):\n%s", d)
			}
		})
	}
}

func TestIntegrateRefuses(t *testing.T) {
	all := func(edit func([]placed)) []placed {
		have := make([]placed, len(places))
		for i := range places {
			have[i].passPoint = places[i]
		}
		if edit != nil {
			edit(have)
		}
		return have
	}
	rules := passRules([]string{"nn-pods", "nv-pods", "br7", "nn-lan"})
	var text []string
	for _, r := range rules {
		text = append(text, r.String())
	}
	if d := cmp.Diff([]string{
		`iifname "br7" accept comment "nodenet"`, `oifname "br7" accept comment "nodenet"`,
		`iifname "nn-*" accept comment "nodenet"`, `oifname "nn-*" accept comment "nodenet"`,
		`iifname "nv-*" accept comment "nodenet"`, `oifname "nv-*" accept comment "nodenet"`,
	}, text); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	for name, c := range map[string]struct {
		firewall string
		have     []placed
		legacy   bool
		want     string // part of the error; empty: none
	}{
		"there":         {Docker, all(func(h []placed) { h[0].there = true }), true, ""},
		"not there":     {Docker, all(nil), false, "there is no chain ip filter DOCKER-USER: is docker running?"},
		"legacy":        {Docker, all(nil), true, "iptables-legacy -I DOCKER-USER -i nn-+ -j ACCEPT"},
		"legacy ufw":    {UFW, all(nil), true, "iptables-legacy -I ufw-before-forward -i br7 -j ACCEPT"},
		"unknown":       {"shorewall", all(nil), false, "want docker, ufw or firewalld"},
		"an owned one":  {Firewalld, all(func(h []placed) { h[4].there, h[4].owned = true, true }), false, "firewall-cmd --permanent --zone=trusted --add-interface=nn-+"},
		"ufw with IPv6": {UFW, all(func(h []placed) { h[3].there = true }), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := cannotPass(c.firewall, c.have, c.legacy, rules)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestLegacyIsSeen: rules of iptables-legacy in a namespace are noticed.
func TestLegacyIsSeen(t *testing.T) {
	path, err := exec.LookPath("iptables-legacy")
	if err != nil {
		t.Skip("needs iptables-legacy")
	}
	s := newSpace(t)
	k := s.kernel()
	legacy := func() (is bool) { s.do(func() { is = k.Legacy() }); return is }
	if legacy() {
		t.Error("seen where there are none")
	}
	s.do(func() {
		if out, err := exec.Command(path, "-P", "FORWARD", "DROP").CombinedOutput(); err != nil {
			t.Skipf("no iptables-legacy in this kernel: %v %s", err, out)
		}
	})
	if !legacy() {
		t.Error("not seen")
	}
	if legacyRules(filepath.Join(t.TempDir(), "none")) {
		t.Error("seen in a kernel without it")
	}
}

// TestCleanupLeavesOthersRules: rules of others with a comment like ours stay
// unless they stand where ours do.
func TestCleanupLeavesOthersRules(t *testing.T) {
	s := newSpace(t)
	s.nft(nftText(`
table ip filter {
 chain DOCKER-USER { iifname "nn-*" counter accept comment "nodenet by hand"; counter return; }
 chain OTHER { iifname "nn-*" counter accept comment "nodenet"; }
}`), "-f", "-")
	before := s.nft("", "-a", "list", "ruleset")
	s.do(func() {
		if gone, err := Cleanup(t.Context()); err != nil || len(gone) != 0 {
			t.Errorf("cleanup: %q, %v; want nothing", gone, err)
		}
	})
	if d := cmp.Diff(before, s.nft("", "-a", "list", "ruleset")); d != "" {
		t.Errorf("rules (-before +after):\n%s", d)
	}
}
