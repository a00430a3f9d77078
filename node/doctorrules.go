package node

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"nodenet/api"
)

// ruleFiles are those that distributions load into nftables at boot.
var ruleFiles = []string{"/etc/nftables.conf", "/etc/sysconfig/nftables.conf", "/etc/nftables/*.nft", "/etc/nftables.d/*"}

// RuleFiles returns the text of each of ruleFiles that is there and readable.
func (thisHost) RuleFiles() map[string]string {
	out := make(map[string]string)
	for _, pattern := range ruleFiles {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			if b, err := os.ReadFile(p); err == nil {
				out[p] = string(b)
			}
		}
	}
	return out
}

// ourTables finds the beginning of a table of nodenet's in a listing.
var ourTables = regexp.MustCompile(`(?m)^\s*(?:(?:add|create)\s+)?table\s+((?:inet|bridge|netdev)\s+nodenet(?:-hold)?)(?:[\s{;]|$)`)

// checkSavedRules warns of files that came of `nft list ruleset` with our
// tables in it. While the daemon runs, its tables nodenet-hold are nobody else's
// to add to, and a file is loaded as a whole or not at all; nft 1.0.6 does not
// read back either what it lists of inet nodenet.
func checkSavedRules(h hostFacts) api.Check {
	c := api.Check{Name: "saved rules", Status: okay, Detail: "no file that is loaded at boot has tables of nodenet's in it"}
	files := h.RuleFiles()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		m := ourTables.FindStringSubmatch(files[path])
		if m == nil {
			continue
		}
		c.Status = warn
		c.Detail = fmt.Sprintf("%s has table %s in it: nft refuses the whole file, the host's own rules too", path, m[1])
		c.Fix = "save the rules again without nodenet's tables: nft list tables | grep -v ' nodenet' | while read -r t; do nft list $t; done"
		break
	}
	return c
}
