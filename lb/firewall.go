package lb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Names of the firewalls that nodenet can live beside by rules of its own in
// their chains. Each drops forwarded packets that it does not know, and no
// accept in another table can undo that.
const (
	Docker    = "docker"
	UFW       = "ufw"
	Firewalld = "firewalld"
)

// passPoint is a chain of somebody else's where accept rules have effect.
type passPoint struct {
	firewall             string
	family, table, chain string
}

func (p passPoint) String() string { return p.family + " " + p.table + " " + p.chain }

// places are where the firewalls let others put rules: Docker's chain for its
// users, which it never empties; the chain that ufw enters before its own
// rules; the base chain of firewalld. Those of ufw and firewalld are made anew
// at a reload.
var places = []passPoint{
	{Docker, "ip", "filter", "DOCKER-USER"},
	{Docker, "ip6", "filter", "DOCKER-USER"},
	{UFW, "ip", "filter", "ufw-before-forward"},
	{UFW, "ip6", "filter", "ufw6-before-forward"},
	{Firewalld, "inet", "firewalld", "filter_FORWARD"},
}

// firewallTag is the comment by which a rule of ours is known.
const firewallTag = "nodenet"

// passRule accepts what comes in by a device, or goes out by it.
type passRule struct {
	out    bool
	device string // a trailing "*" stands for any rest of the name
}

func (r passRule) String() string {
	dir := "iifname"
	if r.out {
		dir = "oifname"
	}
	return fmt.Sprintf(`%s "%s" accept comment "%s"`, dir, r.device, firewallTag)
}

// placed is what the kernel has at a place.
type placed struct {
	passPoint
	there bool         // the chain is
	owned bool         // its table may be changed by its owner's socket only
	rules []taggedRule // of ours
}

type taggedRule struct {
	passRule
	handle uint64
}

// passRules are the rules that let the packets of our devices pass.
func passRules(devices []string) []passRule {
	var names []string
	for _, d := range devices {
		for _, prefix := range []string{"nn-", "nv-"} {
			if strings.HasPrefix(d, prefix) {
				d = prefix + "*"
				break
			}
		}
		names = append(names, d)
	}
	slices.Sort(names)
	var out []passRule
	for _, n := range slices.Compact(names) {
		out = append(out, passRule{false, n}, passRule{true, n})
	}
	return out
}

// firewallOp changes a rule of ours at one place.
type firewallOp struct {
	passPoint
	insert bool
	rule   taggedRule
}

func (o firewallOp) String() string {
	verb := "delete"
	if o.insert {
		verb = "insert"
	}
	return fmt.Sprintf("%s rule %s %s", verb, o.passPoint, o.rule.passRule)
}

// planFirewalls returns what makes the places hold exactly the wanted rules,
// and none where nothing is wanted.
func planFirewalls(have []placed, want []string, rules []passRule) []firewallOp {
	var ops []firewallOp
	for _, p := range have {
		var should []passRule
		if p.there && !p.owned && slices.Contains(want, p.firewall) {
			should = rules
		}
		var is []passRule
		for _, r := range p.rules {
			is = append(is, r.passRule)
		}
		if slices.Equal(is, should) {
			continue
		}
		for _, r := range p.rules {
			ops = append(ops, firewallOp{passPoint: p.passPoint, rule: r})
		}
		// Each goes to the head of the chain: the last one first.
		for _, r := range slices.Backward(should) {
			ops = append(ops, firewallOp{passPoint: p.passPoint, insert: true, rule: taggedRule{passRule: r}})
		}
	}
	return ops
}

// firewalls is what a Kernel can do for integration with others.
type firewalls interface {
	// Places lists what there is, in the order of places.
	Places() ([]placed, error)
	// Legacy reports whether the namespace has rules of iptables-legacy, which
	// are not to be seen by nftables.
	Legacy() bool
	// Pass applies operations in one transaction.
	Pass([]firewallOp) error
}

// cannotPass says why a firewall cannot be integrated now; nil: it can.
func cannotPass(name string, have []placed, legacy bool, rules []passRule) error {
	var of []passPoint
	found, owned := false, false
	for _, p := range have {
		if p.firewall == name {
			of = append(of, p.passPoint)
			found, owned = found || p.there, owned || p.owned
		}
	}
	var devices []string
	for _, r := range rules {
		if !r.out {
			devices = append(devices, r.device)
		}
	}
	switch {
	case len(of) == 0:
		return fmt.Errorf("firewall %q: unknown: want %s, %s or %s", name, Docker, UFW, Firewalld)
	case owned:
		var fix []string
		for _, d := range devices {
			fix = append(fix, "firewall-cmd --permanent --zone=trusted --add-interface="+strings.Replace(d, "*", "+", 1))
		}
		return fmt.Errorf("firewall %s: table %s %s can be changed by its owner only: run `%s; firewall-cmd --reload`, or set NftablesTableOwner=no in firewalld.conf",
			name, of[0].family, of[0].table, strings.Join(fix, "; "))
	case found:
		return nil
	case legacy:
		var fix []string
		for _, d := range devices {
			d = strings.Replace(d, "*", "+", 1)
			fix = append(fix, fmt.Sprintf("iptables-legacy -I %[1]s -i %[2]s -j ACCEPT; iptables-legacy -I %[1]s -o %[2]s -j ACCEPT", of[0].chain, d))
		}
		return fmt.Errorf("firewall %s: this host has rules of iptables-legacy, which nodenet does not program: switch to iptables-nft (update-alternatives --set iptables /usr/sbin/iptables-nft), or run `%s` after each of its restarts",
			name, strings.Join(fix, "; "))
	}
	return fmt.Errorf("firewall %s: there is no chain %s: is %s running?", name, of[0], name)
}

// FirewallState is one firewall that nodenet knows.
type FirewallState struct {
	Name  string
	Found bool     // it has its chains on this host
	On    bool     // rules of ours are kept in them
	Rules []string // of ours that are there, in nft's syntax
	Error string   // why it cannot be integrated, with the fix
}

// firewallStates describes what was found.
func firewallStates(have []placed, want []string, legacy bool, rules []passRule) []FirewallState {
	var out []FirewallState
	for _, name := range []string{Docker, UFW, Firewalld} {
		s := FirewallState{Name: name, On: slices.Contains(want, name)}
		for _, p := range have {
			if p.firewall != name {
				continue
			}
			s.Found = s.Found || p.there
			for _, r := range p.rules {
				s.Rules = append(s.Rules, fmt.Sprintf("%s %s", p.passPoint, r.passRule))
			}
		}
		if err := cannotPass(name, have, legacy, rules); err != nil && (s.Found || s.On) {
			s.Error = err.Error()
		}
		out = append(out, s)
	}
	return out
}

// SetFirewalls says in whose chains rules are kept from now on, by name. They
// are looked after whenever the ruleset changes and every half minute.
func (b *LB) SetFirewalls(names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.firewalls = slices.Clone(names)
}

// Integrate makes the rules for the named firewalls, beside those that were
// named before, and keeps them there. It returns the operations in nft's
// syntax; a dry run makes none. Remove is true: the rules of the named go, and
// without names all of them. It uses a socket of its own in the calling
// thread's network namespace.
func (b *LB) Integrate(names []string, remove, dry bool) ([]string, error) {
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return b.integrate(k, names, remove, dry)
}

func (b *LB) integrate(k firewalls, names []string, remove, dry bool) ([]string, error) {
	b.passing.Lock()
	defer b.passing.Unlock()
	have, err := k.Places()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	want := slices.Clone(b.firewalls)
	b.mu.Unlock()
	rules := passRules(b.devices())
	if len(rules) == 0 && !remove {
		return nil, errors.New("the node has no network of its own yet: try again when `nodectl status` is green")
	}
	for _, name := range names {
		err := cannotPass(name, have, k.Legacy(), rules)
		switch known := slices.ContainsFunc(places, func(p passPoint) bool { return p.firewall == name }); {
		case remove && known:
			want = slices.DeleteFunc(want, func(w string) bool { return w == name })
		case err != nil:
			return nil, err
		case !slices.Contains(want, name):
			want = append(want, name)
		}
	}
	if remove && len(names) == 0 {
		want = nil
	}
	ops := planFirewalls(have, want, rules)
	if !dry {
		if err := k.Pass(ops); err != nil {
			return nil, err
		}
		b.SetFirewalls(want)
	}
	var lines []string
	for _, o := range ops {
		lines = append(lines, o.String())
	}
	return lines, nil
}

// Firewalls describes the firewalls that nodenet knows, and in which it keeps
// rules. It uses a socket of its own.
func (b *LB) Firewalls() ([]FirewallState, error) {
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	have, err := k.Places()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	want := slices.Clone(b.firewalls)
	b.mu.Unlock()
	return firewallStates(have, want, k.Legacy(), passRules(b.devices())), nil
}

// Integrated returns the names that SetFirewalls and Integrate left.
func (b *LB) Integrated() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.firewalls)
}

// devices are those whose packets others must let pass.
func (b *LB) devices() []string {
	b.mu.Lock()
	w := b.desired
	b.mu.Unlock()
	if w == nil {
		return nil
	}
	return newScope(w.v, w.l).frame(w.v.Rev).Links
}

// holdFirewalls puts rules back that another firewall's reload has taken along.
func (b *LB) holdFirewalls() {
	k, ok := b.opt.Kernel.(firewalls)
	if !ok {
		return
	}
	b.passing.Lock()
	defer b.passing.Unlock()
	b.mu.Lock()
	want := slices.Clone(b.firewalls)
	b.mu.Unlock()
	if len(want) == 0 {
		return
	}
	have, err := k.Places()
	if err != nil {
		b.log.Debug("other firewalls not looked at", "err", err)
		return
	}
	ops := planFirewalls(have, want, passRules(b.devices()))
	if len(ops) == 0 {
		return
	}
	if err := k.Pass(ops); err != nil {
		b.log.Warn("rules in another firewall's chain not restored", "chain", ops[0].passPoint.String(), "err", err)
		return
	}
	b.log.Info("rules in another firewall's chain restored", "chain", ops[0].passPoint.String(), "operations", len(ops))
}
