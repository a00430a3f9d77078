package lb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// direction is the way of a connection as the endpoint that a policy is about
// sees it.
type direction uint8

const (
	ingress direction = iota
	egress
)

var directions = [...]direction{ingress, egress}

func (d direction) String() string { return [...]string{"ingress", "egress"}[d] }

// of returns the rules of a policy in a direction, and whether it isolates.
func (d direction) of(p *state.Policy) ([]state.PolicyRule, bool) {
	if d == ingress {
		return p.Ingress, p.IsolatesIngress()
	}
	return p.Egress, p.IsolatesEgress()
}

// policyClass is what the isolated endpoints have in common that the same rules hold
// for. Its number stands for it in the kernel.
type policyClass struct {
	dir    direction
	text   string // what it allows, in one spelling
	number uint32
	used   int // by how many addresses of this node

	peers []classPeer // endpoints by namespace and labels
	nets  []stretch   // addresses
	nodes allowed     // nodes of the cluster
	// known is what groups that match get; the others are absent.
	known map[*group]allowed
}

// classPeer is a peer with the namespace of the policy that has it.
type classPeer struct {
	namespace string
	peer      *state.PolicyPeer
	allowed
}

// classText spells what policies, sorted by key, allow the endpoints that they
// all select. Two with the same text are the same class.
func classText(d direction, policies []*state.Policy) string {
	var lines []string
	for _, p := range policies {
		rules, _ := d.of(p)
		for _, r := range rules {
			ports := allowPorts(r.Ports)
			if len(r.Peers) == 0 {
				lines = append(lines, fmt.Sprintf("all %q", ports))
			}
			for i := range r.Peers {
				lines = append(lines, fmt.Sprintf("%s %q", peerText(p.Namespace, &r.Peers[i]), ports))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

func peerText(namespace string, p *state.PolicyPeer) string {
	switch {
	case p.Node:
		return "node"
	case p.Prefix.IsValid():
		return fmt.Sprint("prefix ", p.Prefix, p.Except)
	}
	if p.Namespace != "" {
		namespace = p.Namespace
	}
	var b strings.Builder
	fmt.Fprintf(&b, "namespace %q", namespace)
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		fmt.Fprintf(&b, " %q=%q", k, p.Labels[k])
	}
	return b.String()
}

// everybody is all addresses of each version.
var everybody = [len(versions)]netip.Prefix{V4: netip.MustParsePrefix("0.0.0.0/0"), V6: netip.MustParsePrefix("::/0")}

// newClass makes the class of what policies allow.
func newClass(d direction, text string, policies []*state.Policy) *policyClass {
	c := &policyClass{dir: d, text: text, known: make(map[*group]allowed)}
	var nets [len(versions)][]peerNet
	for _, p := range policies {
		rules, _ := d.of(p)
		for _, r := range rules {
			ports := allowPorts(r.Ports)
			if len(r.Peers) == 0 {
				for v, all := range everybody {
					nets[v] = append(nets[v], peerNet{prefix: all, allowed: ports})
				}
			}
			for i := range r.Peers {
				switch peer := &r.Peers[i]; {
				case peer.Node:
					c.nodes = c.nodes.and(ports)
				case !peer.Prefix.IsValid():
					c.peers = append(c.peers, classPeer{p.Namespace, peer, ports})
				default:
					v := versionOf(peer.Prefix.Addr())
					nets[v] = append(nets[v], peerNet{peer.Prefix, peer.Except, ports})
				}
			}
		}
	}
	// An IPv4 address is before every IPv6 one.
	c.nets = append(stretches(nets[V4]), stretches(nets[V6])...)
	return c
}

// group is what endpoints with one namespace and the same labels have in
// common: every selector says the same of all of them.
type group struct {
	sample  *state.Endpoint
	addrs   map[netip.Addr]struct{}
	classes map[*policyClass]struct{} // that let it through
}

func groupKey(e *state.Endpoint) string {
	var b strings.Builder
	b.WriteString(e.Namespace)
	for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
		b.WriteString("\x00" + k + "\x00" + e.Labels[k])
	}
	return b.String()
}

// meet notes what a class lets through of a group, and reports whether
// that is anything.
func meet(c *policyClass, id *group) bool {
	var a allowed
	for _, p := range c.peers {
		if p.peer.Is(p.namespace, id.sample) {
			a = a.and(p.allowed)
		}
	}
	if a == "" {
		return false
	}
	c.known[id], id.classes[c] = a, struct{}{}
	return true
}

// part from a class that is no longer in use.
func (c *policyClass) part() {
	for id := range c.known {
		delete(id.classes, c)
	}
}
