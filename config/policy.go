package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Policy is a `policy NAME[.NAMESPACE]` block: who may speak with the endpoints
// that it selects. In a direction in which some policy selects an endpoint, it
// is isolated to what all of them together allow.
type Policy struct {
	Namespace   string // default "default"
	Name        string
	Select      map[string]string // labels; empty: all endpoints of the namespace
	Ingress     []PolicyRule
	Egress      []PolicyRule
	DenyIngress bool // `deny ingress`: isolated also without an ingress block
	DenyEgress  bool
	Pos         Pos
}

// PolicyRule allows what comes from (ingress) or goes to (egress) any of its
// peers on any of its ports.
type PolicyRule struct {
	Peers []PolicyPeer // none: everybody
	Ports []PolicyPort // none: every port and protocol
}

// PolicyPeer is the other end: endpoints by namespace and labels, a prefix, or
// the nodes. One of the three.
type PolicyPeer struct {
	Namespace string // "*": every one; empty, with Labels: the policy's own
	Labels    map[string]string
	Prefix    netip.Prefix
	Except    []netip.Prefix // parts of Prefix that are left out
	Node      bool
}

// PolicyPort is a range of ports, of one port in most cases.
type PolicyPort struct {
	First, Last uint16
	Protocol    string // tcp (default) or udp
}

// AnyNamespace stands for every namespace in a PolicyPeer.
const AnyNamespace = "*"

// FullName returns NAME.NAMESPACE.
func (p *Policy) FullName() string { return p.Name + "." + p.Namespace }

// String returns the block.
func (p *Policy) String() string {
	var w printer
	w.policy(p)
	return w.b.String()
}

func (p *parser) policy(b block) {
	pol := Policy{Namespace: DefaultNamespace, Pos: b.pos}
	title := b.name()
	if len(b.keys) != 2 {
		p.faults.add(b.pos, title, "takes one name, write `policy NAME[.NAMESPACE] { … }`")
		return
	}
	name, ns, dotted := strings.Cut(b.keys[1], ".")
	var err error
	if pol.Name, err = label("policy name", 63)(name); err != nil {
		p.faults.add(b.pos, title, "%v", err)
	}
	if dotted {
		if pol.Namespace, err = label("namespace", 63)(ns); err != nil {
			p.faults.add(b.pos, title, "%v", err)
		}
	}
	if pol.Name != "" && pol.Namespace != "" {
		title = "policy " + pol.FullName()
		if !p.once(b.pos, title, title, "a policy of this name is at %s, rename one or change its namespace") {
			return
		}
	}
	p.fields(title, b.body, policyFields(&pol))
	says := slices.ContainsFunc(b.body, func(d Directive) bool { return d.Name == "ingress" || d.Name == "egress" || d.Name == "deny" })
	if !says {
		p.faults.add(b.pos, title, "says nothing, add `ingress { … }`, `egress { … }` or `deny ingress`")
	}
	if pol.Name != "" && pol.Namespace != "" {
		p.cfg.Policies = append(p.cfg.Policies, pol)
	}
}

func policyFields(pol *Policy) []field {
	direction := func(name, preposition string, rules *[]PolicyRule) field {
		// The set of the block comes before those of its lines, which belong to
		// the rule that it began.
		last := func() *PolicyRule { return &(*rules)[len(*rules)-1] }
		return field{name: name, repeat: true,
			set: func(Directive) error { *rules = append(*rules, PolicyRule{}); return nil },
			inner: []field{
				{name: preposition, usage: "namespace NAME|* [labels KEY=VALUE...] | labels KEY=VALUE... | prefix PREFIX [except PREFIX...] | node",
					min: 1, max: -1, repeat: true, set: func(d Directive) error {
						peer, err := policyPeer(d.Args)
						if err == nil {
							last().Peers = append(last().Peers, peer)
						}
						return err
					}},
				{name: "port", usage: "PORT[-LAST][/PROTO]...", min: 1, max: -1, repeat: true, set: func(d Directive) error {
					for _, a := range d.Args {
						pp, err := policyPort(a)
						if err != nil {
							return err
						}
						last().Ports = append(last().Ports, pp)
					}
					return nil
				}},
			}}
	}
	return []field{
		{name: "select", usage: "KEY=VALUE...", min: 1, max: -1, repeat: true, set: func(d Directive) error {
			return addLabels(&pol.Select, d.Args)
		}},
		direction("ingress", "from", &pol.Ingress),
		direction("egress", "to", &pol.Egress),
		{name: "deny", usage: "ingress|egress...", min: 1, max: 2, repeat: true, set: func(d Directive) error {
			for _, a := range d.Args {
				way, err := oneOf("ingress", "egress")(a)
				if err != nil {
					return err
				}
				pol.DenyIngress = pol.DenyIngress || way == "ingress"
				pol.DenyEgress = pol.DenyEgress || way == "egress"
			}
			return nil
		}},
	}
}

// addLabels parses KEY=VALUE words.
func addLabels(to *map[string]string, words []string) error {
	for _, a := range words {
		k, v, err := keyValue(a)
		if err != nil {
			return err
		}
		if old, dup := (*to)[k]; dup {
			return fmt.Errorf("%s: %s=%s is already asked for, keep one", a, k, old)
		}
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[k] = v
	}
	return nil
}

// policyPeer parses what follows `from` or `to`.
func policyPeer(args []string) (peer PolicyPeer, err error) {
	word, rest := args[0], args[1:]
	switch {
	case word == "node" && len(rest) > 0:
		return peer, fmt.Errorf("node %s: unknown words after node, which means all nodes", strings.Join(rest, " "))
	case word == "node":
		peer.Node = true
		return peer, nil
	case len(rest) == 0 && slices.Contains([]string{"namespace", "labels", "prefix"}, word):
		return peer, fmt.Errorf("%s: nothing after it, write `namespace NAME`, `labels KEY=VALUE` or `prefix PREFIX`", word)
	case word == "prefix":
		if peer.Prefix, err = eitherPrefix(rest[0]); err != nil || len(rest) == 1 {
			return peer, err
		}
		if rest[1] != "except" || len(rest) == 2 {
			return peer, fmt.Errorf("%s: unknown words after the prefix, write `except PREFIX...` or nothing", strings.Join(rest[1:], " "))
		}
		for _, a := range rest[2:] {
			x, err := eitherPrefix(a)
			if err != nil {
				return peer, err
			}
			if !inside(x, peer.Prefix) {
				return peer, fmt.Errorf("except %s: outside of %s", x, peer.Prefix)
			}
			peer.Except = append(peer.Except, x)
		}
		return peer, nil
	case word == "namespace":
		if peer.Namespace = rest[0]; rest[0] != AnyNamespace {
			if peer.Namespace, err = label("namespace", 63)(rest[0]); err != nil {
				return peer, err
			}
		}
		if rest = rest[1:]; len(rest) == 0 {
			return peer, nil
		}
		if rest[0] != "labels" || len(rest) == 1 {
			return peer, fmt.Errorf("%s: unknown words after the namespace, write `labels KEY=VALUE...` or nothing", strings.Join(rest, " "))
		}
		return peer, addLabels(&peer.Labels, rest[1:])
	case word == "labels":
		return peer, addLabels(&peer.Labels, rest)
	}
	return peer, fmt.Errorf("%s: unknown word%s", word, meant(word, []string{"namespace", "labels", "prefix", "node"}))
}

// eitherPrefix parses an IPv4 or IPv6 prefix with no host bits set.
func eitherPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s: not a prefix, write address/length, e.g. 192.0.2.0/24 or 2001:db8::/64", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s: host bits are set, write %s", s, p.Masked())
	}
	return p, nil
}

// policyPort parses PORT[-LAST][/PROTO].
func policyPort(s string) (pp PolicyPort, err error) {
	spec, proto, err := protocol(s, "tcp", "udp", "sctp")
	if err != nil {
		return pp, err
	}
	pp.Protocol = proto
	if strings.Contains(spec, "-") {
		r, err := portRange(spec)
		pp.First, pp.Last = r.First, r.Last
		return pp, err
	}
	pp.First, err = port(spec)
	pp.Last = pp.First
	return pp, err
}

func (w *printer) policy(p *Policy) {
	w.open("policy", p.FullName())
	for _, k := range sortedKeys(p.Select) {
		w.line("select", k+"="+p.Select[k])
	}
	w.rules("ingress", "from", p.Ingress)
	w.rules("egress", "to", p.Egress)
	if p.DenyIngress {
		w.line("deny", "ingress")
	}
	if p.DenyEgress {
		w.line("deny", "egress")
	}
	w.shut()
}

func (w *printer) rules(name, preposition string, rules []PolicyRule) {
	for _, r := range rules {
		w.open(name)
		for _, peer := range r.Peers {
			w.line(append([]string{preposition}, peer.words()...)...)
		}
		for _, pp := range r.Ports {
			w.line("port", pp.String())
		}
		w.shut()
	}
}

// words returns the peer as it is written.
func (p *PolicyPeer) words() []string {
	switch {
	case p.Node:
		return []string{"node"}
	case p.Prefix.IsValid():
		words := []string{"prefix", p.Prefix.String()}
		for i, x := range p.Except {
			if i == 0 {
				words = append(words, "except")
			}
			words = append(words, x.String())
		}
		return words
	}
	var words []string
	if p.Namespace != "" {
		words = append(words, "namespace", p.Namespace)
	}
	for i, k := range slices.Sorted(maps.Keys(p.Labels)) {
		if i == 0 {
			words = append(words, "labels")
		}
		words = append(words, k+"="+p.Labels[k])
	}
	return words
}

// String returns PORT[-LAST]/PROTO.
func (p PolicyPort) String() string {
	if p.First == p.Last {
		return fmt.Sprintf("%d/%s", p.First, p.Protocol)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, p.Protocol)
}
