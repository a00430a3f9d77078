// Package plugintest runs plugins in tests: a directive is parsed from text,
// questions and answers are lines of a zone file.
package plugintest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// Client asks the questions unless a case says otherwise.
var Client = netip.MustParseAddrPort("192.0.2.77:40000")

// ParseFunc is what a directive's package exports.
type ParseFunc = func(*plugin.Setup, config.Directive) plugin.Plugin

// Setup parses the directives of a server block, the block's braces left out.
// The first key is zone.
func Setup(t testing.TB, zone, text string, parse map[string]ParseFunc) ([]plugin.Named, *plugin.Setup) {
	t.Helper()
	env := config.Env{Hostname: "node1", LookupEnv: func(string) (string, bool) { return "", false }}
	c, err := config.Parse("Nodefile", strings.NewReader(zone+" {\n"+text+"\n}\n"), env)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	s := &plugin.Setup{Server: c.Servers[0]}
	if s.Zones, err = plugin.ParseZone(zone); err != nil {
		t.Fatal(err)
	}
	var out []plugin.Named
	for _, d := range s.Server.Directives {
		p := parse[d.Name]
		if p == nil {
			t.Fatalf("no parser for directive %q", d.Name)
		}
		if pl := p(s, d); pl != nil {
			out = append(out, plugin.Named{Name: d.Name, Plugin: pl})
		}
	}
	return out, s
}

// New is Setup of one directive without errors, attached.
func New(t testing.TB, zone, text string, parse ParseFunc) plugin.Plugin {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	ps, s := Setup(t, zone, text, map[string]ParseFunc{name: parse})
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if len(ps) != 1 {
		t.Fatalf("%q makes %d plugins", text, len(ps))
	}
	if a, ok := ps[0].Plugin.(plugin.Attacher); ok {
		a.Attach(plugin.Env{Block: zone, Zones: s.Zones, Plugins: ps}.Filled())
	}
	return ps[0].Plugin
}

// Errors returns the errors of directives as lines.
func Errors(t testing.TB, text string, parse map[string]ParseFunc) []string {
	t.Helper()
	_, s := Setup(t, ".", text, parse)
	var out []string
	for _, err := range s.Errs() {
		out = append(out, err.Error())
	}
	return out
}

// Query makes a question "NAME TYPE [CLASS]".
func Query(t testing.TB, question string) *plugin.Query {
	t.Helper()
	f := strings.Fields(question)
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(f[0]), wire.StringToType[f[1]])
	if len(f) > 2 {
		m.Question[0].Qclass = wire.StringToClass[f[2]]
	}
	return &plugin.Query{
		Msg: m, Name: wire.CanonicalName(f[0]), Type: m.Question[0].Qtype, Class: m.Question[0].Qclass, Client: Client,
	}
}

// RRs reads records, one a line.
func RRs(t testing.TB, text string) (out []wire.RR) {
	t.Helper()
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		rr, err := wire.NewRR(line)
		if err != nil {
			t.Fatalf("record %q: %v", line, err)
		}
		out = append(out, rr)
	}
	return out
}

// Records is a handler that answers from records: an unknown name is
// NXDOMAIN, an unknown type of a known name has no data. It follows no alias.
func Records(t testing.TB, text string) plugin.Handler {
	rrs := RRs(t, text)
	return func(_ context.Context, q *plugin.Query) (*wire.Msg, error) {
		m := new(wire.Msg)
		m.Rcode = wire.RcodeNameError
		for _, rr := range rrs {
			if h := rr.Header(); strings.EqualFold(h.Name, q.Name) {
				m.Rcode = wire.RcodeSuccess
				if h.Rrtype == q.Type || h.Rrtype == wire.TypeCNAME {
					m.Answer = append(m.Answer, wire.Copy(rr))
				}
			}
		}
		q.Source = "records"
		if len(m.Answer) == 0 {
			m.Ns = []wire.RR{plugin.SOA("example.", 30, 1)}
		}
		return m, nil
	}
}

// Text writes a message: rcode and flags, then the records of each section as
// in a zone file, sorted. No message is "none".
func Text(m *wire.Msg) string {
	if m == nil {
		return "none\n"
	}
	var b strings.Builder
	b.WriteString(wire.RcodeToString[m.Rcode])
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.AuthenticatedData, "ad"}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	b.WriteByte('\n')
	for _, s := range []struct {
		name string
		rrs  []wire.RR
	}{{"", m.Answer}, {"authority ", m.Ns}, {"additional ", m.Extra}} {
		var lines []string
		for _, rr := range s.rrs {
			if rr.Header().Rrtype != wire.TypeOPT {
				lines = append(lines, s.name+strings.Join(strings.Fields(rr.String()), " ")+"\n")
			}
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

// Serve asks a plugin and returns the answer as Text; of an error its text.
func Serve(t testing.TB, p plugin.Plugin, q *plugin.Query, next plugin.Handler) string {
	t.Helper()
	if next == nil {
		next = func(context.Context, *plugin.Query) (*wire.Msg, error) { return nil, nil }
	}
	m, err := p.Serve(t.Context(), q, next)
	if err != nil {
		return fmt.Sprintf("error: %v\n", err)
	}
	return Text(m)
}

// Trim takes the indentation and the empty lines off a text in a test.
func Trim(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}
