package dns

import (
	"net/netip"
	"slices"
	"strings"
)

// maxSearch is how many search domains a workload gets: glibc before 2.26
// reads six, newer ones and musl more; Kubernetes allows 32.
const maxSearch = 32

// WorkloadConfig returns the resolv.conf of a workload: the node's resolver,
// the search path that Kubernetes gives a pod, then the host's own search
// domains. An invalid resolver gives no nameserver.
func WorkloadConfig(zone, namespace string, resolver netip.Addr, hostSearch []string) (nameservers, search, options []string) {
	if resolver.IsValid() {
		nameservers = []string{resolver.String()}
	}
	zone = strings.Trim(strings.ToLower(zone), ".")
	if namespace == "" {
		namespace = "default"
	}
	for _, d := range append([]string{namespace + ".svc." + zone, "svc." + zone, zone}, hostSearch...) {
		d = strings.Trim(d, ".")
		if d != "" && len(search) < maxSearch && !slices.Contains(search, d) {
			search = append(search, d)
		}
	}
	return nameservers, search, []string{"ndots:5"}
}
