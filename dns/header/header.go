// Package header sets and clears flags of questions and answers.
package header

import (
	"context"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

type header struct{ query, response []change }

type change struct {
	flag string // aa, ra, rd
	set  bool
}

const syntax = "query|response set|clear aa|ra|rd..."

// Parse reads `header { query|response set|clear FLAG... }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	h := new(header)
	s.Args(d, 0, 0, "header { "+syntax+" }")
	if len(d.Block) == 0 {
		s.Errorf(d.Pos, "header: nothing to change, write `header { %s }`", syntax)
	}
	for _, o := range d.Block {
		sel, args := o.Name, o.Args
		if sel == "set" || sel == "clear" { // the form before selectors
			sel, args = "response", append([]string{o.Name}, args...)
		}
		if sel != "query" && sel != "response" {
			s.Unknown(d, o, "query", "response")
			continue
		}
		if len(args) < 2 || args[0] != "set" && args[0] != "clear" {
			s.Errorf(o.Pos, "header: write `%s`", syntax)
			continue
		}
		for _, f := range args[1:] {
			if f != "aa" && f != "ra" && f != "rd" {
				s.Errorf(o.Pos, "header: flag %q cannot be changed, write aa, ra or rd", f)
				continue
			}
			c := change{flag: f, set: args[0] == "set"}
			if sel == "query" {
				h.query = append(h.query, c)
			} else {
				h.response = append(h.response, c)
			}
		}
	}
	return h
}

func (h *header) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	ask := q
	if len(h.query) > 0 {
		ask = q.With(q.Msg.Question[0].Name, q.Type, q.Class)
		for _, c := range h.query {
			switch c.flag {
			case "aa":
				ask.Msg.Authoritative = c.set
			case "ra":
				ask.Msg.RecursionAvailable = c.set
			case "rd":
				ask.Msg.RecursionDesired = c.set
			}
		}
	}
	m, err := next(ctx, ask)
	if ask != q {
		q.Merge(ask)
	}
	if m == nil {
		return m, err
	}
	for _, c := range h.response {
		switch c.flag {
		case "aa":
			m.Authoritative = c.set
		case "ra":
			q.RecursionAvailable = &c.set
		case "rd":
			q.RecursionDesired = &c.set
		}
	}
	return m, err
}
