// Package template makes answers out of the question, with Go templates.
package template

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
	"nodenet/dns/plugin/expr"
)

// made is one directive.
type made struct {
	zones       plugin.Zones
	class, kind uint16 // ANY fits all
	match       []*regexp.Regexp
	conditions  []expr.Condition
	sections    [3][]*template.Template // answer, authority, additional
	rcode       int
	ede         *wire.EDNS0_EDE
	fall        plugin.Fall
}

// Data is what a template sees.
type Data struct {
	Zone, Name, Class, Type string
	Match                   []string
	Group                   map[string]string
	Message                 *wire.Msg
	Question                *wire.Question
	Remote                  string
}

// Meta is there for templates of CoreDNS; there is no metadata here.
func (Data) Meta(string) string { return "" }

// Parse reads `template CLASS TYPE [ZONE...] { … }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	t := new(made)
	if !s.Args(d, 2, -1, "template CLASS TYPE [ZONE...]") {
		return nil
	}
	var ok bool
	if t.class, ok = wire.StringToClass[strings.ToUpper(d.Args[0])]; !ok {
		s.Errorf(d.Pos, "template: %q is not a class, write IN or ANY", d.Args[0])
	}
	if t.kind, ok = wire.StringToType[strings.ToUpper(d.Args[1])]; !ok {
		s.Errorf(d.Pos, "template: %q is not a record type", d.Args[1])
	}
	t.zones = s.ZoneArgs(d, d.Args[2:])
	for _, o := range d.Block {
		t.option(s, d, o)
	}
	if len(d.Block) == 0 {
		s.Errorf(d.Pos, "template: no answer, write `template %s { answer \"…\" }` or `rcode CODE`", strings.Join(d.Args, " "))
	}
	return t
}

func (t *made) option(s *plugin.Setup, d, o config.Directive) {
	switch o.Name {
	case "match":
		s.Args(o, 1, -1, "match REGEX...")
		for _, a := range o.Args {
			if re := s.Regexp(o, a); re != nil {
				t.match = append(t.match, re)
			}
		}
	case "answer", "authority", "additional":
		i := map[string]int{"answer": 0, "authority": 1, "additional": 2}[o.Name]
		s.Args(o, 1, -1, o.Name+" \"RECORD\"")
		for _, a := range o.Args {
			tmpl, err := template.New(o.Name).Option("missingkey=error").Funcs(template.FuncMap{"parseInt": strconv.ParseUint}).Parse(a)
			if err != nil {
				s.Errorf(o.Pos, "template: %s: %v", o.Name, err)
				continue
			}
			t.sections[i] = append(t.sections[i], tmpl)
		}
	case "rcode":
		if s.Args(o, 1, 1, "rcode CODE") {
			code, ok := wire.StringToRcode[strings.ToUpper(o.Args[0])]
			if !ok {
				s.Errorf(o.Pos, "template: %q is not an rcode, write it like NXDOMAIN", o.Args[0])
			}
			t.rcode = code
		}
	case "ederror":
		if s.Args(o, 1, 2, "ederror CODE [TEXT]") {
			n, _ := s.Number(o, "code", o.Args[0], 0, 65535)
			t.ede = &wire.EDNS0_EDE{InfoCode: uint16(n), ExtraText: strings.Join(o.Args[1:], " ")}
		}
	case "expr":
		c, err := expr.Parse(strings.Join(o.Args, " "))
		if err != nil {
			s.Errorf(o.Pos, "template: expr: %v", err)
			return
		}
		t.conditions = append(t.conditions, c)
	case "fallthrough":
		t.fall = s.Fall(o)
	case "upstream":
		s.Noticef(o, "template: upstream is ignored, aliases are always followed")
	case "var":
		s.Errorf(o.Pos, "template: var is not supported, write the expression where it is used")
	default:
		s.Unknown(d, o, "match", "answer", "authority", "additional", "rcode", "ederror", "expr", "fallthrough")
	}
}

func (t *made) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	zone := t.zones.Match(q.Name)
	if zone == "" || t.class != wire.ClassANY && t.class != q.Class || t.kind != wire.TypeANY && t.kind != q.Type {
		return next(ctx, q)
	}
	data, ok := t.fits(q, zone)
	if !ok {
		if t.fall.Passes(q.Name) {
			return next(ctx, q)
		}
		return nil, fmt.Errorf("template: %s matches none of the expressions and there is no fallthrough", q.Name)
	}
	q.Own, q.Source = true, "template"
	if t.ede != nil {
		q.EDE = append(q.EDE, t.ede)
	}
	m := &wire.Msg{MsgHdr: wire.MsgHdr{Authoritative: true, Rcode: t.rcode}}
	for i, to := range []*[]wire.RR{&m.Answer, &m.Ns, &m.Extra} {
		for _, tmpl := range t.sections[i] {
			rr, err := render(tmpl, data)
			if err != nil {
				return nil, fmt.Errorf("template: %s for %s: %w", tmpl.Name(), q.Name, err)
			}
			if rr != nil {
				*to = append(*to, rr)
			}
		}
	}
	return m, t.chase(ctx, q, m)
}

// fits finds the first expression that the name matches.
func (t *made) fits(q *plugin.Query, zone string) (*Data, bool) {
	d := &Data{
		Zone: zone, Name: q.Name, Class: wire.Class(q.Class).String(), Type: wire.Type(q.Type).String(),
		Match: []string{q.Name}, Group: map[string]string{"0": q.Name}, Message: q.Msg, Question: &q.Msg.Question[0],
		Remote: plainAddr(q.Client.Addr()),
	}
	for _, c := range t.conditions {
		if !c(q) {
			return nil, false
		}
	}
	if len(t.match) == 0 {
		return d, true
	}
	for _, re := range t.match {
		m := re.FindStringSubmatch(q.Name)
		if m == nil {
			continue
		}
		d.Match, d.Group = m, make(map[string]string, 2*len(m))
		for i, g := range m {
			d.Group[strconv.Itoa(i)] = g
			if n := re.SubexpNames()[i]; n != "" {
				d.Group[n] = g
			}
		}
		return d, true
	}
	return nil, false
}

func plainAddr(a netip.Addr) string { return a.Unmap().WithZone("").String() }

// maxRecord bounds what a template may write.
const maxRecord = 16 << 10

func render(tmpl *template.Template, data *Data) (wire.RR, error) {
	var b bytes.Buffer
	if err := tmpl.Execute(&b, data); err != nil {
		return nil, err
	}
	if b.Len() > maxRecord {
		return nil, fmt.Errorf("the record has %d bytes", b.Len())
	}
	return wire.NewRR(b.String())
}

// chase completes an answer that is an alias only.
func (t *made) chase(ctx context.Context, q *plugin.Query, m *wire.Msg) error {
	if len(m.Answer) != 1 || q.Type != wire.TypeA && q.Type != wire.TypeAAAA {
		return nil
	}
	alias, ok := m.Answer[0].(*wire.CNAME)
	if !ok {
		return nil
	}
	r, err := q.Lookup(ctx, alias.Target, q.Type)
	if err != nil || r == nil {
		return err
	}
	m.Rcode, m.Ns = r.Rcode, r.Ns
	m.Answer = plugin.Join(m.Answer, r.Answer)
	return nil
}

// Skips implements plugin.Bystander.
func (t *made) Skips(name string, qtype uint16) bool {
	return t.zones.Match(name) == "" || t.kind != wire.TypeANY && t.kind != qtype
}
