// Package acl lets clients ask or not, by their address and what they ask.
package acl

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// action is what becomes of a question that a rule fits.
type action uint8

const (
	allow  action = iota
	block         // REFUSED
	filter        // NOERROR without data
	drop          // no answer
)

var actions = map[string]action{"allow": allow, "block": block, "filter": filter, "drop": drop}

// acl is one directive: the first rule that fits decides, without one the
// question is allowed.
type acl struct {
	zones plugin.Zones
	rules []rule
}

type rule struct {
	action action
	types  []uint16       // empty: all
	nets   []netip.Prefix // empty: all
}

const syntax = "allow|block|filter|drop [type TYPE...] [net PREFIX...]"

// Parse reads `acl [ZONE...] { ACTION [type TYPE...] [net PREFIX...] }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	a := &acl{zones: s.ZoneArgs(d, d.Args)}
	for _, o := range d.Block {
		act, ok := actions[o.Name]
		if !ok {
			s.Unknown(d, o, "allow", "block", "filter", "drop")
			continue
		}
		a.rules = append(a.rules, parseRule(s, o, act))
	}
	if len(d.Block) == 0 {
		s.Errorf(d.Pos, "acl: no rule, write `acl { %s }`", syntax)
	}
	return a
}

func parseRule(s *plugin.Setup, o config.Directive, act action) rule {
	r := rule{action: act}
	section := ""
	anyType, anyNet := false, false
	for _, w := range o.Args {
		switch {
		case w == "type" || w == "net":
			section = w
		case section == "":
			s.Errorf(o.Pos, "acl: %q is neither type nor net, write `%s`", w, syntax)
			return r
		case section == "type" && w == "*":
			anyType = true
		case section == "type":
			t, ok := wire.StringToType[strings.ToUpper(w)]
			if !ok {
				s.Errorf(o.Pos, "acl: %q is not a record type", w)
				continue
			}
			r.types = append(r.types, t)
		case w == "*":
			anyNet = true
		default:
			if p, ok := s.Prefix(o, w); ok {
				r.nets = append(r.nets, p)
			}
		}
	}
	if section != "" && len(o.Args) > 0 && (o.Args[len(o.Args)-1] == "type" || o.Args[len(o.Args)-1] == "net") {
		s.Errorf(o.Pos, "acl: nothing after %q, write `%s`", section, syntax)
	}
	if anyType {
		r.types = nil
	}
	if anyNet {
		r.nets = nil
	}
	return r
}

func (r *rule) fits(q *plugin.Query) bool {
	if len(r.types) > 0 && !slices.Contains(r.types, q.Type) {
		return false
	}
	from := q.Client.Addr().Unmap().WithZone("")
	return len(r.nets) == 0 || slices.ContainsFunc(r.nets, func(p netip.Prefix) bool { return p.Contains(from) })
}

func (a *acl) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if a.zones.Match(q.Name) == "" {
		return next(ctx, q)
	}
	i := slices.IndexFunc(a.rules, func(r rule) bool { return r.fits(q) })
	if i < 0 || a.rules[i].action == allow {
		return next(ctx, q)
	}
	q.Own, q.Source = true, "acl"
	switch a.rules[i].action {
	case block:
		q.Explain(wire.ExtendedErrorCodeProhibited, "")
		return plugin.Refusal(wire.RcodeRefused), nil
	case filter:
		q.Explain(wire.ExtendedErrorCodeFiltered, "")
		return new(wire.Msg), nil
	}
	return nil, plugin.ErrDrop
}

// Skips implements plugin.Bystander.
func (a *acl) Skips(name string, _ uint16) bool { return a.zones.Match(name) == "" }
