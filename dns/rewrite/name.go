package rewrite

import (
	"context"
	"regexp"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// nameRule asks another name.
type nameRule struct {
	matcher
	to      string
	auto    bool
	answers []answerRule
}

// answerRule changes owner names, or the names in the data, of an answer.
type answerRule struct {
	value bool
	re    *regexp.Regexp
	to    string
}

// parseName reads [KIND] FROM TO [answer auto | answer name|value FROM TO]...
func parseName(s *plugin.Setup, l line) rule {
	const form = "rewrite name [exact|prefix|suffix|substring|regex] FROM TO [answer auto | answer name|value FROM TO]"
	m, rest, ok := parseMatcher(s, l.d, l.words[1:])
	if !ok || len(rest) == 0 {
		s.Errorf(l.d.Pos, "rewrite: write `%s`", form)
		return nil
	}
	r := &nameRule{matcher: m, to: rest[0], auto: m.kind == "exact"}
	if m.kind == "exact" {
		if _, ok := wire.IsDomainName(wire.Fqdn(r.to)); !ok {
			s.Errorf(l.d.Pos, "rewrite: %q is not a name", r.to)
		}
	}
	for rest = rest[1:]; len(rest) > 0; {
		if rest[0] == "answer" {
			rest = rest[1:]
		}
		switch {
		case len(rest) >= 1 && rest[0] == "auto":
			r.auto, rest = true, rest[1:]
		case len(rest) >= 2 && rest[0] == "name" && rest[1] == "auto":
			r.auto, rest = true, rest[2:]
		case len(rest) >= 3 && (rest[0] == "name" || rest[0] == "value"):
			if re := s.Regexp(l.d, rest[1]); re != nil {
				r.answers = append(r.answers, answerRule{value: rest[0] == "value", re: re, to: rest[2]})
			}
			rest = rest[3:]
		default:
			s.Errorf(l.d.Pos, "rewrite: %q: write `%s`", strings.Join(rest, " "), form)
			return nil
		}
	}
	return r
}

func (r *nameRule) ask(q *plugin.Query) (*plugin.Query, answerFunc, bool) {
	if !r.fits(q.Name) {
		return q, nil, false
	}
	out := q.With(r.replace(q.Name, r.to), q.Type, q.Class)
	if !r.auto && len(r.answers) == 0 {
		return out, nil, true
	}
	was, is := q.Name, out.Name
	return out, func(_ context.Context, _ *plugin.Query, m *wire.Msg) error {
		r.restore(m, was, is)
		return nil
	}, true
}

// restore changes the names of an answer.
func (r *nameRule) restore(m *wire.Msg, was, is string) {
	back := func(name string) string {
		if !r.auto {
			return name
		}
		lower := strings.ToLower(name)
		switch {
		case lower == is:
			return was
		case r.kind == "suffix" && strings.HasSuffix(lower, r.normal(r.to)):
			return strings.TrimSuffix(lower, r.normal(r.to)) + r.text
		}
		return name
	}
	change := func(name string, value bool) string {
		for _, a := range r.answers {
			if a.value != value {
				continue
			}
			if g := a.re.FindStringSubmatch(strings.ToLower(name)); g != nil {
				if to := wire.Fqdn(fill(a.to, g)); legal(to) {
					name = to
				}
			}
		}
		return name
	}
	hasValue := false
	for _, a := range r.answers {
		hasValue = hasValue || a.value
	}
	for _, section := range [][]wire.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == wire.TypeOPT {
				continue
			}
			rr.Header().Name = change(back(rr.Header().Name), false)
			for _, name := range targets(rr) {
				if *name = back(*name); hasValue {
					*name = change(*name, true)
				}
			}
		}
	}
}

func legal(name string) bool {
	_, ok := wire.IsDomainName(name)
	return ok
}

// targets returns the names in a record's data.
func targets(rr wire.RR) []*string {
	switch rr := rr.(type) {
	case *wire.CNAME:
		return []*string{&rr.Target}
	case *wire.DNAME:
		return []*string{&rr.Target}
	case *wire.SOA:
		return []*string{&rr.Ns, &rr.Mbox}
	case *wire.SRV:
		return []*string{&rr.Target}
	case *wire.MX:
		return []*string{&rr.Mx}
	case *wire.NAPTR:
		return []*string{&rr.Replacement}
	case *wire.NS:
		return []*string{&rr.Ns}
	case *wire.PTR:
		return []*string{&rr.Ptr}
	}
	return nil
}
