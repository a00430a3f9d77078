// Package rewrite changes questions on their way in and answers on their way
// out.
package rewrite

import (
	"context"
	"fmt"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// rule is one thing to do. It is immutable.
type rule interface {
	// ask changes the question when the rule fits; back undoes on the answer
	// what was done, and is nil when nothing is to be done there.
	ask(q *plugin.Query) (out *plugin.Query, back answerFunc, fits bool)
}

// answerFunc changes an answer, whose records are the caller's own.
type answerFunc func(ctx context.Context, q *plugin.Query, m *wire.Msg) error

// rewrite is one directive; several of a block act one after another, in the
// order of the file. See Merged.
type rewrite struct{ rules []step }

type step struct {
	rule
	stop bool // no further rule after this one
}

const syntax = "rewrite [continue|stop] name|type|class|ttl|rcode|cname|edns0 …"

// Parse reads `rewrite [continue|stop] FIELD …`, also in a nested block.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	args, stop := d.Args, true
	if len(args) > 0 && (args[0] == "continue" || args[0] == "stop") {
		stop, args = args[0] == "stop", args[1:]
	}
	lines := []line{}
	if len(args) > 0 {
		lines = append(lines, line{d, args})
	}
	for _, o := range d.Block {
		if w := append([]string{o.Name}, o.Args...); o.Name == "answer" && len(lines) > 0 {
			lines[len(lines)-1].words = append(lines[len(lines)-1].words, w...)
		} else {
			lines = append(lines, line{o, w})
		}
	}
	if len(lines) == 0 {
		s.Errorf(d.Pos, "rewrite: nothing to do, write `%s`", syntax)
	}
	rw := new(rewrite)
	for _, l := range lines {
		l.d.Name = "rewrite"
		if r := parseRule(s, l); r != nil {
			rw.rules = append(rw.rules, step{r, stop})
		}
	}
	return rw
}

// line is a rule as written.
type line struct {
	d     config.Directive
	words []string
}

// Merged is the rules of all directives of a block as one plugin, so that
// `stop` ends all of them.
func Merged(parts []plugin.Plugin) plugin.Plugin {
	all := new(rewrite)
	for _, p := range parts {
		all.rules = append(all.rules, p.(*rewrite).rules...)
	}
	return all
}

func (rw *rewrite) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	ask := q
	var back []answerFunc
	for _, r := range rw.rules {
		out, undo, fits := r.ask(ask)
		if !fits {
			continue
		}
		if _, ok := wire.IsDomainName(out.Name); !ok {
			return nil, fmt.Errorf("rewrite %s: %q is not a name", q.Name, out.Name)
		}
		if out != ask {
			q.Record(plugin.Step{Plugin: "rewrite", Decision: "rewritten", Name: out.Name, Type: out.Type})
		}
		ask = out
		if undo != nil {
			back = append(back, undo)
		}
		if r.stop {
			break
		}
	}
	m, err := next(ctx, ask)
	if ask != q {
		q.Merge(ask)
	}
	if m == nil || err != nil || len(back) == 0 {
		return m, err
	}
	m = m.Copy()
	for i := len(back) - 1; i >= 0; i-- {
		if err := back[i](ctx, q, m); err != nil {
			return nil, err
		}
	}
	return m, nil
}
