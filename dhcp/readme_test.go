package dhcp

import (
	"os"
	"strings"
	"testing"

	"nodenet/config"
)

// TestREADME: the Nodefile blocks in README.md are valid.
func TestREADME(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	r := strings.NewReplacer("NAME", "vms", "PREFIX", "10.9.0.0/16", "DURATION", "5m")
	n := 0
	for i, block := range strings.Split(string(b), "```") {
		if block = strings.TrimSpace(block); i%2 == 0 || !strings.HasPrefix(block, "network ") {
			continue
		}
		n++
		c, err := config.Parse("README.md", strings.NewReader(r.Replace(block)+"\n"), config.Env{})
		if err != nil {
			t.Errorf("block %d: %v", n, err)
		} else if !c.Networks[0].DHCP {
			t.Errorf("block %d has no dhcp", n)
		}
	}
	if n != 2 {
		t.Errorf("%d Nodefile blocks in README.md, want 2", n)
	}
}
