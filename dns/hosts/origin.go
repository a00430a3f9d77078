package hosts

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"nodenet/dns/plugin"
)

// record tells in which line of a file a traced question's answer stands, as
// the file is now.
func (h *hosts) record(q *plugin.Query) {
	if q.Trace == nil {
		return
	}
	var at []string
	text, err := os.ReadFile(h.file)
	if err == nil {
		for i, line := range bytes.Split(text, []byte("\n")) {
			if h.mentions(line, q.Name) {
				at = append(at, fmt.Sprintf("%s:%d", h.file, i+1))
			}
		}
	}
	for _, line := range h.inline {
		if h.mentions([]byte(line), q.Name) {
			at = append(at, "server block "+q.Block+": "+line)
		}
	}
	if len(at) == 0 {
		at = []string{h.file}
	}
	q.Record(plugin.Step{Plugin: "hosts", Decision: "looked up", Origin: strings.Join(at, ", ")})
}

// mentions reports whether a line of a hosts file is about a name.
func (h *hosts) mentions(line []byte, name string) bool {
	t := table{addrs: make(map[string][]netip.Addr), names: make(map[string][]string)}
	t.read(line, h.noReverse)
	return len(t.addrs[name]) > 0 || len(t.names[name]) > 0
}
