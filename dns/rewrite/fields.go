package rewrite

import (
	"context"
	"strconv"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

func parseRule(s *plugin.Setup, l line) rule {
	switch l.words[0] {
	case "name":
		return parseName(s, l)
	case "type":
		return parseCode(s, l, wire.StringToType, "record type", func(q *plugin.Query) uint16 { return q.Type },
			func(q *plugin.Query, to uint16) *plugin.Query { return q.With(q.Msg.Question[0].Name, to, q.Class) })
	case "class":
		return parseCode(s, l, wire.StringToClass, "class", func(q *plugin.Query) uint16 { return q.Class },
			func(q *plugin.Query, to uint16) *plugin.Query { return q.With(q.Msg.Question[0].Name, q.Type, to) })
	case "ttl":
		return parseTTL(s, l)
	case "rcode":
		return parseRcode(s, l)
	case "cname":
		return parseCNAME(s, l)
	case "edns0":
		return parseEDNS(s, l)
	}
	// A name without its field, the form of old Corefiles.
	if len(l.words) == 2 && !strings.ContainsAny(l.words[0], "{}") && strings.Contains(l.words[0], ".") {
		return parseName(s, line{l.d, append([]string{"name"}, l.words...)})
	}
	s.Errorf(l.d.Pos, "rewrite: unknown field %q, %s", l.words[0],
		plugin.Suggest(l.words[0], []string{"name", "type", "class", "ttl", "rcode", "cname", "edns0"}))
	return nil
}

// codeRule asks another type or class.
type codeRule struct {
	from, to uint16
	of       func(*plugin.Query) uint16
	with     func(*plugin.Query, uint16) *plugin.Query
}

func parseCode(s *plugin.Setup, l line, known map[string]uint16, what string, of func(*plugin.Query) uint16, with func(*plugin.Query, uint16) *plugin.Query) rule {
	if len(l.words) != 3 {
		s.Errorf(l.d.Pos, "rewrite: write `rewrite %s FROM TO`", l.words[0])
		return nil
	}
	r := &codeRule{of: of, with: with}
	for i, v := range []*uint16{&r.from, &r.to} {
		code, ok := known[strings.ToUpper(l.words[i+1])]
		if !ok {
			s.Errorf(l.d.Pos, "rewrite: %q is not a %s", l.words[i+1], what)
		}
		*v = code
	}
	return r
}

func (r *codeRule) ask(q *plugin.Query) (*plugin.Query, answerFunc, bool) {
	if r.of(q) != r.from {
		return q, nil, false
	}
	return r.with(q, r.to), nil, true
}

// ttlRule bounds the TTLs of an answer.
type ttlRule struct {
	matcher
	least, most uint32
}

func parseTTL(s *plugin.Setup, l line) rule {
	const form = "rewrite ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|MIN-MAX"
	m, rest, ok := parseMatcher(s, l.d, l.words[1:])
	if !ok || len(rest) != 1 {
		s.Errorf(l.d.Pos, "rewrite: write `%s`", form)
		return nil
	}
	r := &ttlRule{matcher: m, most: 1<<31 - 1}
	low, high, ranged := strings.Cut(rest[0], "-")
	if !ranged {
		high = low
	}
	bad := low == "" && high == ""
	for _, v := range []struct {
		text string
		to   *uint32
	}{{low, &r.least}, {high, &r.most}} {
		if v.text == "" {
			continue
		}
		n, err := strconv.ParseUint(v.text, 10, 31) // RFC 2181 section 8
		bad = bad || err != nil
		*v.to = uint32(n)
	}
	if bad || r.least > r.most {
		s.Errorf(l.d.Pos, "rewrite: ttl %q is neither seconds nor a range, write it like 30, 30-300, 30- or -300", rest[0])
		return nil
	}
	return r
}

func (r *ttlRule) ask(q *plugin.Query) (*plugin.Query, answerFunc, bool) {
	if !r.fits(q.Name) {
		return q, nil, false
	}
	return q, func(_ context.Context, _ *plugin.Query, m *wire.Msg) error {
		for _, section := range [][]wire.RR{m.Answer, m.Ns, m.Extra} {
			for _, rr := range section {
				if h := rr.Header(); h.Rrtype != wire.TypeOPT {
					h.Ttl = min(max(h.Ttl, r.least), r.most)
				}
			}
		}
		return nil
	}, true
}

// rcodeRule gives an answer another code.
type rcodeRule struct {
	matcher
	from, to int
}

func parseRcode(s *plugin.Setup, l line) rule {
	m, rest, ok := parseMatcher(s, l.d, l.words[1:])
	if !ok || len(rest) != 2 {
		s.Errorf(l.d.Pos, "rewrite: write `rewrite rcode [exact|prefix|suffix|substring|regex] NAME FROM TO`")
		return nil
	}
	r := &rcodeRule{matcher: m}
	for i, v := range []*int{&r.from, &r.to} {
		code, known := wire.StringToRcode[strings.ToUpper(rest[i])]
		if n, err := strconv.Atoi(rest[i]); err == nil && wire.RcodeToString[n] != "" {
			code, known = n, true
		}
		if !known {
			s.Errorf(l.d.Pos, "rewrite: %q is not an rcode", rest[i])
			return nil
		}
		*v = code
	}
	return r
}

func (r *rcodeRule) ask(q *plugin.Query) (*plugin.Query, answerFunc, bool) {
	if !r.fits(q.Name) {
		return q, nil, false
	}
	return q, func(_ context.Context, _ *plugin.Query, m *wire.Msg) error {
		if m.Rcode == r.from {
			m.Rcode = r.to
		}
		return nil
	}, true
}

// cnameRule leads an alias elsewhere.
type cnameRule struct {
	matcher
	to string
}

func parseCNAME(s *plugin.Setup, l line) rule {
	m, rest, ok := parseMatcher(s, l.d, l.words[1:])
	if !ok || len(rest) != 1 {
		s.Errorf(l.d.Pos, "rewrite: write `rewrite cname [exact|prefix|suffix|substring|regex] FROM TO`")
		return nil
	}
	return &cnameRule{matcher: m, to: rest[0]}
}

func (r *cnameRule) ask(q *plugin.Query) (*plugin.Query, answerFunc, bool) {
	return q, r.answer, true
}

func (r *cnameRule) answer(ctx context.Context, q *plugin.Query, m *wire.Msg) error {
	for i, rr := range m.Answer {
		alias, ok := rr.(*wire.CNAME)
		if !ok || !r.fits(strings.ToLower(alias.Target)) {
			continue
		}
		to := r.replace(strings.ToLower(alias.Target), r.to)
		if !legal(to) || strings.EqualFold(to, alias.Target) {
			return nil
		}
		alias.Target = to
		m.Answer, m.Ns, m.Extra = m.Answer[:i+1], nil, nil
		if q.Type == wire.TypeCNAME {
			return nil
		}
		next, err := q.Lookup(ctx, to, q.Type)
		if err != nil || next == nil {
			return err
		}
		m.Rcode = next.Rcode
		m.Answer, m.Ns = plugin.Join(m.Answer, next.Answer), next.Ns
		return nil
	}
	return nil
}
