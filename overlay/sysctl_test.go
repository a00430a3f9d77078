package overlay

import "testing"

// TestSysctlConditions: a device that heeded router advertisements goes on
// when the host begins to forward, and one that did not is left alone.
func TestSysctlConditions(t *testing.T) {
	const ra, forwarding = "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all/forwarding"
	s := Sysctl{Path: ra, Value: "2", From: "1", Before: forwarding}
	tests := map[string]struct {
		have map[string]string
		want bool
	}{
		"heeds them":                {map[string]string{ra: "1", forwarding: "0"}, true},
		"is told not to":            {map[string]string{ra: "0", forwarding: "0"}, false},
		"forwards, so it does not":  {map[string]string{ra: "1", forwarding: "1"}, false},
		"is as we made it":          {map[string]string{ra: "2", forwarding: "1"}, false},
		"IPv6 is switched off here": {map[string]string{}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := s.applies(tt.have); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
