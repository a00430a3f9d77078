package config

import (
	"slices"
	"strings"
)

// maxNesting bounds braces within braces.
const maxNesting = 32

// block is a block as written: its keys and its lines.
type block struct {
	keys []string
	pos  Pos
	body []Directive
}

// name is the block's title in errors: its first two keys.
func (b block) name() string {
	return strings.Join(b.keys[:min(2, len(b.keys))], " ")
}

// reader turns tokens into blocks.
type reader struct {
	toks   []token
	at     int
	faults *faults
}

func (r *reader) more() bool { return r.at < len(r.toks) }

func (r *reader) blocks() []block {
	var all []block
	for r.more() {
		switch t := r.toks[r.at]; t.text {
		case "}":
			r.faults.add(t.pos, "", "} without a {, remove it or open its block")
			r.at++
			continue
		case "{":
			r.faults.add(t.pos, "", "block without a name, write its key before {")
			r.at++
			r.lines(1)
			continue
		}
		b := block{pos: r.toks[r.at].pos}
		opened := false
		b.keys, opened = r.keys()
		if len(b.keys) == 0 {
			if opened {
				r.faults.add(b.pos, "", "block without a name, write its key before {")
				r.lines(1)
			}
			continue
		}
		switch {
		case opened:
			lines, closed := r.lines(1)
			b.body = lines
			if !closed {
				r.faults.add(b.pos, b.name(), "not closed, add the missing }")
			}
		case slices.Contains(reserved, b.keys[0]):
		default:
			if !r.bare(&b, len(all) == 0) {
				continue
			}
		}
		all = append(all, b)
	}
	return all
}

// keys reads the keys of a block up to the end of their line, or of the line
// after a trailing comma, and the opening brace where there is one.
func (r *reader) keys() (keys []string, opened bool) {
	comma := false
	start := r.at
	for ; r.more(); r.at++ {
		t := r.toks[r.at]
		switch {
		case t.text == "{":
			if comma {
				r.faults.add(t.pos, strings.Join(keys, " "), "no key after the comma, remove the comma")
			}
			r.at++
			return keys, true
		case t.text == "}" || t.first && r.at > start && !comma:
			return keys, false
		}
		comma = strings.HasSuffix(t.text, ",")
		text, glued := strings.CutSuffix(t.text, "{")
		for k := range strings.SplitSeq(text, ",") {
			if k != "" {
				keys = append(keys, k)
			}
		}
		if glued && !strings.Contains(text, "{") {
			r.faults.add(t.pos, text, "no space before {, write %s {", text)
			r.at++
			return keys, true
		}
	}
	if comma {
		r.faults.add(r.toks[r.at-1].pos, strings.Join(keys, " "), "no key after the comma, remove the comma")
	}
	return keys, false
}

// bare takes the lines after zones without a brace as their directives: a
// Corefile with one server may leave the braces out. Anywhere else a brace
// is missing, or the word is misspelt.
func (r *reader) bare(b *block, isFirst bool) bool {
	if word := misspelt(*b); word != "" {
		return true // decode says which word is meant
	}
	if isFirst {
		quiet := &faults{}
		rest := &reader{toks: r.toks, at: r.at, faults: quiet}
		lines, closed := rest.lines(1)
		plain := !slices.ContainsFunc(lines, func(d Directive) bool {
			return d.Name != "cluster" && slices.Contains(reserved, d.Name)
		})
		if plain && !closed && len(quiet.list) == 0 {
			b.body, r.at = lines, rest.at
			return true
		}
	}
	r.faults.add(b.pos, b.name(), "no { after the key; a block is `%s { … }`", b.keys[0])
	return false
}

// lines reads directives up to the closing brace, or false when it is missing.
func (r *reader) lines(depth int) (lines []Directive, closed bool) {
	for r.more() {
		t := r.toks[r.at]
		switch t.text {
		case "}":
			r.at++
			return lines, true
		case "{":
			r.faults.add(t.pos, "", "{ without a directive before it")
			r.at++
			if !r.deeper(t, depth) {
				return lines, false
			}
			if _, ok := r.lines(depth + 1); !ok {
				return lines, false
			}
			continue
		}
		d := Directive{Name: t.text, Pos: t.pos}
		for r.at++; r.more(); r.at++ {
			a := r.toks[r.at]
			if a.first || a.text == "{" || a.text == "}" {
				break
			}
			d.Args = append(d.Args, a.text)
		}
		if r.more() && r.toks[r.at].text == "{" {
			r.at++
			if !r.deeper(t, depth) {
				return lines, false
			}
			body, ok := r.lines(depth + 1)
			d.Block = body
			if !ok {
				return append(lines, d), false
			}
		}
		lines = append(lines, d)
	}
	return lines, false
}

// deeper guards the recursion of lines.
func (r *reader) deeper(t token, depth int) bool {
	if depth < maxNesting {
		return true
	}
	r.faults.add(t.pos, "", "more than %d blocks within one another", maxNesting)
	r.at = len(r.toks)
	return false
}
