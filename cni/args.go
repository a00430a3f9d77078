package cni

import (
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
)

// The verbs.
const (
	cmdAdd     = "ADD"
	cmdDel     = "DEL"
	cmdCheck   = "CHECK"
	cmdGC      = "GC"
	cmdStatus  = "STATUS"
	cmdVersion = "VERSION"
)

var identifier = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// invocation is what the environment says, validated for its verb.
type invocation struct {
	command     string
	containerID string
	netns       string
	ifName      string
	args        map[string]string // CNI_ARGS
}

// attachmentID names an attachment to the daemon. Container IDs contain no
// slash, so the pair stays unambiguous.
func (v *invocation) attachmentID() string { return v.containerID + "/" + v.ifName }

// readEnv reads and checks the variables (CNI specification, section 2).
func readEnv(env func(string) string) (invocation, error) {
	v := invocation{
		command:     env("CNI_COMMAND"),
		containerID: env("CNI_CONTAINERID"),
		netns:       env("CNI_NETNS"),
		ifName:      env("CNI_IFNAME"),
	}
	var need []string
	switch v.command {
	case cmdAdd, cmdCheck:
		need = []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}
	case cmdDel:
		// The namespace may be gone already, and its path with it.
		need = []string{"CNI_CONTAINERID", "CNI_IFNAME"}
	case cmdGC, cmdStatus, cmdVersion:
		return v, nil
	default:
		return v, faultf(codeEnvironment, "CNI_COMMAND=%q: want ADD, DEL, CHECK, GC, STATUS or VERSION", v.command)
	}
	var missing []string
	for _, n := range need {
		if env(n) == "" {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return v, faultf(codeEnvironment, "required environment variables are missing: %s", strings.Join(missing, ", "))
	}
	if !identifier.MatchString(v.containerID) {
		return v, faultf(codeEnvironment, "CNI_CONTAINERID=%q: want letters, digits, '_', '.', '-', a letter or digit first", v.containerID)
	}
	if why := badIfName(v.ifName); why != "" {
		return v, faultf(codeEnvironment, "CNI_IFNAME=%q: %s", v.ifName, why)
	}
	var err error
	v.args, err = parseArgs(env("CNI_ARGS"))
	return v, err
}

// badIfName says why the kernel would refuse an interface name, or "".
func badIfName(s string) string {
	switch {
	case len(s) > 15:
		return "longer than 15 bytes"
	case s == "." || s == "..":
		return "not an interface name"
	case strings.ContainsAny(s, "/: \t\n\v\f\r\x00"):
		return "contains '/', ':' or white space"
	}
	return ""
}

// parseArgs reads CNI_ARGS, "K=V;K=V". Keys that mean nothing to us are kept
// and ignored: runtimes send many, with IgnoreUnknown=1 or without.
func parseArgs(s string) (map[string]string, error) {
	m := make(map[string]string)
	for kv := range strings.SplitSeq(s, ";") {
		if kv == "" {
			continue
		}
		k, val, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, faultf(codeEnvironment, "CNI_ARGS: %q is not KEY=VALUE", kv)
		}
		m[k] = val
	}
	return m, nil
}

// sameNetns reports whether the path is the network namespace of the plugin
// itself: attaching it would take apart the host's own network.
func sameNetns(path string) bool {
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := os.Stat("/proc/self/ns/net")
	return err == nil && os.SameFile(a, b)
}

// workloadName returns name and namespace of the container, as far as the
// runtime tells; "" where it does not.
func (v *invocation) workloadName() (name, namespace string) {
	first := func(keys ...string) string {
		for _, k := range keys {
			if s := label(v.args[k]); s != "" {
				return s
			}
		}
		return ""
	}
	name = first("K8S_POD_NAME", "NERDCTL_CNI_DHCP_HOSTNAME")
	if group := first("NOMAD_GROUP_NAME", "NOMAD_JOB_ID"); name == "" && group != "" {
		// All allocations of a group have its name: what tells them apart is
		// the allocation's ID, as Nomad shortens it.
		alloc := v.args["NOMAD_ALLOC_ID"]
		name = label(group[:min(len(group), 54)] + "-" + alloc[:min(len(alloc), 8)])
	}
	namespace = first("K8S_POD_NAMESPACE", "NOMAD_NAMESPACE")
	if v.args["K8S_POD_NAME"] != "" && v.args["K8S_POD_NAME"] == v.args["K8S_POD_NAMESPACE"] {
		// Podman sends the container's name for both: it has no namespaces.
		namespace = ""
	}
	return name, namespace
}

// workloadLabels returns what Nomad tells beyond the name, for services to
// select by.
func (v *invocation) workloadLabels() map[string]string {
	m := make(map[string]string)
	for arg, key := range map[string]string{"NOMAD_JOB_ID": "nomad.job", "NOMAD_GROUP_NAME": "nomad.group"} {
		if s := v.args[arg]; s != "" {
			m[key] = s
		}
	}
	return m
}

// shortID is a container's name when nothing better is known: as much of its
// ID as runtimes show.
func shortID(id string) string { return label(id[:min(len(id), 12)]) }

// label makes a DNS label (RFC 1123) of s: lower case, runs of other
// characters become one hyphen; "" when nothing is left.
func label(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	out := b.String()
	return strings.Trim(out[:min(len(out), 63)], "-")
}

// parseIP reads an address with or without a prefix length.
func parseIP(where, s string) (netip.Addr, error) {
	host, _, _ := strings.Cut(s, "/")
	a, err := netip.ParseAddr(host)
	if err != nil {
		return a, faultf(codeConfig, "%s: %q is not an address", where, s)
	}
	if a.Is4In6() || a.Zone() != "" {
		return a, faultf(codeConfig, "%s: %s: want a plain IPv4 or IPv6 address", where, s)
	}
	return a, nil
}

// parseMAC reads a unicast Ethernet address and returns it in canonical form.
func parseMAC(where, s string) (string, error) {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m[0]&1 != 0 {
		return "", faultf(codeConfig, "%s: %q is not a unicast Ethernet address", where, s)
	}
	return m.String(), nil
}
