package lb

import "testing"

// TestProbeKernel: here, where the other kernel tests pass, everything must
// be there; and the probe must leave nothing behind in this namespace.
func TestProbeKernel(t *testing.T) {
	s := newSpace(t)
	before := s.nft("", "list", "ruleset")
	s.do(func() {
		if fix, err := ProbeKernel(); err != nil || fix != "" {
			t.Errorf("%v (fix %q)", err, fix)
		}
	})
	if after := s.nft("", "list", "ruleset"); after != before {
		t.Errorf("the probe left:\n%s", after)
	}
}
