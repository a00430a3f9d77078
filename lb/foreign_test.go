package lb

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		rules string
		want  []string
		fix   string // part of the first one's
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
		"ufw":                                 {rules: ufwRules, want: []string{"ip filter FORWARD"}, fix: "nodectl firewall integrate ufw"},
		"firewalld, which rejects at the end": {rules: firewalldRules, want: []string{"inet firewalld filter_FORWARD"}, fix: "nodectl firewall integrate firewalld"},
		"a last rule that asks":               {rules: `table inet host { chain guard { type filter hook forward priority 0; iifname "eth9" drop; } }`},
		"IPv6 only":                           {rules: `table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; } }`},
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
				if blame(&st, drops); st.OK != (len(c.want) == 0) || (st.Fix == "") != st.OK {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}
