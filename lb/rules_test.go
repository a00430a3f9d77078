package lb

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// goldenTables are the tables whose rulesets are kept as text.
func goldenTables() map[string]Table {
	norange := testLocal()
	norange.Range, norange.Resolver = pfx("10.96.0.0/12"), addr("169.254.20.10")
	norange.Range6, norange.Resolver6 = netip.Prefix{}, netip.Addr{}
	only4 := testView().Service("default/both")
	only4.VIP6 = netip.Addr{}
	bare := Local{Self: selfID}
	return map[string]Table{
		"full":             Derive(testView(), testLocal()),
		"empty":            Derive(&state.View{}, testLocal()),
		"bare":             Derive(&state.View{}, bare),
		"options":          Derive(optionView(optionServices()...), testLocal()),
		"sticky":           Derive(optionView(stickyService(10800, "10.244.0.2:8080", "10.244.1.2:8080@other")), testLocal()),
		"resolver-outside": Derive(state.NewView(state.View{}, nil, []*state.ServiceView{only4}), norange),
	}
}

func TestGoldens(t *testing.T) {
	for name, tab := range goldenTables() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".nft")
			got := tab.Ruleset().String()
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; run with -update and read the diff):\n%s", file, diff)
			}
		})
	}
}
