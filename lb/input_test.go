package lb

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInputDrops loads other people's firewalls and asks which of our ports
// they would drop.
func TestInputDrops(t *testing.T) {
	ours := []Port{{"udp", 53}, {"udp", 4789}, {"tcp", 7946}, {"tcp", 7947}}
	for name, c := range map[string]struct {
		rules    string // nft's syntax
		iptables []string
		want     string
	}{
		"nobody":                 {},
		"an open host":           {rules: `table inet host { chain in { type filter hook input priority 0; policy accept; tcp dport 22 accept; } }`},
		"closed":                 {rules: `table inet host { chain incoming { type filter hook input priority 0; policy drop; tcp dport 22 accept; } }`, want: "inet host incoming [53/udp 4789/udp 7946/tcp 7947/tcp]"},
		"one, a set and a range": {rules: `table inet host { chain incoming { type filter hook input priority 0; policy drop; udp dport 53 accept; udp dport { 4789, 8472 } accept; tcp dport 7900-7999 accept; } }`},
		"a set of ranges": {rules: `table inet host { chain incoming { type filter hook input priority 0; policy drop; udp dport { 50-60, 4700-4788 } accept; tcp dport { 7946-7947 } accept; } }`,
			want: "inet host incoming [4789/udp]"},
		"firewalld rejects at the end": {rules: `table inet firewalld { chain filter_INPUT { type filter hook input priority 10; policy accept; tcp dport 22 accept; udp dport 53 accept; reject with icmpx admin-prohibited; } }`,
			want: "inet firewalld filter_INPUT [4789/udp 7946/tcp 7947/tcp]"},
		"IPv6 only": {rules: `table ip6 filter { chain INPUT { type filter hook input priority 0; policy drop; udp dport 53 accept; } }`, want: "ip6 filter INPUT [4789/udp 7946/tcp 7947/tcp]"},
		"iptables": {iptables: []string{"-P INPUT DROP", "-A INPUT -p udp --dport 53 -j ACCEPT", "-A INPUT -p tcp -m multiport --dports 22,7946 -j ACCEPT", "-A INPUT -p tcp --dport 7947:7950 -j ACCEPT"},
			want: "ip filter INPUT [4789/udp]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			if c.rules != "" {
				s.nft(nftText(strings.ReplaceAll(c.rules, "chain in ", "chain incoming ")), "-f", "-")
			}
			if len(c.iptables) > 0 {
				if _, err := exec.LookPath("iptables-nft"); err != nil {
					t.Skip("needs iptables (iptables-nft)")
				}
				for _, cmd := range c.iptables {
					s.tool("iptables-nft", strings.Fields(cmd)...)
				}
			}
			var got []string
			s.do(func() {
				drops, err := InputDrops(ours)
				if err != nil {
					t.Error(err)
				}
				for _, d := range drops {
					got = append(got, fmt.Sprintf("%s %s %s %v", d.Family, d.Table, d.Chain, d.Ports))
				}
			})
			if d := cmp.Diff(c.want, strings.Join(got, "; ")); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
