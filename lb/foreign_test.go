package lb

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

// TestForwardDrops loads other people's firewalls into a namespace and asks
// who would drop the packets of nn-pods.
func TestForwardDrops(t *testing.T) {
	const docker = `
table ip filter {
 chain DOCKER-USER { counter return; }
 chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; iifname "docker0" accept; }
}`
	for name, c := range map[string]struct {
		rules  string
		want   []string
		fix    string // part of the first one's
		status string // part of its error
	}{
		"nobody":              {},
		"docker":              {rules: docker, want: []string{"ip filter FORWARD"}, fix: "DOCKER-USER -i nn-+"},
		"docker, made right":  {rules: strings.Replace(docker, "counter return;", `iifname "nn-*" accept; oifname "nn-*" accept;`, 1)},
		"an accepting policy": {rules: `table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; } }`},
		"another hook":        {rules: `table inet host { chain in { type filter hook input priority 0; policy drop; } }`},
		"somebody's own": {rules: `table inet host { chain guard { type filter hook forward priority 0; policy drop; iifname "eth0" accept; } }`,
			want: []string{"inet host guard"}, fix: `nft insert rule inet host guard iifname "nn-*" accept`},
		"somebody's own, made right with a set": {
			rules: `table inet host { chain guard { type filter hook forward priority 0; policy drop; iifname { "eth0", "nn-pods" } accept; } }`},
		"made right in a chain beside": {
			rules: `table inet host { chain ours { oifname "nn-pods" accept; } chain guard { type filter hook forward priority 0; policy drop; jump ours; } }`},
		"ufw":                                 {rules: ufwRules, want: []string{"ip filter FORWARD", "ip6 filter FORWARD"}, fix: "nodectl firewall integrate ufw"},
		"firewalld, which rejects at the end": {rules: firewalldRules, want: []string{"inet firewalld filter_FORWARD"}, fix: "nodectl firewall integrate firewalld"},
		"a last rule that asks":               {rules: `table inet host { chain guard { type filter hook forward priority 0; iifname "eth9" drop; } }`},
		"IPv6 only": {rules: `table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; } }`,
			want: []string{"ip6 filter FORWARD"}, fix: "ip6tables -I FORWARD -i nn-+", status: "forwarded IPv6 packets (IPv4 is not hit)"},
		"docker's of IPv6": {rules: docker + strings.Replace(docker, "table ip ", "table ip6 ", 1), want: []string{"ip filter FORWARD", "ip6 filter FORWARD"},
			fix: "DOCKER-USER -i nn-+", status: "forwarded packets, those"},
		"docker's of IPv6, made right for IPv4": {rules: strings.Replace(docker, "counter return;", `iifname "nn-*" accept;`, 1) + strings.Replace(docker, "table ip ", "table ip6 ", 1),
			want: []string{"ip6 filter FORWARD"}, fix: "ip6tables -I DOCKER-USER -i nn-+", status: "IPv4 is not hit"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			if c.rules != "" {
				s.nft(strings.ReplaceAll(c.rules, "; }", ";\n}\n"), "-f", "-")
			}
			s.do(func() {
				k, err := openKernel()
				if err != nil {
					t.Error(err)
					return
				}
				defer k.Close()
				drops, err := k.ForwardDrops([]string{"nn-pods"})
				if err != nil {
					t.Error(err)
					return
				}
				var got []string
				for _, d := range drops {
					got = append(got, d.String())
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("chains (-want +got):\n%s", diff)
				}
				if len(drops) > 0 && !strings.Contains(drops[0].Fix(), c.fix) {
					t.Errorf("fix %q does not say %q", drops[0].Fix(), c.fix)
				}
				var st Status
				st.OK = true
				if blame(&st, drops); st.OK != (len(c.want) == 0) || (st.Fix == "") != st.OK || !strings.Contains(st.Error, c.status) {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

// guarded is a kernel in which somebody drops forwarded packets.
type guarded struct {
	Kernel
	drops []ForwardDrop
}

func (g guarded) ForwardDrops([]string) ([]ForwardDrop, error) { return g.drops, nil }

// TestForwardDropsOfIPv6: a chain of IPv6 alone disturbs nobody where no
// workload has such an address.
func TestForwardDropsOfIPv6(t *testing.T) {
	only4 := testLocal()
	for i := range only4.Bridges {
		only4.Bridges[i].Prefix6 = netip.Prefix{}
	}
	k := guarded{drops: []ForwardDrop{{Family: "ip6", Table: "filter", Chain: "FORWARD"}}}
	for name, c := range map[string]struct {
		local Local
		want  int
	}{
		"dual stack": {testLocal(), 1},
		"IPv4 only":  {only4, 0},
	} {
		b := &LB{opt: Options{Kernel: k}, log: slog.New(slog.DiscardHandler), book: newBook(state.NewView(state.View{}, nil, nil), c.local)}
		if b.lookAround(); len(b.drops) != c.want {
			t.Errorf("%s: %v, want %d", name, b.drops, c.want)
		}
	}
}
