package dns

import (
	"slices"
	"strings"

	"nodenet/config"
	"nodenet/dns/plugin"
	"nodenet/dns/plugin/expr"
)

// view is a condition under which a block answers.
type view = expr.Condition

// sees reports whether all views of the block hold for a question.
func (b *block) sees(q *plugin.Query) bool {
	return !slices.ContainsFunc(b.views, func(v view) bool { return !v(q) })
}

// parseView reads `view NAME { expr EXPRESSION }`.
func parseView(p *parser, d config.Directive) plugin.Plugin {
	p.Args(d, 1, 1, "view NAME { expr EXPRESSION }")
	for _, o := range d.Block {
		if o.Name != "expr" {
			p.Unknown(d, o, "expr")
			continue
		}
		cond, err := expr.Parse(strings.Join(o.Args, " "))
		if err != nil {
			p.Errorf(o.Pos, "view: expr: %v", err)
			continue
		}
		p.block.views = append(p.block.views, cond)
	}
	if len(d.Block) == 0 {
		p.Errorf(d.Pos, "view: no condition, write `view NAME { expr EXPRESSION }`")
	}
	return nil
}
