package overlay

import (
	"net"
	"os"
	"testing"
)

func TestProbeKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range ProbeKernel() {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
	after, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("%d interfaces after the probe, %d before", len(after), len(before))
	}
}
