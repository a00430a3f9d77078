// Package expr evaluates conditions about a question, as `view` and `template`
// have them: the part of the expr language that Corefiles use.
//
//	(type() == 'A' && name() == 'example.com.') || incidr(client_ip(), '10.0.0.0/8')
//
// Operands are strings in ' or ", whole numbers, true, false, lists in [] and
// calls of the functions in functions.go. Operators, loosest first: || or,
// && and, ! not, == != < <= > >= in matches contains startsWith endsWith.
package expr

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"nodenet/dns/plugin"
)

// Condition reports whether a question fits. Safe for concurrent use.
type Condition func(*plugin.Query) bool

// kind of a value.
type kind uint8

const (
	boolean kind = iota
	text
	number
	list
)

func (k kind) String() string { return [...]string{"a condition", "text", "a number", "a list"}[k] }

// node is a part of an expression with its kind; the value is a bool, string,
// int or []any.
type node struct {
	kind  kind
	value func(*plugin.Query) any
	fixed bool // the same for every question
}

// Parse compiles a condition.
func Parse(src string) (Condition, error) {
	words, err := scan(src)
	if err != nil {
		return nil, err
	}
	p := &parser{words: words}
	n, err := p.or()
	if err != nil {
		return nil, err
	}
	if w := p.peek(); w.text != "" || w.quoted {
		return nil, fmt.Errorf("unexpected %q", w.text)
	}
	if n.kind != boolean {
		return nil, fmt.Errorf("the expression is %s, not a condition", n.kind)
	}
	return func(q *plugin.Query) bool { return n.value(q).(bool) }, nil
}

type word struct {
	text   string
	quoted bool
}

var operators = []string{"&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ","}

// scan splits an expression into words.
func scan(src string) ([]word, error) {
	var out []word
next:
	for {
		if src = strings.TrimLeft(src, " \t\n"); src == "" {
			return out, nil
		}
		if c := src[0]; c == '\'' || c == '"' {
			var b strings.Builder
			for i := 1; i < len(src); i++ {
				switch {
				case src[i] == '\\' && i+1 < len(src):
					i++
					b.WriteByte(src[i])
				case src[i] == c:
					out = append(out, word{b.String(), true})
					src = src[i+1:]
					continue next
				default:
					b.WriteByte(src[i])
				}
			}
			return nil, fmt.Errorf("%s has no closing quote", src)
		}
		for _, op := range operators {
			if strings.HasPrefix(src, op) {
				out = append(out, word{text: op})
				src = src[len(op):]
				continue next
			}
		}
		n := strings.IndexFunc(src, func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		})
		if n < 0 {
			n = len(src)
		}
		if n == 0 {
			return nil, fmt.Errorf("unexpected %q", src[:1])
		}
		out = append(out, word{text: src[:n]})
		src = src[n:]
	}
}

// maxDepth bounds parentheses.
const maxDepth = 50

type parser struct {
	words []word
	depth int
}

func (p *parser) peek() word {
	if len(p.words) == 0 {
		return word{}
	}
	return p.words[0]
}

// take takes the next word if it is one of some.
func (p *parser) take(any ...string) bool {
	w := p.peek()
	for _, a := range any {
		if !w.quoted && w.text == a && a != "" {
			p.words = p.words[1:]
			return true
		}
	}
	return false
}

func (p *parser) or() (node, error) {
	return p.joined(p.and, func(a, b bool) bool { return a || b }, true, "||", "or")
}

func (p *parser) and() (node, error) {
	return p.joined(p.not, func(a, b bool) bool { return a && b }, false, "&&", "and")
}

// joined reads conditions between operators; the value enough ends the
// evaluation early.
func (p *parser) joined(part func() (node, error), op func(a, b bool) bool, enough bool, words ...string) (node, error) {
	left, err := part()
	for err == nil && p.take(words...) {
		var right node
		if right, err = part(); err != nil {
			break
		}
		if left.kind != boolean || right.kind != boolean {
			return node{}, fmt.Errorf("%s needs conditions on both sides", words[0])
		}
		l, r := left.value, right.value
		left = node{kind: boolean, value: func(q *plugin.Query) any {
			if a := l(q).(bool); a == enough {
				return enough
			}
			return op(!enough, r(q).(bool))
		}}
	}
	return left, err
}

func (p *parser) not() (node, error) {
	if !p.take("!", "not") {
		return p.comparison()
	}
	if p.depth++; p.depth > maxDepth {
		return node{}, fmt.Errorf("nested too deeply")
	}
	n, err := p.not()
	p.depth--
	if err == nil && n.kind != boolean {
		err = fmt.Errorf("! needs a condition, not %s", n.kind)
	}
	return node{kind: boolean, value: func(q *plugin.Query) any { return !n.value(q).(bool) }}, err
}

func (p *parser) comparison() (node, error) {
	left, err := p.operand()
	if err != nil {
		return node{}, err
	}
	negate := false
	if w := p.peek(); w.text == "not" && !w.quoted {
		p.words, negate = p.words[1:], true
	}
	op := p.peek()
	if op.quoted || !p.take("==", "!=", "<", "<=", ">", ">=", "in", "matches", "contains", "startsWith", "endsWith") {
		if negate {
			return node{}, fmt.Errorf("unexpected \"not\"")
		}
		return left, nil
	}
	right, err := p.operand()
	if err != nil {
		return node{}, err
	}
	n, err := compare(op.text, left, right)
	if err != nil || !negate {
		return n, err
	}
	return node{kind: boolean, value: func(q *plugin.Query) any { return !n.value(q).(bool) }}, nil
}

func (p *parser) operand() (node, error) {
	if p.depth++; p.depth > maxDepth {
		return node{}, fmt.Errorf("nested too deeply")
	}
	defer func() { p.depth-- }()
	w := p.peek()
	switch {
	case w.quoted:
		p.words = p.words[1:]
		return constant(text, w.text), nil
	case w.text == "":
		return node{}, fmt.Errorf("the expression ends too early")
	case p.take("("):
		n, err := p.or()
		if err == nil && !p.take(")") {
			err = fmt.Errorf("a closing parenthesis is missing")
		}
		return n, err
	case p.take("["):
		items, err := p.list("]")
		if err != nil {
			return node{}, err
		}
		return node{kind: list, value: func(q *plugin.Query) any {
			out := make([]any, len(items))
			for i, n := range items {
				out[i] = n.value(q)
			}
			return out
		}}, nil
	case p.take("true"):
		return constant(boolean, true), nil
	case p.take("false"):
		return constant(boolean, false), nil
	}
	p.words = p.words[1:]
	if n, err := strconv.Atoi(w.text); err == nil {
		return constant(number, n), nil
	}
	if !p.take("(") {
		return node{}, fmt.Errorf("%q is not known, text goes in quotes", w.text)
	}
	args, err := p.list(")")
	if err != nil {
		return node{}, err
	}
	return call(w.text, args)
}

// list reads operands between commas up to the closing word.
func (p *parser) list(end string) (out []node, err error) {
	for !p.take(end) {
		if len(out) > 0 && !p.take(",") {
			return nil, fmt.Errorf("a comma or %s is missing", end)
		}
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

func constant(k kind, v any) node {
	return node{kind: k, fixed: true, value: func(*plugin.Query) any { return v }}
}

// compare makes a condition of two operands.
func compare(op string, a, b node) (node, error) {
	mismatch := fmt.Errorf("%s does not compare %s with %s", op, a.kind, b.kind)
	cond := func(f func(x, y any) bool) (node, error) {
		return node{kind: boolean, value: func(q *plugin.Query) any { return f(a.value(q), b.value(q)) }}, nil
	}
	switch op {
	case "==", "!=":
		if a.kind != b.kind || a.kind == list {
			return node{}, mismatch
		}
		return cond(func(x, y any) bool { return (x == y) == (op == "==") })
	case "in":
		if b.kind != list || a.kind == list {
			return node{}, mismatch
		}
		return cond(func(x, y any) bool {
			for _, e := range y.([]any) {
				if e == x {
					return true
				}
			}
			return false
		})
	case "matches":
		if a.kind != text || b.kind != text {
			return node{}, mismatch
		}
		if !b.fixed {
			return node{}, fmt.Errorf("matches needs an expression in quotes")
		}
		re, err := regexp.Compile(b.value(nil).(string))
		if err != nil {
			return node{}, err
		}
		return cond(func(x, _ any) bool { return re.MatchString(x.(string)) })
	case "contains", "startsWith", "endsWith":
		if a.kind != text || b.kind != text {
			return node{}, mismatch
		}
		f := map[string]func(string, string) bool{"contains": strings.Contains, "startsWith": strings.HasPrefix, "endsWith": strings.HasSuffix}[op]
		return cond(func(x, y any) bool { return f(x.(string), y.(string)) })
	}
	if a.kind != number || b.kind != number {
		return node{}, mismatch
	}
	return cond(func(x, y any) bool {
		x1, y1 := x.(int), y.(int)
		switch op {
		case "<":
			return x1 < y1
		case "<=":
			return x1 <= y1
		case ">":
			return x1 > y1
		}
		return x1 >= y1
	})
}
